"""Attractors and .bnet files, against the naive oracle and against biodivine_aeon."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, DataError, MissingDataError
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn import attractors
from neuralgraph.systems.boolean_grn.attractors import as_states, find_attractors
from neuralgraph.systems.boolean_grn.circuit import (
    EXAMPLES,
    SignedCircuit,
    enumerate_circuits,
    example_circuit,
    random_circuits,
)
from neuralgraph.systems.boolean_grn.network import BooleanNetwork
from neuralgraph.systems.boolean_grn.oracle import RULES, analyse_circuits, successors

NETWORKS = (
    "arellano_rootstem", "calzone_cellfate", "dahlhaus_neuroplastoma", "davidich_yeast",
    "dinwoodie_life", "dinwoodie_stomatal", "faure_cellcycle", "grieco_mapk", "irons_yeast",
    "jaoude_thdiff", "klamt_tcr", "krumsiek_myeloid", "multivalued", "n12c5", "n3s1c1a", "n3s1c1b",
    "n5s3", "n6s1c2", "n7s3", "raf", "randomnet_n15k3", "randomnet_n7k3", "remy_tumorigenesis",
    "remy_tumorigenesis_myversion", "saadatpour_guardcell", "selvaggio_emt", "tournier_apoptosis",
    "xiao_wnt5a", "zhang_tlgl", "zhang_tlgl_v2",
)  # fmt: skip


LARGE = {
    "calzone_cellfate", "dahlhaus_neuroplastoma", "grieco_mapk", "jaoude_thdiff", "klamt_tcr",
    "remy_tumorigenesis", "remy_tumorigenesis_myversion", "selvaggio_emt", "zhang_tlgl",
    "zhang_tlgl_v2",
}  # fmt: skip
"""More than 20 genes: only the symbolic engine lists their attractors."""


def published(name):
    try:
        return find_data(f"pyboolnet/{name}.bnet")
    except MissingDataError as error:
        pytest.skip(str(error))


def load_naive():
    path = Path(__file__).with_name("naive.py")
    spec = importlib.util.spec_from_file_location("naive_oracle", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


naive = load_naive()


def drawn(n_circuit, n_gene, in_degree):
    return random_circuits(
        n_circuit,
        n_gene,
        in_degree=in_degree,
        share_inhibition=0.5,
        generator=numpy_generator(2, f"attractors/{n_gene}"),
    )


def aeon_graph(text):
    aeon = pytest.importorskip("biodivine_aeon", reason="needs the extra 'boolean'")
    model = aeon.BooleanNetwork.from_bnet(text)
    return aeon, aeon.AsynchronousGraph(model.infer_valid_graph()), model.variable_names()


def aeon_states(vertices, names):
    """Every state of a vertex set, as a set of strings in our order of genes."""
    return {"".join("01"[v.to_named_dict()[name]] for name in names) for v in vertices.items()}


def written(states):
    return {"".join("01"[int(v)] for v in row) for row in states}


@pytest.mark.parametrize(("n_gene", "n_circuit"), [(2, 30), (3, 60), (4, 40)])
def test_attractors_and_basins_agree_with_the_naive_oracle(n_gene, n_circuit):
    for matrix in drawn(n_circuit, n_gene, 1.8):
        circuit = SignedCircuit.from_adjacency(matrix)
        table = successors(circuit)
        states = [tuple(row) for row in as_states(np.arange(len(table)), n_gene).astype(int)]
        follow = {x: states[table[k]] for k, x in enumerate(states)}
        for update, expected in (
            ("synchronous", naive.attractors(follow)),
            ("asynchronous", naive.asynchronous_attractors(follow)),
        ):
            found = find_attractors(circuit, update=update).attractors
            assert {frozenset(map(tuple, a.states.astype(int))) for a in found} == expected
            assert [a.kind == "fixed_point" for a in found] == [a.n_state == 1 for a in found]
        found = find_attractors(circuit).attractors
        assert sum(a.basin for a in found) == pytest.approx(1)
        for a in found:
            ends = 0
            members = set(map(tuple, a.states.astype(int)))
            for x in states:
                for _ in range(len(states)):
                    x = follow[x]
                ends += x in members
            assert a.basin == ends / len(states)
            for here, there in zip(a.states, np.roll(a.states, -1, axis=0), strict=True):
                assert follow[tuple(here.astype(int))] == tuple(there.astype(int))


def test_asynchronous_basins_say_what_is_certain_and_what_is_possible():
    found = find_attractors(example_circuit("toggle_switch"), update="asynchronous").attractors
    assert [(a.pattern, a.basin, a.reach) for a in found] == [
        ("10", 0.25, 0.75),
        ("01", 0.25, 0.75),
    ]


def test_fixed_points_and_asynchronous_attractors_agree_with_aeon_on_random_circuits():
    for n_gene, n_circuit in ((3, 60), (5, 30), (8, 8), (10, 4)):
        for matrix in drawn(n_circuit, n_gene, 2.0):
            circuit = SignedCircuit.from_adjacency(matrix)
            aeon, graph, _ = aeon_graph(BooleanNetwork.from_circuit(circuit).to_bnet())
            names = circuit.names
            every = graph.mk_unit_colored_vertices()
            fixed = aeon_states(aeon.FixedPoints.symbolic(graph, every).vertices(), names)
            complexes = [
                a.vertices()
                for a in aeon.Attractors.attractors(graph, every)
                if a.vertices().cardinality() > 1
            ]
            found = find_attractors(circuit, update="asynchronous").attractors
            assert (
                written(
                    np.concatenate(
                        [a.states for a in found if a.n_state == 1] or [np.zeros((0, n_gene), bool)]
                    )
                )
                == fixed
            )
            assert sorted(a.n_state for a in found if a.n_state > 1) == sorted(
                int(v.cardinality()) for v in complexes
            )
            shown = [written(a.states) for a in found if 1 < a.n_state <= 64]
            for vertices in complexes:
                if vertices.cardinality() <= 64:
                    assert aeon_states(vertices, names) in shown
            facts = analyse_circuits(matrix)
            assert facts.n_fixed_point[0] == len(fixed)
            assert facts.has_complex_attractor[0] == bool(complexes)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks_load_as_biodivine_reads_them(name):
    path = published(name)
    network = BooleanNetwork.load(path)
    _, graph, names = aeon_graph(path.read_text())
    assert set(names) == set(network.names)
    _, again, _ = aeon_graph(network.to_bnet())
    # the same functions: equal symbolic successors of every single gene
    assert BooleanNetwork.from_bnet(network.to_bnet()).functions == network.functions
    state = numpy_generator(0, name).random((40, network.n_gene)) < 0.5
    following = network.step(state)
    for g, gene in enumerate(network.names):
        changing = graph.var_can_post(gene, graph.mk_unit_colored_vertices()).vertices()
        own = again.var_can_post(gene, again.mk_unit_colored_vertices()).vertices()
        assert changing.cardinality() == own.cardinality()
        for k in range(4):
            point = dict(zip(network.names, state[k].tolist(), strict=True))
            is_in = not graph.mk_subspace_vertices(point).intersect(changing).is_empty()
            assert is_in == (following[k, g] != state[k, g])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in LARGE])
def test_attractors_of_published_networks_agree_with_aeon(name):
    network = BooleanNetwork.load(published(name))
    exact = find_attractors(network, update="asynchronous")
    aeon, graph, _ = aeon_graph(network.to_bnet())
    found = aeon.Attractors.attractors(graph, graph.mk_unit_colored_vertices())
    assert sorted(int(a.vertices().cardinality()) for a in found) == sorted(
        a.n_state for a in exact.attractors
    )


@pytest.mark.parametrize("update", ["synchronous", "asynchronous"])
def test_the_symbolic_engine_finds_what_the_exact_one_does(update):
    pytest.importorskip("biodivine_aeon", reason="needs the extra 'boolean'")
    for text in ("A -| B, B -| C, C -| A, C -> D, D -> D", EXAMPLES["toggle_switch"]):
        circuit = SignedCircuit.from_text(text)
        exact = find_attractors(circuit, update=update)
        symbolic = find_attractors(circuit, update=update, engine="symbolic")
        assert symbolic.counts == exact.counts
        assert {(a.kind, a.pattern, a.n_state) for a in symbolic.attractors} == {
            (a.kind, a.pattern, a.n_state) for a in exact.attractors
        }
        assert any("no basins" in note for note in symbolic.notes)


def test_a_symbolic_search_that_takes_too_long_is_stopped_and_says_so():
    pytest.importorskip("biodivine_aeon", reason="needs the extra 'boolean'")
    matrix = random_circuits(
        1, 50, in_degree=3.0, share_inhibition=0.5, generator=numpy_generator(1, "hard")
    )[0]
    found = find_attractors(
        SignedCircuit.from_adjacency(matrix), update="asynchronous", seconds_limit=0.05
    )
    assert any("stopped after 0.05 s" in note for note in found.notes)
    assert "complex" not in found.counts and "fixed_point" in found.counts


def test_minimal_trap_spaces_bound_the_attractors_of_a_search_that_was_stopped(monkeypatch):
    pytest.importorskip("biodivine_aeon", reason="needs the extra 'boolean'")
    for name, expected in (("repressilator", 1), ("toggle_switch", 2), ("gated_repressilator", 2)):
        network = BooleanNetwork.from_circuit(example_circuit(name))
        assert attractors._n_minimal_trap_space(network) == expected, name
        exact = find_attractors(network, update="asynchronous")
        assert expected <= sum(exact.counts.values())

    def stopped(seconds_limit, task, network):
        return None if task is attractors._complex_sets else task(network)

    monkeypatch.setattr(attractors, "_within", stopped)
    found = find_attractors(
        example_circuit("gated_repressilator"), update="asynchronous", engine="symbolic"
    )
    assert found.counts == {"fixed_point": 1}
    assert any("at least 1 of these there are" in note for note in found.notes)


def test_a_list_of_attractors_is_plain_data():
    found = find_attractors(example_circuit("repressilator"))
    content = json.loads(json.dumps(found.to_dict()))
    assert content["counts"] == {"fixed_point": 0, "cycle": 2}
    assert content["attractors"][1]["states"][0] == "100"
    assert [a["period"] for a in content["attractors"]] == [2, 6]
    short = find_attractors(BooleanNetwork.from_bnet("A, A\nB, B"), n_listed=3)
    assert len(short.attractors) == 3 and short.counts["fixed_point"] == 4 and short.notes


def test_circuits_beyond_the_oracle_still_have_their_attractors_listed():
    ring = np.zeros((17, 17), dtype=np.int8)
    ring[np.arange(17), (np.arange(17) + 1) % 17] = 1
    found = find_attractors(SignedCircuit.from_adjacency(ring))
    assert found.engine == "exact" and found.counts["fixed_point"] == 2
    assert found.counts["cycle"] == (2**17 - 2) // 17  # 17 is prime: all others rotate


def test_unknown_engines_updates_and_sizes_are_refused():
    circuit = example_circuit("cascade")
    with pytest.raises(ConfigError, match="no engine 'exakt': did you mean 'exact'"):
        find_attractors(circuit, engine="exakt")
    with pytest.raises(ConfigError, match="no update 'random'"):
        find_attractors(circuit, update="random")
    large = BooleanNetwork.from_bnet("\n".join(f"g{k}, !g{k}" for k in range(21)))
    with pytest.raises(ConfigError, match=r"21 genes .* symbolic"):
        find_attractors(large, engine="exact")


# --- .bnet --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_circuit_survives_its_bnet_file(rule):
    for matrix in [*enumerate_circuits(2), *drawn(40, 5, 2.5)]:
        circuit = SignedCircuit.from_adjacency(matrix)
        network = BooleanNetwork.from_bnet(
            BooleanNetwork.from_circuit(circuit, rule=rule).to_bnet()
        )
        assert (network.successors() == successors(circuit, rule=rule)).all()
        if rule == "threshold":
            again = network.to_circuit()
            assert again.names == circuit.names
            only_self = (matrix != 0).sum(0) == 1
            holds = only_self & (np.diag(matrix) == 1)  # A -> A alone holds as an input does
            expected = matrix.copy()
            expected[holds, holds] = 0
            assert (again.adjacency == expected).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "A, B\nB, A\nA, !B",
            r"contradicts itself: A has a function in line 1 and another in line 3",
        ),
        ("A, B\nA, B", r"contradicts itself: A .* line 1 and the same in line 2"),
        ("A, B\na, A", r"'A' \(line 1\) and 'a' \(line 2\) collide"),
        ("A B", r"line 1: expected 'gene, function'"),
        ("A,", r"line 1: expected 'gene, function'"),
        ("A, B &", r"line 1 \(A\): a gene, 0, 1 or a bracket is missing"),
        ("A, (B", r"a bracket is not closed"),
        ("A, B) & C", r"'\)' is unexpected"),
        ("A, B C", r"'C' is unexpected"),
        ("A!, B", r"'A!' cannot be a gene name"),
        ("# nothing\n\ntargets, factors\n", r"holds no gene"),
    ],
)
def test_broken_bnet_files_are_refused_with_their_line(text, message):
    with pytest.raises(DataError, match=message):
        BooleanNetwork.from_bnet(text, source="x.bnet")


def test_files_that_are_not_there_or_no_text_are_refused(tmp_path):
    with pytest.raises(MissingDataError, match="there is no file"):
        BooleanNetwork.load(tmp_path / "none.bnet")
    (tmp_path / "x.bnet").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no text file"):
        BooleanNetwork.load(tmp_path / "x.bnet")


def test_a_regulator_without_a_function_becomes_an_input_with_a_warning():
    network = BooleanNetwork.from_bnet("A, B & !C\nB, A")
    assert network.names == ("A", "B", "C") and "C" in network.warnings[0]
    assert (network.successors() & 4 == np.arange(8) & 4).all()


def test_a_function_that_contradicts_itself_is_a_constant_with_a_warning():
    network = BooleanNetwork.from_bnet("A, B & !B\nB, A | !A\nC, 1\nD, A")
    assert network.warnings == (
        "the function of A is always 0, whatever its regulators do",
        "the function of B is always 1, whatever its regulators do",
    )


def test_influences_carry_their_signs_and_dual_ones_are_no_circuit():
    network = BooleanNetwork.from_bnet("A, (B & !C) | (!B & C)\nB, A | (A & C)\nC, 1")
    assert network.signs().tolist() == [[0, 1, 0], [2, 0, 0], [2, 0, 0]]
    with pytest.raises(DataError, match="both activates and inhibits A"):
        network.to_circuit()
    with pytest.raises(DataError, match="not what the rule 'threshold' makes"):
        BooleanNetwork.from_bnet("A, B & C\nB, A\nC, A").to_circuit()


def test_the_step_of_many_states_is_the_table_of_successors():
    network = BooleanNetwork.from_bnet("A, !B | C\nB, A & 1\nC, !(A & B) | 0")
    states = as_states(np.arange(8), 3)
    assert (network.step(states) == as_states(network.successors(), 3)).all()
