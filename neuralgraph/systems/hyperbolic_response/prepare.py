"""From counts to what a model is fitted on; the same steps for tensors and for AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    import anndata
    import numpy as np
    import pandas as pd


def log_normalise(counts: Tensor, target_sum: float) -> Tensor:
    r"""$\log(1 + s\, x_{cg} / \sum_h x_{ch})$, one cell at a time.

    Args:
        counts: ``(n_cell, n_gene)``, non-negative.
        target_sum: Counts each cell is brought to, ``s``.

    Raises:
        DataError: a cell without counts.
    """
    total = counts.sum(1, keepdim=True, dtype=torch.float64)
    if bool((total <= 0).any()):
        raise DataError(
            f"{int((total <= 0).sum())} cells have no counts: leave them out "
            "(simulator.min_genes=1)"
        )
    return torch.log1p(counts / total * target_sum).float()


def variable_genes(values: Tensor, n_top: int | None, min_cells: int) -> Tensor:
    """Columns of the most variable genes of training cells, in their order.

    Args:
        values: Log-normalised expression of training cells, ``(n_cell, n_gene)``.
        n_top: How many to keep, ``None`` for all.
        min_cells: Cells that must express a gene.

    Returns:
        ``(n_kept,)`` long, ascending.

    Raises:
        ConfigError: more genes are asked for than pass ``min_cells``.

    Source:
        scanpy's ``highly_variable_genes``, flavor ``seurat`` (Satija et al. 2015).
    """
    seen = ((values > 0).sum(0) >= min_cells).nonzero()[:, 0]
    if n_top is None:
        if seen.numel() == 0:
            raise DataError(
                f"no gene is expressed by {min_cells} training cells: lower "
                "dataset.min_cells_per_gene"
            )
        return seen
    if n_top > seen.numel():
        raise ConfigError(
            f"dataset.n_top_genes={n_top}, but {seen.numel()} of {values.shape[1]} genes are "
            f"expressed by {min_cells} training cells or more: lower it, or set it to null"
        )
    if n_top == seen.numel():
        return seen
    import warnings

    import anndata
    import scanpy

    cells = anndata.AnnData(values[:, seen].numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # pandas, from within scanpy
        table: Any = scanpy.pp.highly_variable_genes(
            cells, n_top_genes=n_top, flavor="seurat", inplace=False
        )
    is_top = torch.from_numpy(table["highly_variable"].to_numpy(dtype=bool, copy=True))
    return seen[is_top]


def prepare(
    cells: anndata.AnnData,
    *,
    perturbation_column: str,
    control_label: str,
    is_train: Sequence[bool] | None,
    reference_column: str | None = None,
    max_cells: int | None = 3000,
    min_genes: int = 200,
    min_cells: int = 3,
    target_sum: float = 1e4,
    n_top_genes: int | None = 1000,
    scale: bool = False,
    max_value: float = 10.0,
    n_pcs: int | None = 20,
    n_neighbors: int | None = 15,
    protein: anndata.AnnData | None = None,
    combination_separator: str | None = "auto",
    target_map: Mapping[str, Mapping[str, float]] | None = None,
    seed: int = 0,
) -> anndata.AnnData:
    """A perturbation screen as the document describes it, from raw counts to cell neighbours.

    The split comes first: gene filter, variable genes, scale, components and the mean of the
    controls are fitted on the training cells alone. Only the neighbour graph, which serves to look
    at the data, is over all cells. Nothing falls back silently: what is missing is an error.

    Args:
        cells: Raw counts in ``X``, labels in ``obs``; it is left as it is.
        perturbation_column: Column of ``obs`` with the label of each cell.
        control_label: Label of the unperturbed cells.
        is_train: Whether each cell is for training, ``(n_cell,)``; ``None`` says that nothing will
            be held out.
        reference_column: Column of ``obs`` (a batch, a cell type) within which cells are compared
            with controls, ``None`` to compare with all controls.
        max_cells: Cells that stay, drawn stratified by label, controls first; ``None`` for all.
        min_genes: Genes a cell must express.
        min_cells: Training cells that must express a gene.
        target_sum: Counts each cell is normalised to.
        n_top_genes: Most variable genes in the training cells, ``None`` for all.
        scale: Whether ``X`` becomes a z-score (of the training cells), cut at ``max_value``.
        max_value: Largest absolute z-score.
        n_pcs: Principal components of ``X``, ``None`` for none.
        n_neighbors: Neighbours of each cell in them, ``None`` for no graph.
        protein: The same cells in a second modality.
        combination_separator: What joins the genes of a combination: ``auto``, a character, or
            ``None``.
        target_map: Genes and weights by label, see
            :func:`~neuralgraph.systems.hyperbolic_response.labels.read_target_map`.
        seed: Of the cells that stay, and of the solvers.

    Returns:
        A new AnnData, dense. ``X``: log1p of normalised counts, or its z-score;
        ``layers['counts']``, ``layers['log1p']``; ``obs['is_train']``, ``obs['is_control']``;
        ``obsm['log_fold_change']``: log1p, never scaled, minus the mean of the training controls
        (in ``uns['control_mean']``);
        ``obsm['perturbation_target']``: a column for each perturbed gene, several of them 1 for a
        combination, all 0 for controls, with names in ``uns['perturbation_target_names']``;
        ``obsm['protein']`` and ``uns['protein_names']``; ``obsm['X_pca']``, ``obsp``.

    Raises:
        DataError: labels, numbers or sizes that cannot be used; says what there is.

    Example:
        >>> import anndata, numpy as np, pandas as pd
        >>> counts = np.random.default_rng(0).poisson(3.0, (60, 8)).astype("float32")
        >>> labels = ["ctrl"] * 20 + ["G1"] * 20 + ["G1+G2"] * 20
        >>> cells = anndata.AnnData(
        ...     counts, obs=pd.DataFrame({"guide": labels}, index=[f"c{i}" for i in range(60)])
        ... )
        >>> ready = prepare(
        ...     cells, perturbation_column="guide", control_label="ctrl", is_train=None,
        ...     min_genes=1, n_top_genes=None, n_pcs=None, n_neighbors=None,
        ... )
        >>> list(ready.uns["perturbation_target_names"]), ready.obsm["log_fold_change"].shape
        (['G1', 'G2'], (60, 8))
    """
    import anndata
    import numpy as np

    from neuralgraph.systems.hyperbolic_response import recorded
    from neuralgraph.systems.hyperbolic_response.labels import (
        find_control,
        find_separator,
        targets_of,
    )

    if n_neighbors is not None and n_pcs is None:
        raise ConfigError("n_neighbors needs components: set n_pcs, or n_neighbors=None")
    source = "cells"
    names = recorded.gene_names(cells, None)
    label = recorded.labels_of(cells, perturbation_column, control_label)
    find_control(sorted(set(label)), control_label, f"obs['{perturbation_column}']")
    matrix = recorded.matrix_of(cells, None, source)
    recorded.expression_kind(matrix, "counts", source)
    if is_train is None:
        train = np.ones(cells.n_obs, dtype=bool)
    else:
        train = np.asarray(is_train, dtype=bool)
        if train.shape != (cells.n_obs,):
            raise DataError(
                f"is_train must be (n_cell,) = ({cells.n_obs},) bool, got {train.shape}"
            )
    rows = np.flatnonzero(np.asarray((matrix > 0).sum(1)).ravel() >= max(min_genes, 1))
    values = None
    if protein is not None:
        place = {str(name): i for i, name in enumerate(protein.obs_names)}
        rows = rows[[str(cells.obs_names[row]) in place for row in rows]]
        if len(rows) == 0:
            raise DataError(
                "the RNA and protein modalities share no cells: their obs_names must agree"
            )
    if max_cells is not None and len(rows) > max_cells:
        strata = np.char.add(label[rows].astype(str), np.where(train[rows], "\n1", "\n0"))
        kept = recorded.subsample(strata, label[rows] == control_label, max_cells, seed=seed)
        rows = rows[kept]
    if len(rows) == 0:
        raise DataError(f"no cell expresses {min_genes} genes or more: lower min_genes")
    recorded.check_perturbations(label[rows], control_label, source)
    label, train = label[rows], train[rows]
    is_control = label == control_label
    if int((is_control & train).sum()) < 2:
        raise DataError(
            f"{int((is_control & train).sum())} control cell(s) ('{control_label}') are for "
            "training, at least 2 are needed: put controls on both sides of the split"
        )
    if protein is not None:
        other = recorded.matrix_of(protein, None, "protein")
        order = [place[str(cells.obs_names[row])] for row in rows]
        values = _dense(other[order])

    counts = torch.from_numpy(_dense(matrix[rows]))
    log1p = log_normalise(counts, target_sum)
    fitted = torch.from_numpy(train)
    genes = variable_genes(log1p[fitted], n_top_genes, min_cells)
    x = log1p[:, genes]
    group = recorded.column_or_one(cells, reference_column, "reference_column")[rows]
    control_mean = {}
    lfc = torch.empty_like(x)
    for name in sorted(set(group)):
        own = torch.from_numpy((group == name) & is_control & train)
        if not bool(own.any()):
            raise DataError(
                f"no control cell ('{control_label}') for training has obs['{reference_column}'] "
                f"= '{name}': compare with all controls (reference_column=None), or leave it out"
            )
        control_mean[str(name)] = x[own].double().mean(0)
        inside = torch.from_numpy(group == name)
        lfc[inside] = (x[inside].double() - control_mean[str(name)]).float()

    kept_labels = sorted(set(label))
    separator = combination_separator
    if separator == "auto":
        separator = find_separator((k for k in kept_labels if k != control_label), names)
    targets = {
        key: dict(target_map[key])
        if target_map is not None and key in target_map and key != control_label
        else {gene: 1.0 for gene in targets_of(key, control_label, separator)}
        for key in kept_labels
    }
    perturbed = sorted({gene for genes_of in targets.values() for gene in genes_of})
    column = {gene: i for i, gene in enumerate(perturbed)}
    hot = np.zeros((len(rows), len(perturbed)), dtype=np.float32)
    for key, genes_of in targets.items():
        for gene, weight in genes_of.items():
            hot[label == key, column[gene]] = weight

    # tables of cells in memory are data frames
    obs, var = cast("pd.DataFrame", cells.obs), cast("pd.DataFrame", cells.var)
    result = anndata.AnnData(
        x.numpy().copy(), obs=obs.iloc[rows].copy(), var=var.iloc[genes.numpy()].copy()
    )
    result.obs["is_train"], result.obs["is_control"] = train, is_control
    result.layers["counts"] = counts[:, genes].numpy()
    result.layers["log1p"] = x.numpy()
    result.obsm["log_fold_change"] = lfc.numpy()
    result.obsm["perturbation_target"] = hot
    result.uns["perturbation_target_names"] = np.array(perturbed, dtype=object)
    result.uns["control_mean"] = {name: mean.numpy() for name, mean in control_mean.items()}
    if values is not None:
        assert protein is not None
        result.obsm["protein"] = values
        result.uns["protein_names"] = np.array([str(n) for n in protein.var_names], dtype=object)
    if scale:
        centre, spread = x[fitted].double().mean(0), x[fitted].double().std(0)
        spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        z = ((x.double() - centre) / spread).clamp(-max_value, max_value)
        result.X = z.float().numpy()
    if n_pcs is not None:
        _components(result, train, n_pcs, seed)
    if n_neighbors is not None:
        import scanpy

        scanpy.pp.neighbors(result, n_neighbors=n_neighbors, use_rep="X_pca", random_state=seed)
    return result


def _dense(matrix: Any) -> np.ndarray:
    import numpy as np

    values = matrix.toarray() if hasattr(matrix, "toarray") else matrix
    return np.ascontiguousarray(values, dtype=np.float32)


def _components(cells: anndata.AnnData, train: np.ndarray, n_pcs: int, seed: int) -> None:
    """Components of the training cells through scanpy; the other cells are projected on them."""
    import anndata
    import numpy as np
    import scanpy

    values = np.asarray(cells.X)
    largest = min(int(train.sum()), values.shape[1]) - 1
    if n_pcs > largest:
        raise ConfigError(
            f"n_pcs must be at most {largest} (training cells or genes, less one), got {n_pcs}"
        )
    fitted = anndata.AnnData(values[train])
    scanpy.pp.pca(fitted, n_comps=n_pcs, svd_solver="arpack", random_state=seed)
    loadings = np.asarray(fitted.varm["PCs"])
    cells.varm["PCs"] = loadings
    cells.uns["pca"] = {"variance_ratio": np.asarray(fitted.uns["pca"]["variance_ratio"])}
    cells.obsm["X_pca"] = (values - values[train].mean(0)) @ loadings
