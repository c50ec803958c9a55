"""Circuit design: confirmed, new, mutually different, cheaper than random search; the verb."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.recording import Recording
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn.circuit import (
    SignedCircuit,
    are_connected,
    canonical_keys,
    enumerate_circuits,
    example_circuit,
)
from neuralgraph.systems.boolean_grn.design.demonstrate import demonstrate
from neuralgraph.systems.boolean_grn.design.generators import Evolution, RandomSearch
from neuralgraph.systems.boolean_grn.design.search import load_population, search, training_keys
from neuralgraph.systems.boolean_grn.design.task import DesignTask, mutants
from neuralgraph.systems.boolean_grn.network import BooleanNetwork
from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES, label_circuits


def task_of(phenotype, n_gene, **changes):
    knobs = {
        "rule": "threshold",
        "update": "synchronous",
        "feedback": "self_activation",
        "is_connected": True,
    }
    return DesignTask(phenotype=phenotype, n_gene=n_gene, **{**knobs, **changes})


def evolution(task, seed=0, **changes):
    knobs = {
        "in_degree": 2.0,
        "share_inhibition": 0.5,
        "n_parent": 20,
        "mutation_rate": 2.0,
        "share_crossover": 0.2,
        "share_fresh": 0.05,
    }
    return Evolution(task, numpy_generator(seed, "design"), **{**knobs, **changes})


def at_random(task, seed=0):
    random = numpy_generator(seed, "design")
    return RandomSearch(task, random, in_degree=2.0, share_inhibition=0.5)


def designed(task, generator, **changes):
    knobs = {"n": 20, "n_batch": 25, "n_evaluation_max": 20_000, "objective": "first"}
    return search(task, generator, **{**knobs, **changes})


@pytest.mark.parametrize("n_gene", [3, 4, 5, 6])
@pytest.mark.parametrize("phenotype", PHENOTYPES)
def test_every_returned_circuit_has_the_phenotype_and_no_two_are_isomorphic(phenotype, n_gene):
    task = task_of(phenotype, n_gene)
    found = designed(task, evolution(task))
    assert len(found.circuits) == (16 if (phenotype, n_gene) == ("amplifier", 3) else 20)
    assert (label_circuits(found.circuits) == task.label).all()
    assert len(set(canonical_keys(found.circuits))) == len(found.circuits)
    assert are_connected(found.circuits).all()
    assert set(np.unique(found.circuits)) <= {-1, 0, 1}
    assert ((found.robustness >= 0) & (found.robustness <= 1)).all()


def test_fewer_evaluations_per_success_than_random_search_for_the_rare_classes():
    for n_gene in (5, 6):
        for phenotype in ("toggle_switch", "pulse_generator", "amplifier", "adaptation"):
            task = task_of(phenotype, n_gene)
            ours = [designed(task, evolution(task, s)).evaluations_per_success for s in range(3)]
            plain = [designed(task, at_random(task, s)).evaluations_per_success for s in range(3)]
            assert max(ours) < min(plain), (n_gene, phenotype)


def test_where_fewer_classes_exist_all_are_returned_with_a_note():
    task = task_of("toggle_switch", 2)
    found = designed(task, evolution(task))
    every = enumerate_circuits(2)
    toggles = every[label_circuits(every) == PHENOTYPES.index("toggle_switch")]
    assert set(canonical_keys(found.circuits)) == set(canonical_keys(toggles))
    assert len(found.circuits) == found.n_class == 3
    assert "exactly 3" in found.notes[0] and "fewer than the 20 asked for" in found.notes[0]
    alone = designed(task_of("oscillator", 1), evolution(task_of("oscillator", 1)))
    assert alone.circuits.tolist() == [[[-1]]]


def test_unconnected_circuits_are_returned_where_they_are_asked_for():
    every = enumerate_circuits(2)
    expected = set(canonical_keys(every[label_circuits(every) == PHENOTYPES.index("oscillator")]))
    for is_connected in (True, False):
        task = task_of("oscillator", 2, is_connected=is_connected)
        keys = set(canonical_keys(designed(task, evolution(task), n=100).circuits))
        assert keys <= expected and (keys == expected) == (not is_connected)


@pytest.mark.parametrize("phenotype", ["pulse_generator", "amplifier"])
def test_a_phenotype_no_circuit_of_the_size_has_is_refused_with_the_counts(phenotype):
    task = task_of(phenotype, 2)
    counts = r"no connected circuit of 2 genes has.*80 circuits.*43 oscillator.*n_genes=3"
    with pytest.raises(ConfigError, match=counts):
        designed(task, evolution(task))


@pytest.mark.parametrize(
    ("phenotype", "n_gene"), [("toggle_switch", 2), ("adaptation", 2), ("amplifier", 3)]
)
def test_the_refusal_names_the_smallest_size_that_has_the_phenotype(phenotype, n_gene):
    with pytest.raises(ConfigError, match=rf"of 1 gene has the.*\(n_genes={n_gene}\)"):
        task_of(phenotype, 1).classes()
    assert task_of(phenotype, n_gene).classes() is not None


def test_bad_wishes_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'oscillator'"):
        task_of("oscilator", 3)
    with pytest.raises(ConfigError, match="no rule 'x'"):
        task_of("stable", 3, rule="x")
    with pytest.raises(ConfigError, match="17 genes"):
        task_of("stable", 17)
    with pytest.raises(ConfigError, match="at least 1"):
        task_of("stable", 0)
    task = task_of("stable", 4)
    for name in ("n", "n_batch", "n_evaluation_max"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1"):
            designed(task, evolution(task), **{name: 0})
    with pytest.raises(ConfigError, match="objective must be one of"):
        designed(task, evolution(task), objective="best")
    with pytest.raises(ConfigError, match="share_fresh must lie"):
        evolution(task, share_fresh=2.0)


def test_a_search_that_ends_early_says_how_far_it_came():
    task = task_of("amplifier", 5)
    found = designed(task, evolution(task), n=50, n_evaluation_max=150)
    assert 0 < len(found.circuits) < 50 and found.n_evaluation == 150
    assert "n_evaluation_max = 150 was reached" in found.notes[0]
    with pytest.raises(ConfigError, match="was found in 1 evaluations"):
        designed(task, at_random(task), n_evaluation_max=1, n_batch=1)


def test_the_same_seed_gives_the_same_circuits():
    task = task_of("toggle_switch", 4)
    first, again, other = (designed(task, evolution(task, s)).circuits for s in (1, 1, 2))
    assert (first == again).all() and not np.array_equal(first, other)


def test_circuits_of_the_training_data_do_not_count_as_new():
    task = task_of("oscillator", 4)
    before = designed(task, evolution(task))
    known = frozenset(canonical_keys(before.circuits))
    found = designed(task, evolution(task), known=known)
    assert not known & set(canonical_keys(found.circuits)) and len(found.circuits) == 20
    assert found.n_known_hit >= 1 and found.novelty < 1
    assert any("in the training data and left out" in note for note in found.notes)


def test_training_keys_come_from_what_was_learned_from(tmp_path):
    circuits = np.zeros((4, 5, 5), dtype=np.int8)
    circuits[0, 0, 1], circuits[1, 0, 1], circuits[2, 1, 0] = 1, -1, 1
    circuits[3, 3, 0], circuits[3, 0, 0] = -1, -1
    recording = Recording(
        time=torch.zeros(4, 1),
        state=torch.zeros(4, 1, 1),
        names=("x",),
        graph={
            "adjacency": torch.from_numpy(circuits),
            "n_gene": torch.tensor([4, 4, 5, 5]),
            "use": torch.tensor([0, 1, 0, 0]),
        },
    )
    recording.save(tmp_path / "data" / "recording.pt")
    known = training_keys(load_population(str(tmp_path)), "x")
    # unconnected genes do not count: circuits 0 and 2 are the same; 1 is a test
    expected = [circuits[0, :2, :2], np.array([[-1, 0], [-1, 0]], dtype=np.int8)]
    assert known == {canonical_keys(c[None])[0] for c in expected}
    with pytest.raises(DataError, match=r"no recording\.pt"):
        load_population(str(tmp_path / "none"))
    with pytest.raises(DataError, match="holds no circuits"):
        training_keys(replace(recording, graph={}), "x")


def test_the_robust_objective_returns_more_robust_circuits():
    task = task_of("toggle_switch", 4)
    first = designed(task, evolution(task), n=10)
    robust = designed(task, evolution(task), n=10, n_evaluation_max=1500, objective="robust")
    assert robust.robustness.min() > np.median(first.robustness)
    assert (np.diff(robust.robustness) <= 0).all() and robust.n_evaluation == 1500


def test_robustness_is_the_share_of_mutants_that_keep_the_phenotype():
    circuit = example_circuit("repressilator").adjacency
    task = task_of("oscillator", 3)
    changed = mutants(circuit)
    assert len({m.tobytes() for m in changed}) == 18
    assert ((changed != circuit).sum((1, 2)) == 1).all()
    expected = np.mean([label_circuits(m)[0] == task.label for m in changed])
    assert task.robustness(circuit[None])[0] == expected


def test_connection_ignores_directions():
    texts = ("A -> B, C -| B", "A -> B, C", "A -> A, B -> B")
    connected = [bool(are_connected(SignedCircuit.from_text(t).adjacency[None])[0]) for t in texts]
    assert connected == [True, False, False]


@pytest.mark.parametrize("phenotype", PHENOTYPES)
def test_a_demonstration_shows_the_phenotype(phenotype):
    task = task_of(phenotype, 4)
    for matrix in designed(task, evolution(task)).circuits:
        circuit = SignedCircuit.from_adjacency(matrix)
        shown = demonstrate(circuit, phenotype)
        network = BooleanNetwork.from_circuit(circuit)
        states, cuts = shown.states, shown.cuts
        changed = (states[1:] != states[:-1]).any(1)
        if phenotype == "oscillator":
            assert changed.all() and not cuts
        if phenotype == "toggle_switch":
            assert (network.step(states) == states).all() and cuts == (5,)
            assert (states[0] != states[-1]).any()
        if phenotype in ("pulse_generator", "amplifier"):
            gene = circuit.names.index(shown.caption.split()[0])
            assert states[3:, gene].all() and not states[0, gene]
            assert (network.step(states[:1]) == states[:1]).all() and not changed[-1]
        if phenotype in ("adaptation", "stable"):
            assert len(states) >= 2


def test_the_verb_writes_circuits_drawings_and_files(inside, tmp_path):
    status, message = inside(
        "design", "phenotype=pulse_generator", "n_genes=4", "n=4", "n_card=1", "training=null",
        "hydra.run.dir=out",
    )  # fmt: skip
    assert status == 0, message
    out = tmp_path / "out"
    content = json.loads((out / "circuits.json").read_text())
    assert content["summary"]["confirmed_by_the_oracle"] == 1.0
    assert len(content["circuits"]) == content["summary"]["circuits"] == 4
    for entry in content["circuits"]:
        circuit = SignedCircuit.from_adjacency(np.array(entry["adjacency"]))
        assert PHENOTYPES[label_circuits([circuit])[0]] == "pulse_generator"
        again = SignedCircuit.from_text(entry["circuit"])
        assert again.is_isomorphic(circuit)
        network = BooleanNetwork.load(out / entry["bnet"])
        assert (network.successors() == BooleanNetwork.from_circuit(circuit).successors()).all()
    assert {p.name for p in (out / "figures").iterdir()} == {"circuits.png", "circuit_001.png"}
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2 and "circuits.json" in page


def test_circuits_are_marked_as_new_where_training_data_are_named(inside, tmp_path):
    every = enumerate_circuits(2)
    toggles = every[label_circuits(every) == PHENOTYPES.index("toggle_switch")][:1]
    Recording(
        time=torch.zeros(1, 1),
        state=torch.zeros(1, 1, 1),
        names=("x",),
        graph={"adjacency": torch.from_numpy(toggles), "n_gene": torch.tensor([2])},
    ).save(tmp_path / "known" / "recording.pt")
    status, message = inside(
        "design", "phenotype=toggle_switch", "n_genes=2", "n_card=0", "training=known",
        "hydra.run.dir=out",
    )  # fmt: skip
    assert status == 0, message
    content = json.loads((tmp_path / "out/circuits.json").read_text())
    assert sorted(entry["is_new"] for entry in content["circuits"]) == [False, True, True]


def test_what_the_default_classifier_learnt_from_does_not_count_as_new(inside, tmp_path):
    """Drawn again from the seed, the same circuits as a training run's; no folder is named."""
    small = (
        "population.n_natural=2000", "population.n_per_phenotype=700", "population.n_test=5",
        "population.n_test_per_phenotype=0", "population.sizes_test=[4]",
        "population.sizes_learn=[4]",
    )  # fmt: skip
    status, message = inside(
        "design", "phenotype=amplifier", "n_genes=4", "n_card=0", "hydra.run.dir=out", *small
    )
    assert status == 0, message
    content = json.loads((tmp_path / "out/circuits.json").read_text())
    overrides = [s.replace("population", "simulator") for s in small]
    status, message = inside(
        "simulate", "+experiment=grn_phenotype", "seed=42", "hydra.run.dir=data", *overrides
    )
    assert status == 0, message
    known = training_keys(load_population("data"), "data")
    found = np.array([entry["adjacency"] for entry in content["circuits"]], dtype=np.int8)
    assert len(found) == 20 and not set(canonical_keys(found)) & known
    assert all(entry["is_new"] for entry in content["circuits"])
    assert content["summary"]["novelty_of_what_was_met"] < 1  # it does take looking
    assert content["summary"]["training_circuits_of_this_size"] > 2000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "say what to design"),
        (("phenotype=osci",), "there is no phenotype 'osci'"),
        (("phenotype=amplifier", "n_genes=2"), "no connected circuit of 2 genes"),
        (("phenotype=stable", "n_genes=two"), "n_genes must be a whole number"),
        (("phenotype=stable", "n_gene=4"), "n_gene"),
        (("phenotype=stable", "generator=learned_by_heart"), "learned_by_heart"),
        (("phenotype=stable", "generator.in_degre=2"), "in_degre"),
        (("phenotype=stable", "generator.in_degree=-2"), "in_degree must be a positive number"),
        (("phenotype=stable", "training=nowhere"), "holds no recording.pt"),
        (("phenotype=stable", "training=1.5"), "training must be the run folder"),
        (("phenotype=stable", "generator=learned", "generator.clip=0"), "clip must be a positive"),
    ],
)
def test_the_verb_refuses_what_cannot_be(inside, overrides, message):
    status, said = inside("design", *overrides, "hydra.run.dir=out")
    assert status == 1 and message in " ".join(said.split())
