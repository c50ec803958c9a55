"""Trajectories of a Boolean network, the network learned from them, and the attractors shown."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, DataError, MissingDataError
from neuralgraph.core.recording import Recording
from neuralgraph.systems.boolean_grn.network import BooleanNetwork
from neuralgraph.systems.boolean_grn.trajectories.dataset import TransitionData
from neuralgraph.systems.boolean_grn.trajectories.evaluation import (
    attractor_set,
    influences,
    learned_successors,
    sampled_states,
)
from neuralgraph.systems.boolean_grn.trajectories.model import LearnedNetwork
from neuralgraph.systems.boolean_grn.trajectories.simulator import BooleanTrajectories


def simulator(**changes):
    with open(f"{CONFIG_FOLDER}/simulator/boolean_trajectories.yaml") as file:
        knobs = yaml.safe_load(file)
    knobs = {k: v for k, v in knobs.items() if k not in ("_target_", "seed")}
    return BooleanTrajectories(**{**knobs, **changes})


def test_trajectories_follow_the_network():
    made = simulator()
    recording, truth = made.simulate(3)
    network = BooleanNetwork.from_bnet(truth.facts["bnet"])
    states = recording.state.numpy() > 0.5
    for t in range(recording.n_time - 1):
        assert (network.step(states[:, t]) == states[:, t + 1]).all()
    assert truth.parameters["signs"].shape == (5, 5)
    assert int(recording.is_test.sum()) == 10


def test_asynchronous_trajectories_change_one_gene_at_a_time_and_as_the_network_says():
    recording, truth = simulator(update="asynchronous", n_time=20).simulate(3)
    network = BooleanNetwork.from_bnet(truth.facts["bnet"])
    states = recording.state.numpy() > 0.5
    for t in range(recording.n_time - 1):
        changed = states[:, t] != states[:, t + 1]
        assert (changed.sum(1) <= 1).all()
        assert (network.step(states[:, t])[changed] == states[:, t + 1][changed]).all()


def test_the_support_is_revealed_only_where_it_is_asked_for():
    made = simulator()
    recording, truth = made.simulate(1)
    assert made.reveal(recording, truth, support=False) == {}
    given = made.reveal(recording, truth, support=True)
    assert int(given["is_edge"].sum()) == 6
    with pytest.raises(ConfigError, match="needs the network"):
        made.reveal(recording, None, support=True)
    model = LearnedNetwork(
        TransitionData(recording, given, validation_fraction=0.0).spec,
        n_hidden=3, init_scale=0.3, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    found = influences(model, sampled_states(5))
    assert (found[~given["is_edge"]] == 0).all()


def test_a_network_may_be_a_text_or_a_file(tmp_path):
    assert simulator(circuit="x -> y, y -| x").network.names == ("x", "y")
    (tmp_path / "mine.bnet").write_text("A, !B\nB, A & C\n")
    made = simulator(path=str(tmp_path / "mine.bnet"))
    recording, _ = made.simulate(1)
    assert recording.names == ("A", "B", "C") and recording.provenance["source"] == "mine.bnet"
    assert "C" in recording.provenance["warnings"][0]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"circuit": "repressilater"}, ConfigError, "did you mean 'repressilator'"),
        ({"circuit": "A -> B, A -| B"}, DataError, "two signs"),
        ({"circuit": "A -> B, a -> C"}, DataError, "'A' and 'a' collide"),
        ({"circuit": " "}, ConfigError, "the circuit is empty: give simulator.circuit a text"),
        ({"circuit": None}, ConfigError, "the circuit is empty"),
        ({"rule": "treshold"}, ConfigError, "did you mean 'threshold'"),
        ({"update": "sync"}, ConfigError, "no update 'sync'"),
        ({"engine": "fast"}, ConfigError, "no engine 'fast'"),
        ({"path": "pyboolnet/none.bnet"}, MissingDataError, "none.bnet"),
        ({"path": "none.bnet"}, MissingDataError, "there is no file none.bnet"),
        ({"n_time": 1}, ConfigError, "at least 2 frames"),
        ({"circuit": "random:17"}, ConfigError, "give 1 to 16 genes"),
    ],
)
def test_bad_wishes_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        simulator(**changes)


def test_a_random_circuit_comes_from_the_seed():
    made = simulator(circuit="random:5")
    first, again, other = (made.simulate(seed)[1].facts["bnet"] for seed in (1, 1, 2))
    assert first == again != other
    assert made.simulate(1)[0].n_var == 5


def test_data_that_are_not_boolean_are_refused():
    recording = Recording(time=torch.arange(3.0)[None], state=torch.full((1, 3, 2), 0.5),
                          names=("a", "b"))  # fmt: skip
    with pytest.raises(DataError, match="threshold the data first"):
        TransitionData(recording, {}, validation_fraction=0.0)


def test_attractor_sets_are_those_of_the_successors():
    assert attractor_set(np.array([0, 2, 1, 3], dtype=np.int32)) == {(0,), (1, 2), (3,)}


def trained(inside, tmp_path, *overrides):
    status, message = inside(
        "train", "+experiment=boolean_attractors", "trainer.progress=false",
        "hydra.run.dir=out", *overrides,
    )  # fmt: skip
    assert status == 0, message
    return json.loads((tmp_path / "out/scorecard.json").read_text())


def test_enough_trajectories_give_the_network_and_its_attractors_back(inside, tmp_path):
    card = trained(inside, tmp_path, "loop.n_epochs=80", "simulator.n_run=60")
    for name in ("state_accuracy", "attractor_recall", "attractor_precision", "sign_accuracy"):
        assert card["metrics"][name] == 1.0, name
    names = {p.name for p in (tmp_path / "out/figures").iterdir()}
    assert names == {"influences.png", "transitions.png", "loss.png"}


def test_asynchronous_trajectories_are_learned_from_one_gene_at_a_time(inside, tmp_path):
    card = trained(
        inside, tmp_path, "simulator.update=asynchronous", "simulator.n_run=100",
        "simulator.circuit=repressilator", "loop.n_epochs=80",
    )  # fmt: skip
    assert card["metrics"]["state_accuracy"] == 1.0
    assert "one random gene" in card["not_computed"]["test_accuracy"]


def test_a_learned_network_gives_a_table_of_successors():
    recording, _ = simulator(circuit="repressilator").simulate(1)
    data = TransitionData(recording, {}, validation_fraction=0.0)
    model = LearnedNetwork(
        data.spec, n_hidden=2, init_scale=1.0, generator=torch.Generator().manual_seed(1)
    )
    table = learned_successors(model, 3)
    state = sampled_states(3).float()
    bits = model.successor(state).long()
    assert (table == (bits * torch.tensor([1, 2, 4])).sum(1).numpy()).all()


def test_simulate_lists_attractors_and_draws_them(inside, tmp_path, capsys):
    status, message = inside("simulate", "+experiment=boolean_attractors", "hydra.run.dir=out")
    assert status == 0, message
    out = tmp_path / "out"
    content = json.loads((out / "attractors.json").read_text())
    assert content["synchronous"]["counts"] == {"fixed_point": 1, "cycle": 3}
    assert content["asynchronous"]["counts"] == {"fixed_point": 1, "complex": 1}
    assert BooleanNetwork.load(out / "network.bnet").n_gene == 5
    names = {p.name for p in (out / "figures").iterdir()}
    assert names == {
        "circuit.png", "transitions.png", "attractors_synchronous.png",
        "attractors_asynchronous.png", "trajectories.png",
    }  # fmt: skip
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64") == 5 and "1 fixed points, 3 cycles" in page


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("faure_cellcycle", ({"fixed_point": 1, "cycle": 1}, {"fixed_point": 1, "complex": 1})),
        (
            "calzone_cellfate",
            ({"fixed_point": 27, "cycle": None}, {"fixed_point": 27, "complex": 0}),
        ),
    ],
)
def test_simulate_takes_published_networks_small_and_large(inside, tmp_path, name, counts):
    try:
        find_data(f"pyboolnet/{name}.bnet")
    except MissingDataError as error:
        pytest.skip(str(error))
    pytest.importorskip("biodivine_aeon", reason="needs the extra 'boolean'")
    status, message = inside(
        "simulate", "+experiment=boolean_attractors", f"simulator.path=pyboolnet/{name}.bnet",
        "simulator.n_start=50", "hydra.run.dir=out",
    )  # fmt: skip
    assert status == 0, message
    content = json.loads((tmp_path / "out/attractors.json").read_text())
    for update, expected in zip(("synchronous", "asynchronous"), counts, strict=True):
        for kind, number in expected.items():
            assert number is None or content[update]["counts"][kind] == number
