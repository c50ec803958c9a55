"""The oracle: published counts, the document's examples, a second implementation, invariance."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn.circuit import (
    EXAMPLES,
    SignedCircuit,
    all_relabellings,
    enumerate_circuits,
    example_circuit,
    random_circuits,
)
from neuralgraph.systems.boolean_grn.oracle import (
    FEEDBACKS,
    PHENOTYPES,
    RULES,
    analyse_circuits,
    label_circuits,
    successors,
)

ORDER = ("oscillator", "toggle_switch", "adaptation", "pulse_generator", "amplifier", "stable")


def load_naive():
    path = Path(__file__).with_name("naive.py")
    spec = importlib.util.spec_from_file_location("naive_oracle", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


naive = load_naive()


def drawn(n_circuit, n_gene, in_degree, name="oracle"):
    return random_circuits(
        n_circuit,
        n_gene,
        in_degree=in_degree,
        share_inhibition=0.5,
        generator=numpy_generator(1, f"{name}/{n_gene}/{in_degree}"),
    )


def counts(labels):
    return tuple(int((labels == PHENOTYPES.index(name)).sum()) for name in ORDER)


@pytest.mark.parametrize(
    ("n_gene", "options", "expected"),
    [
        (2, {}, (43, 4, 8, 0, 0, 25)),
        (3, {}, (11_538, 1_181, 2_682, 858, 96, 3_327)),
        (3, {"feedback": "strict"}, (11_538, 1_181, 2_682, 858, 12, 3_411)),
        (3, {"feedback": "no_negative_loop"}, (11_538, 1_181, 2_682, 858, 384, 3_039)),
        (3, {"update": "asynchronous"}, (9_419, 1_181, 2_682, 1_008, 96, 5_296)),
        (
            3,
            {"rule": "tie_on", "feedback": "no_negative_loop"},
            (10_047, 878, 3_197, 0, 528, 5_032),
        ),
    ],
)
def test_the_counts_of_all_small_circuits(n_gene, options, expected):
    assert counts(label_circuits(enumerate_circuits(n_gene), **options)) == expected


@pytest.mark.parametrize(
    ("name", "phenotype"),
    [
        ("toggle_switch", "toggle_switch"),
        ("self_repressor", "oscillator"),
        ("single_activation", "stable"),
        ("repressilator", "oscillator"),
        ("five_ring", "oscillator"),
        ("incoherent_feed_forward", "pulse_generator"),
        ("cascade", "amplifier"),
        ("long_cascade", "amplifier"),
    ],
)
def test_the_examples_of_the_document_come_out_as_it_states(name, phenotype):
    assert PHENOTYPES[label_circuits([example_circuit(name)])[0]] == phenotype
    assert set(EXAMPLES) >= {name}


@pytest.mark.parametrize(
    ("n_gene", "in_degree", "n_circuit"),
    [(2, 1.2, 200), (3, 1.5, 1500), (4, 2.0, 900), (5, 2.0, 250), (5, 3.5, 150)],
)
def test_labels_and_facts_agree_with_the_naive_oracle(n_gene, in_degree, n_circuit):
    batch = drawn(n_circuit, n_gene, in_degree)
    labels, found = label_circuits(batch), analyse_circuits(batch)
    assert (labels == found.label).all()
    for k, matrix in enumerate(batch):
        expected = naive.facts(matrix.tolist())
        assert PHENOTYPES[labels[k]] == expected["label"], matrix.tolist()
        for name in (
            "n_input",
            "n_fixed_point",
            "n_cycle",
            "longest_period",
            "n_loop_cycle",
            "is_multistable",
            "has_negative_loop",
            "has_spurious_cycle",
            "is_monostable",
        ):
            assert getattr(found, name)[k] == expected[name], (name, matrix.tolist())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("update", ["synchronous", "asynchronous"])
def test_every_rule_and_update_agrees_with_the_naive_oracle(rule, update):
    for n_gene, in_degree, n_circuit in ((3, 2.0, 120), (4, 2.2, 40)):
        batch = drawn(n_circuit, n_gene, in_degree, name=f"{rule}/{update}")
        for feedback in FEEDBACKS:
            options = {"rule": rule, "update": update, "feedback": feedback}
            labels = label_circuits(batch, **options)
            found = analyse_circuits(batch, **options)
            assert (labels == found.label).all()
            for k, matrix in enumerate(batch):
                expected = naive.facts(matrix.tolist(), **options)
                assert PHENOTYPES[labels[k]] == expected["label"], (feedback, matrix.tolist())
                if expected["complexes"] is not None:
                    assert found.has_complex_attractor[k] == bool(expected["complexes"])


@pytest.mark.parametrize("n_gene", [8, 9, 12, 16])
@pytest.mark.parametrize("rule", RULES)
def test_successors_of_large_circuits_follow_the_rule(n_gene, rule):
    matrix = drawn(1, n_gene, min(n_gene, 5), name="large")[0]
    table = successors(matrix, rule=rule)
    up = [np.flatnonzero(matrix[:, g] == 1).tolist() for g in range(n_gene)]
    down = [np.flatnonzero(matrix[:, g] == -1).tolist() for g in range(n_gene)]
    for x in range(0, 2**n_gene, max(1, 2**n_gene // 300)):
        state = [(x >> g) & 1 for g in range(n_gene)]
        y = [naive.RULES[rule](up[g], down[g], state, g) for g in range(n_gene)]
        assert table[x] == sum(value << g for g, value in enumerate(y))


def test_sixteen_active_regulators_do_not_overflow():
    for sign in (-1, 1):
        table = successors(np.full((16, 16), sign, dtype=np.int8))
        assert table[0] == (0 if sign > 0 else 2**16 - 1)
        assert table[-1] == (2**16 - 1 if sign > 0 else 0)


def test_labels_of_all_three_gene_circuits_are_invariant_under_relabelling():
    batch = enumerate_circuits(3)
    labels = label_circuits(batch)
    for order in ((0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        again = batch[:, order][:, :, order]
        assert (label_circuits(again) == labels).all()


@settings(max_examples=40, deadline=None)
@given(
    n_gene=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    rule=st.sampled_from(RULES),
    update=st.sampled_from(["synchronous", "asynchronous"]),
)
def test_labels_and_facts_are_invariant_under_relabelling(n_gene, seed, rule, update):
    generator = np.random.default_rng(seed)
    matrix = generator.integers(-1, 2, (n_gene, n_gene)).astype(np.int8)
    order = generator.permutation(n_gene)
    pair = np.stack([matrix, matrix[np.ix_(order, order)]])
    found = analyse_circuits(pair, rule=rule, update=update)
    for name, values in vars(found).items():
        assert values[0] == values[1], name


def test_every_relabelling_of_a_circuit_has_one_label():
    for name in EXAMPLES:
        assert len(set(label_circuits(all_relabellings(example_circuit(name).adjacency)))) == 1


def test_what_stable_hides_is_flagged():
    batch = enumerate_circuits(3)
    found = analyse_circuits(batch, feedback="no_negative_loop")
    stable = found.label == PHENOTYPES.index("stable")
    assert int(stable.sum()) == 3_039
    assert int((found.is_monostable & stable).sum()) == 295
    assert int((found.is_multistable & stable).sum()) == 2_678
    assert int((found.has_spurious_cycle & stable).sum()) == 183
    oscillates = found.label == PHENOTYPES.index("oscillator")
    assert int((found.is_synchronous_only & oscillates).sum()) == 2_119
    assert int((found.has_complex_attractor & ~oscillates).sum()) == 12


def test_thomas_rule_holds_without_a_negative_loop_there_is_no_complex_attractor():
    for n_gene in (2, 3):
        found = analyse_circuits(enumerate_circuits(n_gene))
        assert not (found.has_complex_attractor & ~found.has_negative_loop).any()


def test_a_two_gene_pulse_generator_or_amplifier_does_not_exist():
    labels = {PHENOTYPES[label] for label in label_circuits(enumerate_circuits(2))}
    assert not labels & {"pulse_generator", "amplifier"}


def test_unknown_names_are_refused_with_the_names_there_are():
    circuit = [example_circuit("cascade")]
    with pytest.raises(ConfigError, match=r"no rule 'treshold'.*did you mean 'threshold'"):
        label_circuits(circuit, rule="treshold")
    with pytest.raises(ConfigError, match=r"no update 'random'.*synchronous"):
        label_circuits(circuit, update="random")
    with pytest.raises(ConfigError, match=r"no feedback 'none'"):
        label_circuits(circuit, feedback="none")


def test_too_many_genes_are_refused_and_the_symbolic_engine_is_named():
    with pytest.raises(ConfigError, match=r"17 genes .* ends at 16 genes.*symbolic"):
        label_circuits(np.zeros((1, 17, 17), dtype=np.int8))


def test_what_is_no_circuit_is_refused():
    with pytest.raises(DataError, match="inhibition as 2"):
        label_circuits(np.full((1, 2, 2), 2))
    with pytest.raises(DataError, match="empty"):
        label_circuits(np.zeros((1, 0, 0), dtype=np.int8))
    with pytest.raises(DataError, match="same number of genes"):
        label_circuits([example_circuit("cascade"), example_circuit("self_repressor")])
    with pytest.raises(DataError, match=r"\(n_circuit, n, n\)"):
        label_circuits(np.zeros((1, 2, 3), dtype=np.int8))
    assert label_circuits(np.zeros((0, 3, 3), dtype=np.int8)).shape == (0,)


def test_labels_do_not_depend_on_the_batch_a_circuit_is_in():
    batch = drawn(300, 5, 2.0, name="batch")
    together = analyse_circuits(batch)
    for k in range(0, 300, 37):
        alone = analyse_circuits(batch[k])
        for name, values in vars(alone).items():
            assert values[0] == getattr(together, name)[k], name


def test_a_circuit_is_its_own_text():
    circuit = SignedCircuit.from_text("A -> B, B -| C, D")
    assert SignedCircuit.from_text(circuit.to_text()) == circuit
