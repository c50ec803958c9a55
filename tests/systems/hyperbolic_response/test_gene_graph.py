"""Gene graphs: each edge once, normalised, and silent about nothing."""

from __future__ import annotations

import gzip
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralgraph.core.errors import DataError
from neuralgraph.systems.hyperbolic_response.gene_graph import (
    GeneGraph,
    correlation_graph,
    given_graph,
    identity_graph,
    read_string,
    read_trrust,
)

NAMES = ("A", "B", "C", "D")
INFO = "#string_protein_id\tpreferred_name\n" + "".join(
    f"9606.ENSP{i}\t{name}\n" for i, name in enumerate("ABCDXYZ")
)


@pytest.fixture
def string_files(tmp_path):
    def write(rows, info=INFO, header="protein1 protein2 combined_score"):
        links, names = tmp_path / "links.txt", tmp_path / "info.txt"
        place = {name: i for i, name in enumerate("ABCDXYZ")}
        lines = [f"9606.ENSP{place[a]} 9606.ENSP{place[b]} {score}" for a, b, score in rows]
        links.write_text("\n".join([header, *lines]) + "\n")
        names.write_text(info)
        return links, names

    return write


def edges(graph: GeneGraph) -> dict[tuple[str, str], float]:
    return {
        (graph.names[a], graph.names[b]): round(float(w), 6)
        for (a, b), w in zip(graph.edge_index.T.tolist(), graph.weight, strict=True)
    }


def test_millions_of_rows_are_read_in_seconds(tmp_path):
    names = [f"G{i}" for i in range(1450)]
    links = tmp_path / "links.txt"
    with links.open("w") as file:
        file.write("protein1 protein2 combined_score\n")
        for i, a in enumerate(names):
            rows = [f"{a} {b} {650 + (i + j) % 300}" for j, b in enumerate(names) if i != j]
            file.write("\n".join(rows) + "\n")  # 2.1 million, each pair in both directions
    began = time.process_time()
    graph = read_string(links, None, names[:100], 700, 0)
    assert time.process_time() - began < 10
    assert graph.n_edge == sum(i + j > 50 for i in range(100) for j in range(i))


def test_a_pair_listed_in_both_directions_keeps_its_weight(string_files):
    links, names = string_files([("A", "B", 900), ("B", "A", 900), ("B", "C", 750)])
    graph = read_string(links, names, NAMES, 700, 0)
    assert edges(graph) == {("A", "B"): 0.9, ("B", "C"): 0.75}
    index, weight = graph.symmetric()
    assert index.shape == (2, 4) and weight.max() == pytest.approx(0.9)


def test_different_scores_of_one_pair_give_the_larger(string_files):
    links, names = string_files([("A", "B", 800), ("B", "A", 900), ("A", "A", 999)])
    assert edges(read_string(links, names, NAMES, 700, 0)) == {("A", "B"): 0.9}


def test_the_threshold_is_exclusive(string_files):
    links, names = string_files([("A", "B", 700), ("B", "C", 701)])
    assert edges(read_string(links, names, NAMES, 700, 0)) == {("B", "C"): 0.701}


def test_links_may_hold_symbols_and_be_compressed(tmp_path):
    links = tmp_path / "links.txt.gz"
    with gzip.open(links, "wt") as file:
        file.write("protein1 protein2 combined_score\nA B 900\nB A 900\nB X 800\nX C 950\n")
    assert edges(read_string(links, None, NAMES, 700, 0)) == {("A", "B"): 0.9}
    bridged = read_string(links, None, NAMES, 700, 5)
    assert bridged.names == (*NAMES, "X")
    assert edges(bridged) == {("A", "B"): 0.9, ("B", "X"): 0.8, ("C", "X"): 0.95}


def test_bridges_link_two_nodes_and_the_best_connected_come_first(string_files):
    rows = [("A", "X", 900), ("B", "X", 900), ("C", "X", 900)]
    rows += [("A", "Y", 900), ("B", "Y", 900), ("A", "Z", 900), ("X", "Y", 900), ("A", "B", 900)]
    links, names = string_files(rows)
    assert read_string(links, names, NAMES, 700, 1).names == (*NAMES, "X")
    both = read_string(links, names, NAMES, 700, 9)
    assert both.names == (*NAMES, "X", "Y"), "Z touches one node only"
    assert ("X", "Y") not in edges(both), "edges among outsiders tell nothing of the screen"


def test_a_string_file_of_another_shape_is_refused(string_files):
    links, names = string_files([("A", "B", 900)], header="a b score")
    with pytest.raises(DataError, match="expected columns protein1 protein2 combined_score"):
        read_string(links, names, NAMES, 700, 0)
    links, names = string_files([("A", "B", "high")])
    with pytest.raises(DataError, match="no STRING links file"):
        read_string(links, names, NAMES, 700, 0)
    links, names = string_files([("A", "B", 900)], info="id\tname\n1\tA\n")
    with pytest.raises(DataError, match=r"identifier column .*it has id, name"):
        read_string(links, names, NAMES, 700, 0)


def test_no_edge_among_the_genes_is_an_error(string_files):
    links, names = string_files([("A", "B", 500)])
    with pytest.raises(DataError, match="no edge among the 4 genes"):
        read_string(links, names, NAMES, 700, 0)


