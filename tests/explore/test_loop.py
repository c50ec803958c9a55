"""The search as a whole, on runs that cost nothing: files, resuming, failures, bad input."""

from __future__ import annotations

import json
import resource
import time
import tracemalloc
from pathlib import Path

import pytest

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.explore import memory, notebook, tree
from neuralgraph.explore.history import load_journal
from neuralgraph.explore.loop import Watcher, explore, has_more
from neuralgraph.explore.notebook import Entry, NotebookError, Summary
from neuralgraph.explore.runs import Result, do
from neuralgraph.explore.setup import prepare

FILES = ("exploration.jsonl", "toy_analysis.md", "toy_memory.md", "ucb_scores.txt",
         "ucb_scores_block_1.txt", "ucb_scores_block_2.txt", "strategy_rules.json")  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in FILES}


def test_a_search_writes_every_iteration_and_finds_a_better_setting(kit, tmp_path):
    history = kit.run(tmp_path)
    assert len(history) == 12 and [i.number for i in history] == list(range(1, 13))
    assert history.best_run.metric > history[0].metric + 0.05
    found = [x.item for x in notebook.load(tmp_path / "toy_analysis.md")]
    assert [e.number for e in found if isinstance(e, Entry)] == list(range(1, 13))
    assert [s.block for s in found if isinstance(s, Summary)] == [1, 2]
    remembered = memory.read((tmp_path / "toy_memory.md").read_text(), source="toy_memory.md")
    assert remembered.block == 2 and remembered.previous_block == 1
    lines = (tmp_path / "ucb_scores.txt").read_text().splitlines()
    assert len(lines) == 6 and all(tree.LINE.match(line) for line in lines)


def test_every_block_starts_a_tree_of_its_own_from_the_best_so_far(kit, tmp_path):
    history = kit.run(tmp_path)
    for iteration in history:
        assert iteration.parent is None or history.node(iteration.parent).block == iteration.block
    second = history.block(2)[0]
    best = max(history.block(1), key=lambda i: i.reward)
    assert second.parent is None and history.block_root(2)["loop.rate"] == best.values["loop.rate"]
    assert history.block(1)[-1].next_parent is None  # Next: parent=root at a block's end


def test_a_proposal_changes_one_thing_but_for_strategies_that_combine(kit, tmp_path):
    combined = 0
    for iteration in kit.run(tmp_path / "six"):
        n = len(iteration.proposal.changes)
        assert n <= 1 or iteration.proposal.strategy in ("explore", "recombine", "principle-test")
        combined += n > 1
    assert combined
    for iteration in kit.run(tmp_path / "one", n_together=1):
        assert len(iteration.proposal.changes) <= 1


@pytest.mark.parametrize("die_after", [0, 1, 3, 6, 11])
def test_a_search_killed_after_any_run_goes_on_with_the_same_choices(kit, tmp_path, die_after):
    kit.run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        kit.run(tmp_path / "broken", kit.Pool(die_after=die_after))
    kit.run(tmp_path / "broken")
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


@pytest.mark.parametrize("n_writes", [1, 2, 3, 4, 5, 6, 16, 23, 24])
def test_a_search_killed_between_any_two_files_goes_on_with_the_same_choices(
    kit, tmp_path, monkeypatch, n_writes
):
    from neuralgraph.explore import loop

    kit.run(tmp_path / "whole")
    real, left = loop.write_text, [n_writes]

    def dying(path, text):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(path, text)

    monkeypatch.setattr(loop, "write_text", dying)
    with pytest.raises(KeyboardInterrupt):
        kit.run(tmp_path / "broken")
    monkeypatch.setattr(loop, "write_text", real)
    kit.run(tmp_path / "broken")
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")


def test_a_finished_search_goes_on_with_more_blocks_as_if_they_had_been_asked_for(kit, tmp_path):
    kit.run(tmp_path / "whole", n_blocks=3)
    kit.run(tmp_path / "more", n_blocks=1)
    assert not has_more(kit.toy(n_blocks=1), tmp_path / "more")
    assert has_more(kit.toy(n_blocks=3), tmp_path / "more")
    pool = kit.Pool()
    kit.run(tmp_path / "more", pool, n_blocks=3)
    assert pool.n == 12  # the first six are read, not run again
    assert contents(tmp_path / "whole") == contents(tmp_path / "more")


