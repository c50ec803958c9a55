"""Reading a screen: what is kept, and every way a file can be unusable."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from neuralgraph.core.errors import ConfigError, DataError, MissingDataError
from neuralgraph.systems.hyperbolic_response.recorded import RecordedScreen, subsample

SETTINGS = {
    "path": "x.h5ad",
    "layer": None,
    "expression": "auto",
    "perturbation_column": "perturbation",
    "control_label": "control",
    "strip": None,
    "combination_separator": "auto",
    "target_map": None,
    "cell_type_column": None,
    "batch_column": None,
    "gene_column": None,
    "protein": None,
    "keep": {},
    "max_cells": None,
    "max_order": None,
    "min_genes": 1,
    "min_cells": 4,
}


def test_a_recording_holds_the_counts_labels_and_targets_of_the_file(make_cells, read):
    cells = make_cells()
    recording = read(cells, batch_column="lane", cell_type_column="type")
    facts = recording.provenance
    assert recording.state.shape == (140, 1, 12) and facts["expression"] == "counts"
    np.testing.assert_array_equal(recording.state[:, 0], cells.X)
    conditions = [facts["conditions"][i] for i in recording.graph["condition"]]
    assert conditions == list(cells.obs["perturbation"])
    targets = dict(zip(facts["conditions"], facts["targets"], strict=True))
    assert targets["control"] == [] and targets["G1+T9"] == ["G1", "T9"]
    batches = [facts["batches"][i] for i in recording.graph["batch"]]
    assert batches == list(cells.obs["lane"])
    assert [facts["cell_types"][i] for i in recording.graph["cell_type"]] == list(cells.obs["type"])


def test_cells_in_memory_give_what_their_file_gives(make_cells, read):
    cells = make_cells()
    screen = RecordedScreen(**SETTINGS)
    recording = screen.recording(cells, seed=0, source="cells.h5ad")
    assert torch.equal(recording.state, read(cells).state)
    assert recording.provenance == read(cells).provenance


def test_sparse_and_dense_files_give_the_same_bytes(make_cells, read):
    cells = make_cells()
    dense = read(cells)
    cells.X = scipy.sparse.csc_matrix(cells.X)
    assert torch.equal(read(cells).state, dense.state)


def test_two_orders_of_one_combination_are_one_perturbation(make_cells, read):
    recording = read(make_cells(("control", "G0", "G1+G0", "G0+G1")))
    assert recording.provenance["conditions"] == ["control", "G0", "G0+G1"]
    assert (recording.graph["condition"] == 2).sum() == 40


def test_underscores_join_genes_that_are_known(make_cells, read):
    recording = read(make_cells(("control", "G0", "G1", "G0_G1")))
    assert recording.provenance["targets"][-1] != ["G0_G1"]
    assert ["G0", "G1"] in recording.provenance["targets"]


def test_guides_become_genes(make_cells, read):
    recording = read(make_cells(("control", "G0g1", "G0g2", "G1g1")), strip=r"g\d+$")
    assert recording.provenance["conditions"] == ["control", "G0", "G1"]
    assert (recording.graph["condition"] == 1).sum() == 40


def test_a_map_names_the_genes_of_guides_with_weights(make_cells, read, tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("guide,gene,weight\nk1,G0,1\nk1,G3,3\nk2,G1,1\nk3,G1,2\n")
    recording = read(make_cells(("control", "k1", "k2", "k3")), target_map=str(path))
    facts = recording.provenance
    assert facts["conditions"] == ["control", "G1", "k1"], "two guides of one gene are one"
    row = facts["conditions"].index("k1")
    assert facts["targets"][row] == ["G0", "G3"]
    assert facts["target_weights"][row] == [0.25, 0.75]


def test_keep_chooses_cells(make_cells, read):
    recording = read(make_cells(), keep={"type": "y"})
    assert recording.n_run == 70
    with pytest.raises(DataError, match=r"'type'.*= 'z'.*its values are x, y"):
        read(make_cells(), keep={"type": "z"})


def test_few_cells_leave_and_are_named(make_cells, read):
    cells = make_cells()
    chosen = [*np.flatnonzero(cells.obs["perturbation"] != "G2").tolist(), 61, 62]
    recording = read(cells[sorted(chosen)].copy())
    assert "G2" not in recording.provenance["conditions"]
    assert any("G2" in note for note in recording.provenance["notes"])


def test_protein_rows_follow_the_cells(make_cells, read, tmp_path):
    cells = make_cells()
    order = np.random.default_rng(1).permutation(cells.n_obs)[:100]
    other = anndata.AnnData(
        np.arange(cells.n_obs, dtype=np.float32)[:, None],
        obs=pd.DataFrame(index=cells.obs_names),
    )[order].copy()
    path = tmp_path / "protein.h5ad"
    other.write_h5ad(path)
    recording = read(cells, protein=str(path))
    expected = np.sort(order)
    np.testing.assert_array_equal(recording.inputs["protein"][:, 0, 0], expected)
    np.testing.assert_array_equal(recording.state[:, 0], cells.X[expected])
    other.obs_names = [f"other{i}" for i in range(100)]
    other.write_h5ad(path)
    with pytest.raises(DataError, match="share no cells"):
        read(cells, protein=str(path))
    cells.obsm["adt"] = np.ones((140, 3), dtype=np.float32)
    assert read(cells, protein="adt").inputs["protein"].shape == (140, 1, 3)
    with pytest.raises(DataError, match=r"no obsm\['atd'\].*'adt'"):
        read(cells, protein="atd")


# --- max_cells ----------------------------------------------------------------------------------


def test_drawn_cells_keep_every_control_and_are_even_over_perturbations(make_cells, read):
    recording = read(make_cells(), max_cells=80)
    count = torch.bincount(recording.graph["condition"]).tolist()
    assert sum(count) == 80 and count[0] == 20 and count[1:] == [10] * 6


def test_the_seed_chooses_the_cells_and_nothing_else(make_cells, read):
    a, b, c = (read(make_cells(), max_cells=80, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a.state, b.state) and not torch.equal(a.state, c.state)
    assert torch.equal(read(make_cells(), seed=1).state, read(make_cells(), seed=2).state)


def test_controls_alone_cannot_fill_the_room():
    strata = np.array(["control"] * 90 + ["A"] * 8 + ["B"] * 2)
    kept = subsample(strata, strata == "control", 20, seed=0)
    names, count = np.unique(strata[kept], return_counts=True)
    assert dict(zip(names, count.tolist(), strict=True)) == {"control": 10, "A": 8, "B": 2}


# --- what cannot be used ------------------------------------------------------------------------


def test_an_absent_label_column_lists_the_columns(make_cells, read):
    with pytest.raises(DataError, match=r"no column 'condition'.*perturbation, lane, type"):
        read(make_cells(), perturbation_column="condition")


def test_an_absent_control_label_lists_the_labels_and_the_likely_one(make_cells, read):
    cells = make_cells(("non-targeting", "G0", "G1"))
    with pytest.raises(DataError, match=r"mean 'non-targeting'\?.*G0, G1, non-targeting"):
        read(cells)


def test_no_controls_after_filtering_is_said(make_cells, read):
    cells = make_cells()
    with pytest.raises(DataError, match="'control'"):
        read(cells, keep={"perturbation": ["G0", "G1"]})
    few = np.r_[0, 20:140]
    with pytest.raises(DataError, match="1 control cell"):
        read(cells[few].copy())


@pytest.mark.parametrize("labels", [("control", "G0"), ("control",)])
def test_one_perturbation_only_is_refused(make_cells, read, labels):
    with pytest.raises(DataError, match="at least 2 are needed"):
        read(make_cells(labels))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(make_cells, read, value):
    cells = make_cells()
    cells.X[3, 4] = value
    with pytest.raises(DataError, match="NaN or infinity"):
        read(cells)


def test_scaled_values_are_refused(make_cells, read):
    cells = make_cells()
    cells.X = (cells.X - cells.X.mean(0)) / cells.X.std(0)
    with pytest.raises(DataError, match=r"negative values.*scaling.*simulator\.layer"):
        read(cells)
    cells.layers["counts"] = make_cells().X
    assert read(cells, layer="counts").provenance["expression"] == "counts"
    with pytest.raises(DataError, match=r"no layer 'count'.*'counts'"):
        read(cells, layer="count")


def test_counts_where_log1p_was_promised_are_refused(make_cells, read):
    with pytest.raises(DataError, match=r"look like counts.*normalise and log1p"):
        read(make_cells(), expression="log1p")


def test_log1p_where_counts_were_promised_is_refused(make_cells, read):
    cells = make_cells()
    cells.X = np.log1p(cells.X / cells.X.sum(1, keepdims=True) * 1e4)
    assert read(cells).provenance["expression"] == "log1p"
    with pytest.raises(DataError, match="look like log1p"):
        read(cells, expression="counts")


def test_normalised_values_without_log_are_refused(make_cells, read):
    cells = make_cells()
    cells.X = cells.X / cells.X.sum(1, keepdims=True) * 1e4
    with pytest.raises(DataError, match=r"neither counts .* nor log1p"):
        read(cells)


def test_an_empty_matrix_is_refused(make_cells, read):
    cells = make_cells()
    cells.X[:] = 0
    with pytest.raises(DataError, match="every expression value is 0"):
        read(cells)


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_gene_names_that_occur_twice_are_refused(make_cells, read):
    cells = make_cells()
    cells.var["symbol"] = ["A", "A", *[f"S{i}" for i in range(10)]]
    with pytest.raises(DataError, match="1 occur twice or more: A"):
        read(cells, gene_column="symbol")
    with pytest.raises(DataError, match=r"var has no column 'symbl'.*'symbol'"):
        read(cells, gene_column="symbl")


def test_cells_without_a_label_are_refused(make_cells, read):
    cells = make_cells()
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(object)
    cells.obs.loc["c5", "perturbation"] = np.nan
    with pytest.raises(DataError, match="1 cells have no label"):
        read(cells)


def test_a_threshold_no_cell_reaches_is_named(make_cells, read):
    with pytest.raises(DataError, match=r"no cell expresses 200 genes.*simulator\.min_genes"):
        read(make_cells(), min_genes=200)


def test_a_label_that_names_no_gene_is_refused(make_cells, read):
    with pytest.raises(DataError, match=r"label 'G0\+' does not name"):
        read(make_cells(("control", "G0", "G0+")))


def test_a_missing_file_says_what_lies_beside_it(make_cells, monkeypatch, tmp_path, read):
    monkeypatch.setenv("NEURALGRAPH_DATA", str(tmp_path))
    (tmp_path / "set").mkdir()
    make_cells().write_h5ad(tmp_path / "set" / "other.h5ad")
    settings = {**SETTINGS, "path": "set/cells.h5ad"}
    with pytest.raises(MissingDataError, match=r"holds other\.h5ad"):
        RecordedScreen(**settings).simulate(0)
    with pytest.raises(MissingDataError, match="absent"):
        RecordedScreen(**{**settings, "path": "absent/cells.h5ad"}).simulate(0)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "cells.h5ad"
    path.write_text("not hdf5")
    with pytest.raises(DataError, match=r"cannot be read as \.h5ad"):
        RecordedScreen(**{**SETTINGS, "path": str(path)}).simulate(0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"min_cells": 2}, "min_cells"),
        ({"max_cells": 5}, "max_cells"),
        ({"strip": "("}, "strip"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(changed, message):
    with pytest.raises(ConfigError, match=message):
        RecordedScreen(**{**SETTINGS, **changed})


@pytest.mark.parametrize("changed", [{"protein": "absent.h5ad"}, {"target_map": "absent.json"}])
def test_files_that_are_named_and_missing_are_errors(make_cells, read, changed):
    with pytest.raises(MissingDataError, match="absent"):
        read(make_cells(), **changed)