def test_trrust_keeps_direction_and_sign_and_contradictions_have_none(tmp_path):
    path = tmp_path / "trrust.tsv"
    path.write_text(
        "A\tB\tActivation\t1\nB\tC\tRepression\t2\nC\tD\tActivation\t3\nC\tD\tRepression\t4\n"
        "A\tA\tActivation\t5\nD\tA\tUnknown\t6\nA\tQ\tActivation\t7\n"
    )
    graph = read_trrust(path, NAMES, 0)
    assert list(edges(graph)) == [("A", "B"), ("B", "C"), ("C", "D"), ("D", "A")]
    assert graph.sign.tolist() == [1.0, -1.0, 0.0, 0.0] and graph.is_directed
    path.write_text("A\tB\tUp\t1\n")
    with pytest.raises(DataError, match="no TRRUST file"):
        read_trrust(path, NAMES, 0)
    path.write_text("P\tQ\tActivation\t1\n")
    with pytest.raises(DataError, match="no edge among"):
        read_trrust(path, NAMES, 0)


def test_correlation_links_genes_that_move_together():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=generator)
    x[:, 2] = -x[:, 0] + 0.1 * x[:, 2]
    graph = correlation_graph(("T", "a", "b", "c"), ("a", "b", "c"), x, 0.5)
    assert list(edges(graph)) == [("a", "c")] and graph.sign.tolist() == [-1.0]
    constant = correlation_graph(("a", "b"), ("a", "b"), torch.ones(20, 2), 0.5)
    assert constant.n_edge == 0
    with pytest.raises(DataError, match="10 control cells"):
        correlation_graph(("a",), ("a",), x[:5, :1], 0.5)


def test_blocks_of_genes_give_the_same_correlations():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 1100, generator=generator)
    x[:, 1090] = x[:, 3] + 0.1 * x[:, 1090]
    names = tuple(f"g{i}" for i in range(1100))
    graph = correlation_graph(names, names, x, 0.6)
    r = torch.corrcoef(x.T.double()).triu(1)
    expected = (r.abs() >= 0.6).nonzero()
    assert torch.equal(graph.edge_index.T, expected) and [3, 1090] in expected.tolist()
    torch.testing.assert_close(
        graph.weight.double(), r[expected[:, 0], expected[:, 1]].abs(), atol=1e-5, rtol=0
    )


def test_identity_has_no_edge_and_a_simulator_must_reveal():
    assert torch.equal(identity_graph(NAMES).adjacency(), torch.eye(4))
    with pytest.raises(DataError, match=r"prior\.graph=true"):
        given_graph(NAMES, {})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"edge_index": torch.eye(4)}, r"must be \(2, n_edge\), got \(4, 4\)"),
        ({"edge_index": torch.tensor([0, 1])}, r"must be \(2, n_edge\), got \(2,\)"),
        ({"edge_weight": torch.ones(3)}, r"2 edges, but edge_weight \(3,\)"),
        ({"edge_sign": torch.ones(2, 2)}, r"edge_sign \(2, 2\)"),
        ({"edge_index": torch.tensor([[0, 1], [1, 4]])}, r"nodes 0 to 4, but 4 genes"),
    ],
)
def test_a_revealed_graph_that_does_not_fit_the_genes_is_refused(changed, message):
    told = {
        "edge_index": torch.tensor([[0, 1], [1, 2]]),
        "edge_weight": torch.ones(2),
        "edge_sign": torch.ones(2),
    }
    assert given_graph(NAMES, told).n_edge == 2
    with pytest.raises(DataError, match=message):
        given_graph(NAMES, {**told, **changed})


def test_an_unknown_gene_names_the_nearest():
    graph = identity_graph(("KLF1", "MAP2K6"))
    assert graph.index("MAP2K6") == 1
    with pytest.raises(DataError, match=r"does not know 'KLF11'.*did you mean 'KLF1'"):
        graph.index("KLF11")
    assert graph.isolated(["KLF1"]) == ["KLF1"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 6), st.floats(0.1, 1.0)),
        min_size=1,
        max_size=30,
    )
)
def test_the_normalised_adjacency_is_symmetric_with_spectrum_in_the_unit_interval(listed):
    ends = torch.tensor([(a, b) for a, b, _ in listed]).T
    weight = torch.tensor([w for *_, w in listed], dtype=torch.float64)
    graph = GeneGraph(tuple("ABCDEFG"), ends, weight, None, True, "drawn")
    dense = graph.adjacency()
    torch.testing.assert_close(dense, dense.T)
    values = torch.linalg.eigvalsh(dense)
    assert values.min() >= -1 - 1e-9 and values.max() <= 1 + 1e-9
    assert (dense.diagonal() > 0).all(), "self loops"
    largest = {}
    for a, b, w in listed:
        if a != b:
            key = (min(a, b), max(a, b))
            largest[key] = max(largest.get(key, 0.0), w)
    index, weight = graph.symmetric()
    assert index.shape[1] == 2 * len(largest), "each pair once in each direction"
    found = {(a, b): w for (a, b), w in zip(index.T.tolist(), weight.tolist(), strict=True)}
    assert all(found[a, b] == w == found[b, a] for (a, b), w in largest.items())
