"""The AnnData route: what the document lists, fitted on training cells."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.systems.hyperbolic_response.prepare import log_normalise, prepare

HOW = {
    "perturbation_column": "perturbation",
    "control_label": "control",
    "is_train": None,
    "min_genes": 1,
    "min_cells": 1,
    "n_top_genes": None,
    "n_pcs": None,
    "n_neighbors": None,
}


def half(cells):
    return np.arange(cells.n_obs) % 2 == 0


def test_the_tables_the_document_lists_are_there(make_cells):
    cells = make_cells(n_gene=30)
    ready = prepare(cells, **{**HOW, "is_train": half(cells), "n_top_genes": 10, "n_pcs": 3})
    assert ready.shape == (140, 10) and cells.shape == (140, 30)
    np.testing.assert_array_equal(ready.layers["counts"], cells[:, ready.var_names].X)
    norm = np.log1p(cells.X / cells.X.sum(1, keepdims=True) * 1e4)
    norm = norm[:, cells.var_names.get_indexer(ready.var_names)]
    np.testing.assert_allclose(ready.X, norm, rtol=1e-5)
    control = half(cells) & (cells.obs["perturbation"] == "control").to_numpy()
    expected = norm - norm[control].mean(0)
    np.testing.assert_allclose(ready.obsm["log_fold_change"], expected, atol=1e-5)
    names = list(ready.uns["perturbation_target_names"])
    assert names == ["G0", "G1", "G2", "T9"]
    hot = pd.DataFrame(ready.obsm["perturbation_target"], cells.obs["perturbation"], names)
    assert hot.loc["control"].to_numpy().sum() == 0
    assert hot.loc["G1+T9"].drop_duplicates().to_numpy().tolist() == [[0, 1, 0, 1]]
    assert ready.obsm["X_pca"].shape == (140, 3)


def test_held_out_cells_change_nothing_that_is_fitted(make_cells):
    cells = make_cells(n_gene=30)
    how = {**HOW, "is_train": half(cells), "n_top_genes": 10, "n_pcs": 3, "scale": True}
    before = prepare(cells, **how)
    cells.X[~half(cells)] = np.random.default_rng(5).poisson(30, (70, 30))
    after = prepare(cells, **how)
    assert list(before.var_names) == list(after.var_names)
    for name in ("X_pca", "log_fold_change"):
        np.testing.assert_array_equal(before.obsm[name][::2], after.obsm[name][::2])
    np.testing.assert_array_equal(before.X[::2], after.X[::2])
    np.testing.assert_array_equal(before.varm["PCs"], after.varm["PCs"])
    assert not np.array_equal(before.X[1::2], after.X[1::2])


def test_cells_are_compared_with_the_controls_of_their_batch(make_cells):
    cells = make_cells()
    in_b = (cells.obs["lane"] == "b").to_numpy()
    cells.X[in_b, 0] += 40
    ready = prepare(cells, **HOW, reference_column="lane")
    control = (cells.obs["perturbation"] == "control").to_numpy()
    for chosen in (in_b, ~in_b):
        lfc = ready.obsm["log_fold_change"][chosen & control]
        np.testing.assert_allclose(lfc.mean(0), 0, atol=1e-5)
    assert set(ready.uns["control_mean"]) == {"a", "b"}
    with pytest.raises(DataError, match=r"no control cell .*obs\['lane'\] = 'b'"):
        prepare(cells[~(in_b & control)].copy(), **HOW, reference_column="lane")


def test_scaling_leaves_the_fold_changes_alone(make_cells):
    cells = make_cells()
    plain = prepare(cells, **HOW)
    scaled = prepare(cells, **{**HOW, "scale": True, "max_value": 1.5})
    assert np.abs(scaled.X).max() <= 1.5 and np.allclose(scaled.layers["log1p"], plain.X)
    np.testing.assert_array_equal(plain.obsm["log_fold_change"], scaled.obsm["log_fold_change"])
    loose = prepare(cells, **{**HOW, "scale": True, "max_value": 100.0})
    np.testing.assert_allclose(loose.X.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(loose.X.std(0, ddof=1), 1, rtol=1e-4)


def test_components_are_those_of_scanpy_where_every_cell_is_for_training(make_cells):
    import scanpy

    cells = make_cells(n_gene=30)
    ready = prepare(cells, **{**HOW, "n_pcs": 3})
    other = anndata.AnnData(ready.X.copy())
    scanpy.pp.pca(other, n_comps=3, svd_solver="arpack", random_state=0)
    np.testing.assert_allclose(ready.obsm["X_pca"], other.obsm["X_pca"], atol=1e-3)


def test_protein_is_kept_beside_the_cells_it_belongs_to(make_cells):
    cells = make_cells()
    protein = anndata.AnnData(
        np.arange(140, dtype=np.float32)[:, None] * [1, 2],
        obs=pd.DataFrame(index=cells.obs_names),
        var=pd.DataFrame(index=["CD86", "PDL1"]),
    )[np.random.default_rng(0).permutation(140)[:120]].copy()
    ready = prepare(cells, protein=protein, **HOW)
    assert ready.n_obs == 120 and list(ready.uns["protein_names"]) == ["CD86", "PDL1"]
    number = [int(name[1:]) for name in ready.obs_names]
    np.testing.assert_array_equal(ready.obsm["protein"][:, 0], number)
    protein.obs_names = [f"other{i}" for i in range(120)]
    with pytest.raises(DataError, match="share no cells"):
        prepare(cells, protein=protein, **HOW)


def test_drawing_is_seeded_and_keeps_controls(make_cells):
    cells = make_cells()
    how = {**HOW, "is_train": half(cells), "max_cells": 80}
    a, b, c = (prepare(cells, **how, seed=seed) for seed in (1, 1, 2))
    assert list(a.obs_names) == list(b.obs_names) != list(c.obs_names)
    assert a.n_obs == 80 and a.obs["is_control"].sum() == 20
    assert (a.obs["is_control"] & a.obs["is_train"]).sum() == 10


def test_what_is_missing_is_an_error_and_never_replaced(make_cells):
    cells = make_cells()
    with pytest.raises(DataError, match="columns are perturbation"):
        prepare(cells, **{**HOW, "perturbation_column": "guide"})
    with pytest.raises(DataError, match=r"mean 'control'\?"):
        prepare(cells, **{**HOW, "control_label": "ctrl"})
    with pytest.raises(DataError, match="put controls on both sides"):
        prepare(cells, **{**HOW, "is_train": (cells.obs["perturbation"] != "control").to_numpy()})
    with pytest.raises(DataError, match=r"is_train must be \(n_cell,\)"):
        prepare(cells, **{**HOW, "is_train": [True]})
    with pytest.raises(ConfigError, match="n_neighbors needs components"):
        prepare(cells, **{**HOW, "n_neighbors": 5})
    with pytest.raises(ConfigError, match="n_pcs must be at most 11"):
        prepare(cells, **{**HOW, "n_pcs": 12})
    ready = prepare(cells, **{**HOW, "scale": True})
    with pytest.raises(DataError, match="negative values"):
        prepare(ready, **HOW)
    with pytest.raises(DataError, match="look like log1p"):
        prepare(prepare(cells, **HOW), **HOW)


def test_a_prepared_screen_is_read_from_its_counts_layer(make_cells, read):
    cells = make_cells()
    ready = prepare(cells, **{**HOW, "scale": True})
    assert torch.equal(read(ready, layer="counts").state, read(cells).state)


def test_an_empty_cell_cannot_be_normalised():
    with pytest.raises(DataError, match="1 cells have no counts"):
        log_normalise(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1e4)


@pytest.mark.long
def test_neighbours_come_from_scanpy(make_cells):
    cells = make_cells(n_gene=30)
    ready = prepare(cells, **{**HOW, "n_pcs": 3, "n_neighbors": 5})
    assert ready.obsp["connectivities"].shape == (140, 140)
    assert ready.uns["neighbors"]["params"]["n_neighbors"] == 5
