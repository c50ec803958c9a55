"""A user's own time series of knock-outs, from an AnnData file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count
from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, DataError, nearest
from neuralgraph.core.recording import Recording

if TYPE_CHECKING:
    import anndata
    import numpy as np


class KnockoutSeries:
    """Cells of several perturbations on several days, as means, covariances and cell counts.

    Each perturbation becomes a condition with one frame a day; ``variance`` is the sampling
    variance of its mean expression, ``covariance`` that of single cells. Measured data: a
    simulator that cannot be reseeded, and has no truth.

    Args:
        path: ``.h5ad`` file, a path or a name in the data folders; ``X`` is log-normalised.
        perturbation_column: Column of ``obs`` that names the perturbed gene of each cell.
        time_column: Column of ``obs`` with the day of each cell, a number.
        control_label: Value of the perturbation column for unperturbed cells, ``null`` for none.
        gene_column: Column of ``var`` with the gene names, ``null`` for its index.
        min_cells: Fewest cells of a perturbation on a day.
        max_genes: Genes of highest variance that are kept, ``null`` for all. Covariances need
            memory of (conditions × days × genes²).
    """

    def __init__(
        self,
        *,
        path: str,
        perturbation_column: str,
        time_column: str,
        control_label: str | None,
        gene_column: str | None,
        min_cells: Count,
        max_genes: int | None,
    ) -> None:
        if min_cells < 2:
            raise ConfigError(f"min_cells must be at least 2 (for a variance), got {min_cells}")
        self.path = path
        self.perturbation_column, self.time_column = perturbation_column, time_column
        self.control_label, self.gene_column = control_label, gene_column
        self.min_cells, self.max_genes = min_cells, max_genes

    def simulate(self, seed: int) -> tuple[Recording, None]:
        """Read the file; the seed changes nothing.

        Raises:
            MissingDataError: the file is not there.
            DataError: a column, a label or a number that cannot be used.
        """
        import anndata
        import numpy as np

        path = find_data(self.path)
        cells = anndata.read_h5ad(path)
        column = self._column(cells, self.perturbation_column)
        if column.isna().any():
            raise DataError(
                f"{int(column.isna().sum())} cells have no label in obs['"
                f"{self.perturbation_column}']: remove them, or label the unperturbed ones"
            )
        label = column.astype(str).to_numpy()
        days = self._days(cells)
        names = self._genes(cells)
        x: Any = cells.X
        values = np.asarray(x.todense() if hasattr(x, "todense") else x, dtype=np.float64)
        if not np.isfinite(values).all() or values.min() < 0:
            raise DataError(f"{path.name}: X must hold log-normalised expression, 0 or above")
        if values.max() > 50:
            raise DataError(
                f"{path.name}: X reaches {values.max():g}, which no log-normalised expression "
                "does: normalise and log1p first (scanpy.pp.normalize_total, scanpy.pp.log1p)"
            )
        if self.max_genes is not None and self.max_genes < len(names):
            kept = np.sort(np.argsort(-values.var(0), kind="stable")[: self.max_genes])
            values, names = values[:, kept], tuple(names[i] for i in kept)
        conditions = sorted(set(label))
        if self.control_label is not None:
            if self.control_label not in conditions:
                raise DataError(
                    f"no cell is labelled '{self.control_label}' in obs['"
                    f"{self.perturbation_column}']: {nearest(self.control_label, conditions)}"
                )
            conditions.remove(self.control_label)
            conditions.insert(0, self.control_label)
        unique_days = np.unique(days)
        if len(unique_days) < 2:
            raise DataError(
                f"{path.name} holds the day {unique_days[0]:g} alone: a time-dependent loss needs "
                "two days or more"
            )
        return self._summary(values, label, days, conditions, unique_days, names, path.name), None

    def reveal(self, recording: Recording, truth: None, /) -> dict[str, Tensor]:
        """Nothing beside the recording is known."""
        return {}

    def _summary(
        self,
        values: np.ndarray,
        label: np.ndarray,
        days: np.ndarray,
        conditions: list[str],
        unique_days: np.ndarray,
        names: tuple[str, ...],
        source: str,
    ) -> Recording:
        import numpy as np

        n_run, n_time, n_gene = len(conditions), len(unique_days), len(names)
        mean = np.zeros((n_run, n_time, n_gene))
        covariance = np.zeros((n_run, n_time, n_gene, n_gene))
        count = np.zeros((n_run, n_time))
        for i, condition in enumerate(conditions):
            for j, day in enumerate(unique_days):
                chosen = values[(label == condition) & (days == day)]
                if len(chosen) < self.min_cells:
                    raise DataError(
                        f"{source}: '{condition}' has {len(chosen)} cells on day {day:g}, at least "
                        f"{self.min_cells} are needed: lower simulator.min_cells, or remove it"
                    )
                mean[i, j], count[i, j] = chosen.mean(0), len(chosen)
                covariance[i, j] = np.cov(chosen.T).reshape(n_gene, n_gene)
        target = np.zeros((n_run, n_gene))
        unmeasured = []
        for i, condition in enumerate(conditions):
            if condition == self.control_label:
                continue
            for gene in condition.split("+"):
                if gene in names:
                    target[i, names.index(gene)] = 1.0
                else:
                    unmeasured.append(gene)
        if not target.any():
            raise DataError(
                f"none of the perturbed genes ({', '.join(sorted(unmeasured)[:5])} …) is among the "
                f"measured genes ({', '.join(names[:5])} …): name their column of var with "
                "simulator.gene_column"
            )
        variance = np.diagonal(covariance, axis1=2, axis2=3) / count[..., None]
        return Recording(
            time=torch.from_numpy(np.tile(unique_days, (n_run, 1))),
            state=torch.from_numpy(mean),
            names=names,
            inputs={
                "variance": torch.from_numpy(variance.copy()),
                "covariance": torch.from_numpy(covariance),
                "n_cell": torch.from_numpy(count),
            },
            graph={"target": torch.from_numpy(target)},
            units={"time": "day", "state": "log1p expression"},
            provenance={
                "design": f"{int(count.sum())} cells, {n_run} conditions, days "
                + ", ".join(f"{day:g}" for day in unique_days),
                "conditions": conditions,
                "has_control": self.control_label is not None,
                "unmeasured_targets": sorted(set(unmeasured)),
                "source": source,
            },
        )

    def _column(self, cells: anndata.AnnData, name: str) -> Any:
        if name not in cells.obs:
            raise DataError(
                f"obs has no column '{name}': {nearest(name, [str(c) for c in cells.obs])}"
            )
        return cells.obs[name]

    def _days(self, cells: anndata.AnnData) -> np.ndarray:
        import pandas as pd

        column = self._column(cells, self.time_column)
        days: Any = pd.to_numeric(column.astype(str), errors="coerce")
        if days.isna().any():
            raise DataError(
                f"obs['{self.time_column}'] must hold days as numbers, got "
                f"'{column[days.isna()].iloc[0]}'"
            )
        return days.to_numpy(dtype=float)

    def _genes(self, cells: anndata.AnnData) -> tuple[str, ...]:
        if self.gene_column is None:
            return tuple(map(str, cells.var_names))
        if self.gene_column not in cells.var:
            columns = [str(c) for c in cells.var]
            raise DataError(
                f"var has no column '{self.gene_column}': {nearest(self.gene_column, columns)}"
            )
        return tuple(cells.var[self.gene_column].astype(str))