def test_scores_are_emptied_when_the_next_block_starts_and_kept_beside(kit, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        kit.run(tmp_path, kit.Pool(die_after=6))
    assert (tmp_path / "ucb_scores.txt").read_text() == ""
    assert len((tmp_path / "ucb_scores_block_1.txt").read_text().splitlines()) == 6


def test_batches_are_merged_in_slot_order(kit, tmp_path):
    class Backwards(kit.Pool):
        def run(self, jobs, on_done):
            return super().run(jobs[::-1], on_done)[::-1]

    kit.run(tmp_path / "a")
    kit.run(tmp_path / "b", Backwards())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_crashed_run_and_a_metric_that_is_nan_are_recorded_as_failed_and_not_lost(kit, tmp_path):
    crashed = Result("failed", {}, {}, {}, {}, problem="TrainingError: loss is not finite")
    nan = Result("finished", {"final_loss": 1.0}, {"test_R2": "the value is nan"}, {}, {})
    history = kit.run(tmp_path, kit.Pool({3: crashed, 5: nan}))
    assert len(history) == 12
    assert (history[2].status, history[2].verdict, history[2].reward) == ("failed", "failed", 0.0)
    assert history[4].metric is None and "the value is nan" in history[4].problem
    text = (tmp_path / "toy_analysis.md").read_text()
    assert "## Iter 3: failed" in text and "loss is not finite" in text
    assert "test_R2=n/a" in text
    assert "test_R2=nan" in (tmp_path / "ucb_scores_block_1.txt").read_text()


def test_an_unknown_metric_is_refused_after_the_first_batch_by_name(kit, tmp_path):
    odd = Result("finished", {"test_r2": 0.5, "loss": 1.0}, {}, {}, {})
    with pytest.raises(ConfigError, match="did you mean 'test_r2'"):
        kit.run(tmp_path, kit.Pool({1: odd, 2: odd}))


def test_a_first_batch_in_which_every_run_fails_ends_the_search_with_the_reason(kit, tmp_path):
    bad = Result("failed", {}, {}, {}, {}, problem="loop.rate is unknown")
    with pytest.raises(ConfigError, match=r"no run of the first batch.*loop\.rate is unknown"):
        kit.run(tmp_path, kit.Pool({1: bad, 2: bad}))
    assert len(load_journal(tmp_path / "exploration.jsonl")) == 2


EDITS = {
    "a metric": ("test_R2=0.", "test_R2=1.", "metrics of iteration 1"),
    "the mutation": ("Mutation: none (baseline)", "Mutation: lr: 1E-3 - 1E-2", "' -> ' is missing"),
    "a heading": ("## Iter 2: ", "## Itr 2: ", "expected '## Iter N: class'"),
    "the parent": ("parent=root", "parent=12", "parent of iteration 1"),
    "a value": ("batch=16", "batch=", "a value is missing"),
    "a rate": (
        "Branching rate: ",
        "Branching rate: 1",
        "'Branching rate:' of the summary of block 1",
    ),
    "a block": ("## Block 1 Summary", "## Block 2 Summary", "expected the summary of block 1"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_hand_edited_notebook_is_refused_with_line_and_column(kit, tmp_path, edit):
    old, new, message = EDITS[edit]
    with pytest.raises(KeyboardInterrupt):
        kit.run(tmp_path, kit.Pool(die_after=6))
    path = tmp_path / "toy_analysis.md"
    text = path.read_text()
    path.write_text(text.replace(old, new, 1))
    line = text[: text.index(old)].count("\n") + 1
    with pytest.raises(NotebookError, match=message) as refused:
        kit.run(tmp_path)
    assert f"toy_analysis.md, line {line}, column " in str(refused.value)
    path.write_text(text)
    assert len(kit.run(tmp_path)) == 12


def test_a_truncated_notebook_is_refused_and_a_deleted_one_is_written_anew(kit, tmp_path):
    whole = kit.run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        kit.run(tmp_path / "b", kit.Pool(die_after=4))
    path = tmp_path / "b" / "toy_analysis.md"
    path.write_text(path.read_text()[:-60])
    with pytest.raises(NotebookError, match="iteration 4 ends before its"):
        kit.run(tmp_path / "b")
    path.unlink()
    assert len(kit.run(tmp_path / "b")) == len(whole)
    assert contents(tmp_path / "whole") == contents(tmp_path / "b")


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_a_notebook_cut_off_in_the_summary_of_a_block_is_refused(kit, tmp_path, share):
    with pytest.raises(KeyboardInterrupt):
        kit.run(tmp_path, kit.Pool(die_after=8))
    path = tmp_path / "toy_analysis.md"
    text = path.read_text()
    start, end = text.index("Iterations: "), text.index("\n\n## Iter 7")
    path.write_text(text[: start + round(share * (end - start))])
    with pytest.raises(NotebookError, match=r"toy_analysis\.md, line \d+, .*summary of block 1"):
        kit.run(tmp_path)


def test_free_text_of_the_notebook_may_be_edited_and_stays(kit, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        kit.run(tmp_path, kit.Pool(die_after=4))
    path = tmp_path / "toy_analysis.md"
    path.write_text(path.read_text().replace("the baseline", "the baseline, which I like", 1))
    with pytest.raises(KeyboardInterrupt):
        kit.run(tmp_path, kit.Pool(die_after=2))
    path.write_text(path.read_text().replace("Next focus: what", "Next focus: now what", 1))
    kit.run(tmp_path)
    assert "which I like" in path.read_text() and "Next focus: now what" in path.read_text()


def test_a_truncated_memory_file_is_refused_with_line_and_column(kit, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        kit.run(tmp_path, kit.Pool(die_after=4))
    path = tmp_path / "toy_memory.md"
    path.write_text("\n".join(path.read_text().splitlines()[:14]) + "\n")
    with pytest.raises(NotebookError, match=r"toy_memory\.md, line \d+, column 1: .*file ends"):
        kit.run(tmp_path)


def test_a_broken_journal_is_refused_with_line_and_column(kit, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        kit.run(tmp_path, kit.Pool(die_after=4))
    path = tmp_path / "exploration.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:50]]) + "\n")
    with pytest.raises(DataError, match=r"exploration\.jsonl, line 2, column \d+"):
        kit.run(tmp_path)


def test_the_memory_file_stays_under_its_number_of_lines(kit, tmp_path):
    kit.run(tmp_path, n_iter_block=20, n_blocks=2, memory_max_lines=70)
    text = (tmp_path / "toy_memory.md").read_text()
    assert text.count("\n") <= 70
    assert "### Emerging Observations" in text.split("### Iterations This Block")[1]


def test_two_hundred_cheap_runs_cost_under_50_ms_each_and_no_memory(kit, tmp_path):
    from neuralgraph.core.threads import limit_threads

    limit_threads(1)
    n = 200
    options = {"n_iter_block": 20, "n_blocks": n // 20}
    space = {
        **kit.space,
        "loop.batch": {"values": [2**i for i in range(12)], "group": "schedule"},
    }
    kit.run(tmp_path / "warm")
    began = time.process_time()
    assert len(kit.run(tmp_path / "many", space=space, **options)) == n
    per_iteration = (time.process_time() - began) / n
    assert per_iteration < 0.05, f"{1e3 * per_iteration:.1f} ms of CPU per iteration"

    tracemalloc.start()
    kit.run(tmp_path / "traced", space=space, n_iter_block=10, n_blocks=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


def test_random_and_optuna_make_the_same_choices_again_after_a_kill(kit, tmp_path):
    for proposer in ("random", "optuna"):
        if proposer == "optuna":
            pytest.importorskip("optuna", reason="the optional extra optuna is not installed")
        whole = kit.run(tmp_path / f"{proposer}_a", proposer=proposer)
        with pytest.raises(KeyboardInterrupt):
            kit.run(tmp_path / f"{proposer}_b", kit.Pool(die_after=7), proposer=proposer)
        kit.run(tmp_path / f"{proposer}_b", proposer=proposer)
        assert contents(tmp_path / f"{proposer}_a") == contents(tmp_path / f"{proposer}_b")
        assert not whole[0].proposal.changes and len(whole[5].proposal.changes) > 1


def test_a_w_and_b_group_holds_every_iteration(kit, tmp_path):
    pool = kit.Pool()
    kit.run(tmp_path / "folder", pool)
    assert {config["logger"]["group"] for config in pool.configs} == {"toy/folder"}


@pytest.mark.long
def test_every_iteration_is_a_w_and_b_run_of_one_group(kit, tmp_path, monkeypatch):
    """Real offline runs; the archives hold name, group and score."""
    pytest.importorskip("wandb", reason="the optional extra wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    small = ("simulator.n_var=5", "simulator.n_run=6", "simulator.n_time=12", "loop.n_epochs=1")
    search = prepare(
        kit.composed(
            "+experiment=linear_smoke", *small, "logger=wandb", "explore.n_iter_block=2",
            "explore.n_blocks=1", "explore.n_parallel=2", "explore.report=false",
        )
    )  # fmt: skip

    class Here(kit.Pool):
        def run(self, jobs, on_done):
            return [do(job) for job in jobs]

    explore(search, tmp_path / "folder", Watcher(), Here())
    archives = sorted(tmp_path.glob("folder/iterations/*/wandb/offline-run-*/run-*.wandb"))
    assert [a.parents[2].name for a in archives] == ["001", "002"]
    for archive in archives:
        content = archive.read_bytes()
        for needle in (
            b"linear_smoke/folder",
            b"score/matrix_R2",
            archive.parents[2].name.encode(),
        ):
            assert needle in content, needle


def test_adapted_rules_are_recorded_as_data(kit, tmp_path):
    kit.run(tmp_path)
    rules = json.loads((tmp_path / "strategy_rules.json").read_text())
    assert all(set(rule) == {"block", "rule", "because", "role"} for rule in rules)
