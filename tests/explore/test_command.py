"""The proposer ``command`` and the entry point, as a user meets them."""

from __future__ import annotations

import json
import sys

import pytest

from neuralgraph.core.errors import ConfigError
from neuralgraph.explore import notebook
from neuralgraph.explore.loop import Watcher, explore
from neuralgraph.explore.setup import prepare

AGENT = """
import json, sys
request = json.load(sys.stdin)
with open("asked.txt", "a") as file:
    file.write(request["error"] + "\\n")
n = request["iteration"]
if not request["nodes"]:
    answers = [{"changes": {}}, {"changes": {"lr": 0.01}, "note": "a guess"}]
elif request["error"]:
    parent = request["nodes"][0]["id"]
    answers = [{"parent": parent, "changes": {"lr": 0.001 * (n + k + 1)}, "rule": "mine"}
               for k in range(request["n_proposals"])]
else:
    answers = [{"changes": {"simulator.n_var": 3}}] * request["n_proposals"]
print(json.dumps(answers))
"""


class Said(Watcher):
    def __init__(self):
        self.messages = []

    def say(self, message):
        self.messages.append(message)


def test_a_program_joins_and_its_bad_answers_are_sent_back_with_the_reason(
    kit, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.py").write_text(AGENT)
    search = kit.toy(
        proposer="command", command=f"{sys.executable} agent.py", n_iter_block=4, n_blocks=1
    )
    said = Said()
    history = explore(search, tmp_path / "run", said, kit.Pool())
    assert [i.proposal.proposer for i in history] == ["command"] * 4
    assert history[1].values["loop.rate"] == 0.01 and history[2].proposal.rule == "mine"
    asked = (tmp_path / "asked.txt").read_text().splitlines()
    assert asked[0] == asked[1] == "" and "simulator.n_var is frozen" in asked[2]
    assert any("is refused" in message for message in said.messages)
    assert "a guess" in (tmp_path / "run/toy_memory.md").read_text()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('no json')", "not JSON"),
        ("print('[]')", "2 proposals are wanted, got 0"),
        ("import sys; sys.exit('gave up')", "gave up"),
    ],
)
def test_after_its_retries_the_rules_take_over(kit, tmp_path, program, reason):
    (tmp_path / "agent.py").write_text(program)
    search = kit.toy(
        proposer="command", command=f"{sys.executable} {tmp_path}/agent.py", n_iter_block=2,
        n_blocks=1, command_retries=1,
    )  # fmt: skip
    said = Said()
    history = explore(search, tmp_path / "run", said, kit.Pool())
    assert [i.proposal.proposer for i in history] == ["rules"] * 2
    assert sum(reason in m for m in said.messages) == 2
    assert said.messages[-1] == "the rules decide this batch"


SMALL = (
    "+experiment=linear_smoke", "simulator.n_var=5", "simulator.n_run=6", "loop.n_epochs=3",
    "explore.n_iter_block=2", "explore.n_blocks=1", "explore.n_parallel=2",
)  # fmt: skip


def test_one_command_leaves_notebook_scores_and_page(command, inside, tmp_path):
    done = command("explore", *SMALL, "hydra.run.dir=out")
    out = tmp_path / "out"
    entries = notebook.load(out / "linear_smoke_analysis.md")
    assert len([x for x in entries if hasattr(x.item, "number")]) == 2
    for name in ("linear_smoke_memory.md", "ucb_scores.txt", "exploration.html",
                 "iterations/002/scorecard.json", "iterations/001/analysis.log",
                 "iterations/001/report.html"):  # fmt: skip
        assert (out / name).stat().st_size > 50, name
    page = (out / "exploration.html").read_text()
    assert "<svg" in page and 'src="http' not in page and 'href="http' not in page
    assert "matrix_R2" in done.stdout and "exploration.html" in done.stdout
    for resume in ("null", "auto"):  # without more blocks there is nothing to go on with
        status, text = inside("explore.__main__", *SMALL, "hydra.run.dir=out", f"resume={resume}")
        assert status == 1 and "finished run" in text


