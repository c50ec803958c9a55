"""A user's own tables: what is read, what is told to the learner, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError, MissingDataError
from neuralgraph.systems.metabolism.conditions import Derivative
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.recorded import MetabolismRecorded

FREE = {"support": False, "roles": False, "stoichiometry": False, "rate_constants": False}
EDGES = "metabolite,reaction,coefficient\nA,first,-1\nB,first,2\nB,second,-1\nC,second,1\n"


def table(n_time: int = 12, runs: tuple[str, ...] = ("x", "y")) -> str:
    rows = ["time,run,A,B,C"]
    for run in runs:
        rows += [f"{0.5 * t},{run},{1 + t},{2 + t * t},{3}" for t in range(n_time)]
    return "\n".join(rows) + "\n"


def make(folder: Path, data: str | None = None, graph: str | None = EDGES, **changes: Any):
    (folder / "data.csv").write_text(table() if data is None else data, encoding="utf-8")
    if graph is not None:
        (folder / "graph.csv").write_text(graph, encoding="utf-8")
    settings: dict[str, Any] = {
        "table": str(folder / "data.csv"),
        "time_column": "time",
        "run_column": "run",
        "ignore_columns": [],
        "graph": str(folder / "graph.csv") if graph is not None else None,
        "graph_format": "edges",
        "n_rxn": None,
        "exchange": "bidirectional",
        "time_unit": "min",
        "concentration_unit": "mM",
        "derivative": Derivative("local_polynomial", 5, 2),
    }
    return MetabolismRecorded(**{**settings, **changes})


def test_a_table_becomes_a_recording_with_estimated_derivatives(tmp_path):
    recording, truth = make(tmp_path).simulate(1)
    assert truth is None
    assert recording.state.shape == (2, 12, 3)
    assert recording.names == ("A", "B", "C")
    assert recording.dx_dt_source == "estimated"
    t = recording.time[0]
    expected = torch.stack([torch.full_like(t, 2.0), 8 * t, torch.zeros_like(t)], dim=-1)
    torch.testing.assert_close(recording.dx_dt[0], expected)
    assert recording.provenance["run_names"] == ["x", "y"]


def test_the_seed_changes_nothing(tmp_path):
    a, b = (make(tmp_path).simulate(seed)[0] for seed in (1, 2))
    assert torch.equal(a.dx_dt, b.dx_dt)


def test_a_parquet_table_reads_the_same(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
    simulator = make(tmp_path)
    pandas.read_csv(tmp_path / "data.csv").to_parquet(tmp_path / "data.parquet")
    other = make(tmp_path, table=str(tmp_path / "data.parquet"))
    assert torch.equal(simulator.simulate(1)[0].state, other.simulate(1)[0].state)


def test_what_the_user_supplies_is_prior_only_where_asked(tmp_path):
    simulator = make(tmp_path)
    recording, truth = simulator.simulate(1)
    assert set(simulator.reveal(recording, truth, **FREE)) == {"n_rxn"}
    given = simulator.reveal(recording, truth, **{**FREE, "stoichiometry": True})
    assert given["sto_all"].tolist() == [-1.0, 2.0, -1.0, 1.0]
    assert given["met_sub"].tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"prior\.rate_constants=true needs 'log_k'"):
        simulator.reveal(recording, truth, **{**FREE, "rate_constants": True})


def test_edges_without_coefficients_give_support_and_roles_only(tmp_path):
    graph = "metabolite,reaction,role\nA,f,substrate\nB,f,catalyst\nC,f,product\n"
    simulator = make(tmp_path, graph=graph)
    recording, truth = simulator.simulate(1)
    given = simulator.reveal(recording, truth, **{**FREE, "support": True, "roles": True})
    assert given["met_sub"].tolist() == [0, 1]
    assert given["met_all"].tolist() == [0, 2]
    assert given["sign_all"].tolist() == [-1.0, 1.0]
    with pytest.raises(ConfigError, match=r"prior\.stoichiometry=true"):
        simulator.reveal(recording, truth, **{**FREE, "stoichiometry": True})


def test_a_matrix_is_the_same_graph(tmp_path):
    matrix = "name,first,second\nC,0,1\nA,-1,0\nB,2,-1\n"
    edges, _ = make(tmp_path).simulate(1)
    again, _ = make(tmp_path, graph=matrix, graph_format="matrix").simulate(1)
    for name, value in edges.graph.items():
        assert torch.equal(value, again.graph[name])


def test_a_recording_without_a_graph_only_knows_how_many_reactions(tmp_path):
    simulator = make(tmp_path, graph=None, n_rxn=4)
    recording, truth = simulator.simulate(1)
    given = simulator.reveal(recording, truth, **FREE)
    data = MetabolismData(recording, given, validation_fraction=0.0)
    assert data.spec.n_rxn == 4 and len(data.spec.met_all) == 12
    with pytest.raises(ConfigError, match=r"prior\.support"):
        simulator.reveal(recording, truth, **{**FREE, "support": True})


def test_empty_and_duplicated_reactions_are_named(tmp_path):
    matrix = "name,f,twin,idle\nA,-1,-1,0\nB,1,1,0\nC,0,0,0\n"
    recording, _ = make(tmp_path, graph=matrix, graph_format="matrix").simulate(1)
    warnings = " ".join(recording.provenance["warnings"])
    assert "f = twin" in warnings and "idle" in warnings


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (table().replace("0.5,x,2,3", "0.5,x,-2,3"), "negative concentration, -2 in row 3"),
        (table().replace("0.5,x,2,3", "0.5,x,,3"), "missing or infinite value in row 3.*'A'"),
        (table().replace("0.5,x,2,3", "0.0,x,2,3"), "time does not increase in run x.*row 2"),
        (table().replace("0.5,x,2,3", "0.5,x,two,3"), "'A'.*not numeric.*'two'"),
        (table(n_time=3), "3 frames in each run, too few"),
        (table() + "9,y,1,1,1\n", "between 12 and 13 frames"),
        (table().replace("time,", "tme,"), "no column 'time'.*'tme'"),
        ("time,run\n0,x\n1,x\n", "no metabolite column"),
        ("time,run,A\n", "holds no rows"),
        ("", "cannot be read as a table"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        make(tmp_path, data).simulate(1)


@pytest.mark.parametrize(
    ("graph", "changes", "message"),
    [
        (EDGES.replace("A,", "AA,"), {}, "'AA': did you mean 'A'"),
        (EDGES.replace("metabolite", "metabolit"), {}, "column 'metabolite'.*'metabolit'"),
        (EDGES.replace("coefficient", "coefficent"), {}, "unknown column 'coefficent'"),
        (EDGES + "A,first,-1\n", {}, "occurs twice"),
        (EDGES.replace(",2", ",0"), {}, "coefficient 0 in row 3"),
        ("metabolite,reaction,role\nA,f,source\n", {}, "role 'source'"),
        (
            "metabolite,reaction,coefficient,role\nA,f,1,substrate\n",
            {},
            "a substrate with coefficient 1",
        ),
        (
            "name,A,B,C\nf,-1,1,0\n",
            {"graph_format": "matrix"},
            r"\(3, …\), got \(1, 3\): transpose",
        ),
        ("name,f\nA,-1\nB,1\n", {"graph_format": "matrix"}, "got 2 rows .missing: C"),
        ("name,f\nA,x\nB,1\nC,0\n", {"graph_format": "matrix"}, "text where numbers belong"),
    ],
)
def test_graphs_that_do_not_fit_are_refused(tmp_path, graph, changes, message):
    with pytest.raises(DataError, match=message):
        make(tmp_path, graph=graph, **changes).simulate(1)


def test_one_run_in_disorder_suggests_a_run_column(tmp_path):
    with pytest.raises(DataError, match=r"set simulator\.run_column"):
        make(tmp_path, run_column=None, ignore_columns=["run"]).simulate(1)


def test_a_missing_file_names_every_place_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURALGRAPH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(MissingDataError, match=r"nowhere.* and .*neuralgraph.*fetch"):
        make(tmp_path, table="mine/absent.csv").simulate(1)


def test_neither_graph_nor_size_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"simulator\.n_rxn"):
        make(tmp_path, graph=None)
