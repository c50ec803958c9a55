"""From counts to what a model is fitted on; the same steps for tensors and for AnnData."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError, DataError


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