MISTAKES = {
    "ucb_c": ("explore.ucb_c=0.4", "explore.ucb_c must lie in [0.5, 3.0]"),
    "proposer": ("explore.proposer=rule", "did you mean 'rules'"),
    "workers": ("explore.workers=slurm", "explore.workers=slurm"),
    "misspelt": ("explore.n_iter_blok=3", "did you mean 'n_iter_block'"),
    "type": ("explore.n_blocks=many", "explore.n_blocks must be"),
    "command": ("explore.proposer=command", "needs explore.command"),
    "budget": ("explore.data_augmentation_loop=5", "has no data_augmentation_loop"),
    "memory": ("explore.memory_max_lines=10", "at least 60"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_the_options_is_one_readable_line(inside, case):
    option, message = MISTAKES[case]
    status, text = inside("explore.__main__", *SMALL, option, "hydra.run.dir=out")
    assert status == 1 and message in text.replace("\n", " ")


@pytest.mark.parametrize(
    "options",
    [("+experiment=metabolism_joint",), (*SMALL, "~search_space"), (*SMALL, "search_space=null")],
)
def test_an_experiment_without_a_space_is_refused(inside, options):
    status, text = inside("explore.__main__", *options, "hydra.run.dir=out")
    assert status == 1 and "declares no search_space" in text


def test_two_explorers_on_one_folder_are_refused(tmp_path):
    from neuralgraph.core.errors import RunFolderError
    from neuralgraph.run_folder import RunFolder

    first = RunFolder(tmp_path / "x", {"a": 1}, resume=False)
    with pytest.raises(RunFolderError, match="another run is writing"):
        RunFolder(tmp_path / "x", {"a": 1}, resume=True)
    first.release()


def test_a_finished_search_is_reopened_only_when_asked_and_when_there_is_more(tmp_path):
    from neuralgraph.core.errors import RunFolderError
    from neuralgraph.run_folder import RunFolder

    RunFolder(tmp_path / "x", {"a": 1}, resume=False).finish()
    for resume, more in ((True, False), (False, True)):
        with pytest.raises(RunFolderError, match="finished run"):
            RunFolder(tmp_path / "x", {"a": 1}, resume=resume, has_more=lambda _, m=more: m)
    with pytest.raises(RunFolderError, match="another config"):
        RunFolder(tmp_path / "x", {"a": 2}, resume=True, has_more=lambda _: True)
    again = RunFolder(tmp_path / "x", {"a": 1}, resume=True, has_more=lambda _: True)
    assert again.resumed
    again.release()


@pytest.fixture
def composed(kit):
    return kit.composed


def test_budget_options_set_the_loop_and_leave_the_space(composed):
    config = composed(
        "+experiment=metabolism_joint_document", "explore.n_epochs=2",
        "explore.data_augmentation_loop=7",
    )  # fmt: skip
    search = prepare(config)
    assert search.config["loop"]["n_epochs"] == 2
    assert search.config["loop"]["data_augmentation_loop"] == 7
    assert not {"loop.n_epochs", "loop.data_augmentation_loop"} & set(search.space)


def test_the_first_batch_of_document_002_is_its_four_slot_spread(composed, kit, tmp_path):
    search = prepare(composed("+experiment=metabolism_joint_document", "explore.n_parallel=4"))
    metric = "rate_constants_R2"
    from neuralgraph.explore.history import History
    from neuralgraph.explore.proposers import Common, Rules, Task

    rules = Rules(Common(search.space, search.plan, search.settings, 1, search.describe_code))
    batch = rules(Task(History([], search.root), 1, 4, tmp_path))
    changes = [{c.key: c.new for c in p.changes} for p in batch]
    assert changes == [
        {},
        {"loop.learning_rate_node": 5e-4},
        {"loss.coeff_MLP_node_L1": 0.1},
        {"loop.recurrent_training": True, "loop.time_step": 4, "loop.learning_rate_k": 2e-3},
    ]
    assert search.metric == metric and search.plan.memory_max_lines == 300


def test_a_metric_the_evaluation_does_not_know_is_refused_before_any_run(composed):
    with pytest.raises(ConfigError, match=r"no such metric; did you mean 'matrix_R2'"):
        prepare(composed("+experiment=linear_smoke", "evaluation.primary_metric=matrx_R2"))


SPACES = ("linear_smoke", "metabolism_s", "metabolism_joint_document", "grn_phenotype",
          "perturb_ode_simulated")  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
def test_the_same_options_work_on_every_system(composed, name):
    search = prepare(
        composed(
            f"+experiment={name}", "budget=smoke", "explore.n_iter_block=3", "explore.n_blocks=2",
            "explore.n_parallel=2", "explore.ucb_c=1.0", "explore.report=false",
        )
    )  # fmt: skip
    assert search.settings.n_iterations == 6 and len(search.space) >= 3
    assert search.metric and all(key in search.root for key in search.space)


@pytest.mark.long
@pytest.mark.parametrize("name", ["grn_phenotype", "perturb_ode_simulated"])
def test_a_search_runs_with_budget_smoke_on(kit, composed, tmp_path, name):
    search = prepare(
        composed(
            f"+experiment={name}", "budget=smoke", "explore.n_iter_block=2", "explore.n_blocks=1",
            "explore.n_parallel=2", "explore.report=false",
        )
    )  # fmt: skip
    history = explore(search, tmp_path / "run", Watcher())
    assert [i.status for i in history] == ["finished"] * 2
    assert all(i.metric is not None for i in history)


@pytest.mark.parametrize("name", ["metabolism_s_adam", "metabolism_joint_document"])
def test_the_plans_of_the_documents_name_parameters_of_their_spaces(composed, name):
    search = prepare(composed(f"+experiment={name}"))
    assert search.plan.order and search.plan.blocks and search.plan.interactions
    for variant in search.plan.variants:
        code = search.describe_code(variant)
        assert code.file.startswith("neuralgraph/systems/metabolism/") and code.function


def test_a_plan_that_names_what_the_space_lacks_is_refused(composed):
    config = composed("+experiment=linear_smoke")
    config["search_plan"] = {"order": ["loop.learning_rat"]}
    with pytest.raises(ConfigError, match=r"did you mean 'loop\.learning_rate'"):
        prepare(config)


def test_requests_to_a_program_are_plain_json(kit, tmp_path):
    from neuralgraph.explore.history import History
    from neuralgraph.explore.proposers import Command, Common, Task

    search = kit.toy(proposer="command", command="true")
    common = Common(search.space, search.plan, search.settings, 1, search.describe_code)
    asked = Command(common, say=print).request(
        Task(History([kit.made(1)], search.root), 1, 2, tmp_path), ""
    )
    assert json.loads(json.dumps(asked))["space"]["lr"]["allowed"] == "0.0001 to 0.1 (log)"
