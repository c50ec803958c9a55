"""A user's own time series of knock-outs, from an AnnData file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count
from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, DataError, nearest
from neuralgraph.core.recording import Recording
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.perturb_ode.columns import check_columns
from neuralgraph.systems.perturb_ode.prior_graph import prior_edges

if TYPE_CHECKING:
    import anndata
    import numpy as np

UNMEASURED = ("refuse", "keep")


class SeriesReader:
    """How a table of cells becomes means, covariances and cell counts by condition and day.

    A condition is a perturbation in a medium (``G1``, ``G1 in hypoxia``). Conditions of unperturbed
    cells come first. Two halves of the cells of each condition and day, drawn once and for all,
    give two means of independent noise (``halves``).

    Args:
        perturbation_column: Column of ``obs`` that names the perturbed gene of each cell; several
            genes are joined by ``+``.
        time_column: Column of ``obs`` with the day of each cell, a number.
        control_label: Value of the perturbation column for unperturbed cells, ``null`` for none.
        gene_column: Column of ``var`` with the gene names, ``null`` for its index.
        medium_column: Column of ``obs`` with the medium, ``null`` where there is one.
        medium_label: The usual medium among its values.
        batch_column: Column of ``obs`` with the batch, ``null`` to leave batches alone.
        correct_batches: Whether each batch is shifted, gene by gene and day by day, so that its
            unperturbed cells have the mean of the unperturbed cells of all batches; every batch
            needs some. Counts stay as they are.
        min_cells: Fewest cells of a condition on a day.
        max_genes: Genes that are kept, ``null`` for all: the perturbed ones, then those of highest
            variance. Covariances need memory of (conditions × days × genes²).
        unmeasured_targets: What to do with a perturbed gene that is not measured: ``refuse``, or
            ``keep`` its cells, with no gene to leave out of the error (compounds, say).
        keep_cells: Whether the recording holds every cell too, with its batch where
            ``batch_column`` is set and its counts of the kept genes where ``layers['counts']`` is.
    """

    def __init__(
        self,
        *,
        perturbation_column: str,
        time_column: str,
        control_label: str | None,
        gene_column: str | None,
        medium_column: str | None,
        medium_label: str | None,
        batch_column: str | None,
        correct_batches: bool,
        min_cells: Count,
        max_genes: int | None,
        unmeasured_targets: str,
        keep_cells: bool,
    ) -> None:
        if min_cells < 2:
            raise ConfigError(f"min_cells must be at least 2 (for a variance), got {min_cells}")
        if unmeasured_targets not in UNMEASURED:
            raise ConfigError(
                f"unknown unmeasured_targets '{unmeasured_targets}': "
                f"{nearest(unmeasured_targets, UNMEASURED)}"
            )
        if medium_column is not None and medium_label is None:
            raise ConfigError(
                f"medium_label is not set: say which value of '{medium_column}' is the usual medium"
            )
        if batch_column is not None and correct_batches and control_label is None:
            raise ConfigError(
                "batches are shifted by their unperturbed cells: set control_label, or "
                "correct_batches=false"
            )
        self.perturbation_column, self.time_column = perturbation_column, time_column
        self.control_label, self.gene_column = control_label, gene_column
        self.medium_column, self.medium_label = medium_column, medium_label
        self.batch_column, self.correct_batches = batch_column, correct_batches
        self.min_cells, self.max_genes, self.keep_cells = min_cells, max_genes, keep_cells
        self.unmeasured_targets = unmeasured_targets

    def summary(self, cells: anndata.AnnData, *, source: str) -> Recording:
        """Statistics of a table of cells.

        Args:
            cells: ``X`` is log-normalised.
            source: Where they come from, for messages.

        Raises:
            DataError: a column, a label or a number that cannot be used.
        """
        import numpy as np

        settings = ("perturbation_column", "time_column", "medium_column", "batch_column")
        wanted = {f"simulator.{setting}": getattr(self, setting) for setting in settings}
        check_columns(cells.obs.columns, wanted, f"obs of {source}")
        label = self._labels(cells, self.perturbation_column)
        days = self._days(cells)
        names = self._genes(cells, source)
        x: Any = cells.X
        values = np.asarray(x.todense() if hasattr(x, "todense") else x, dtype=np.float64)
        if not np.isfinite(values).all() or values.min() < 0:
            raise DataError(f"{source}: X must hold log-normalised expression, 0 or above")
        if values.max() > 50:
            raise DataError(
                f"{source}: X reaches {values.max():g}, which no log-normalised expression "
                "does: normalise and log1p first (scanpy.pp.normalize_total, scanpy.pp.log1p)"
            )
        known = sorted(set(label))
        if self.control_label is not None and self.control_label not in known:
            raise DataError(
                f"no cell is labelled '{self.control_label}' in obs['{self.perturbation_column}'] "
                f"(simulator.control_label): {nearest(self.control_label, known)}"
            )
        perturbed = [name for name in known if name != self.control_label]
        targets = {gene for name in perturbed for gene in name.split("+")}
        if self.unmeasured_targets == "refuse":
            self._refuse_unmeasured(targets, names, source)
        kept = np.arange(len(names))
        if self.max_genes is not None and self.max_genes < len(names):
            is_target = np.isin(names, list(targets))
            if self.max_genes < is_target.sum():
                raise ConfigError(
                    f"simulator.max_genes must be at least {is_target.sum()}, the number of "
                    f"perturbed genes, got {self.max_genes}"
                )
            score = np.where(is_target, np.inf, values.var(0))
            kept = np.sort(np.argsort(-score, kind="stable")[: self.max_genes])
            values, names = values[:, kept], tuple(names[i] for i in kept)
        unique_days = np.unique(days)
        if len(unique_days) < 2:
            raise DataError(
                f"{source} holds the day {unique_days[0]:g} alone: a time-dependent loss needs "
                "two days or more"
            )
        medium = self._media(cells)
        condition = np.where(
            medium == (self.medium_label or ""),
            label,
            np.char.add(np.char.add(label, " in "), medium),
        )
        is_control = label == (self.control_label or "\0")
        extra: dict[str, Tensor] = {}
        if self.batch_column is not None:
            batch = self._labels(cells, self.batch_column)
            extra["cell_batch"] = torch.from_numpy(np.unique(batch, return_inverse=True)[1]).long()
            if self.correct_batches:
                values = shifted_batches(values, batch, days, is_control, self.batch_column)
        found = sorted(set(zip(~is_control, condition, label, medium, strict=True)))
        recording = self._statistics(values, condition, days, found, unique_days, names, source)
        if not self.keep_cells:
            return recording
        if "counts" in cells.layers:
            layer: Any = cells.layers["counts"][:, kept]
            dense = np.asarray(layer.todense() if hasattr(layer, "todense") else layer)
            extra["counts"] = torch.from_numpy(dense.astype(np.float64))
        return replace(recording, graph={**recording.graph, **extra})

    def _statistics(
        self,
        values: np.ndarray,
        condition: np.ndarray,
        days: np.ndarray,
        found: list[tuple[Any, Any, Any, Any]],
        unique_days: np.ndarray,
        names: tuple[str, ...],
        source: str,
    ) -> Recording:
        import numpy as np

        conditions = [str(name) for _, name, _, _ in found]
        n_run, n_time, n_gene = len(conditions), len(unique_days), len(names)
        mean = np.zeros((n_run, n_time, n_gene))
        covariance = np.zeros((n_run, n_time, n_gene, n_gene))
        count = np.zeros((n_run, n_time))
        halves = np.zeros((n_run, n_time, 2, n_gene))
        generator = numpy_generator(0, "halves of the cells")
        self._refuse_few(condition, days, conditions, unique_days, source)
        for i, name in enumerate(conditions):
            for j, day in enumerate(unique_days):
                chosen = values[(condition == name) & (days == day)]
                mean[i, j], count[i, j] = chosen.mean(0), len(chosen)
                covariance[i, j] = np.cov(chosen.T).reshape(n_gene, n_gene)
                order = generator.permutation(len(chosen))
                half = len(chosen) // 2
                halves[i, j] = chosen[order[:half]].mean(0), chosen[order[half:]].mean(0)
        target = self._targets(found, names)
        media = sorted({str(m) for *_, m in found} - {self.medium_label or ""})
        in_medium = np.array([[m == name for name in media] for *_, m in found], dtype=float)
        variance = np.diagonal(covariance, axis1=2, axis2=3) / count[..., None]
        graph = {"target": torch.from_numpy(target)}
        if self.keep_cells:
            row = {name: i for i, name in enumerate(conditions)}
            graph["cells"] = torch.from_numpy(values).float()
            graph["cell_condition"] = torch.tensor([row[str(name)] for name in condition])
            graph["cell_day"] = torch.from_numpy(np.searchsorted(unique_days, days))
        frames = (n_run, n_time, len(media))
        return Recording(
            time=torch.from_numpy(np.tile(unique_days, (n_run, 1))),
            state=torch.from_numpy(mean),
            names=names,
            inputs={
                "variance": torch.from_numpy(variance.copy()),
                "covariance": torch.from_numpy(covariance),
                "n_cell": torch.from_numpy(count),
                "halves": torch.from_numpy(halves),
                "medium": torch.from_numpy(in_medium)
                .reshape(n_run, 1, len(media))
                .expand(frames)
                .contiguous(),
            },
            graph=graph,
            units={"time": "day", "state": "log1p expression"},
            provenance={
                "design": f"{int(count.sum())} cells, {n_run} conditions, days "
                + ", ".join(f"{day:g}" for day in unique_days),
                "conditions": conditions,
                "n_control": sum(1 for is_perturbed, *_ in found if not is_perturbed),
                "source": source,
            },
        )

    def _refuse_few(
        self,
        condition: np.ndarray,
        days: np.ndarray,
        conditions: list[str],
        unique_days: np.ndarray,
        source: str,
    ) -> None:
        """Every condition needs ``min_cells`` on every day; names those that have fewer."""
        few = [
            f"'{name}' has {number} cells on day {day:g}"
            for name in conditions
            for day in unique_days
            if (number := int(((condition == name) & (days == day)).sum())) < self.min_cells
        ]
        if few:
            more = f" … ({len(few)} in all)" if len(few) > 5 else ""
            raise DataError(
                f"{source}: {', '.join(few[:5])}{more}, at least {self.min_cells} are needed: "
                "lower simulator.min_cells, or remove them"
            )

    def _refuse_unmeasured(self, targets: set[str], names: tuple[str, ...], source: str) -> None:
        """A perturbed gene must be a measured one, by the same name."""
        unknown = sorted(targets - set(names))
        if not unknown:
            return
        shown = ", ".join(unknown[:5]) + (" …" if len(unknown) > 5 else "")
        column = f"obs['{self.perturbation_column}'] of {source}"
        if len(unknown) == len(targets):
            raise DataError(
                f"none of the perturbed genes ({shown}) in {column} is among the measured genes "
                f"({', '.join(names[:5])} …): name their column of var with simulator.gene_column, "
                "or keep them with simulator.unmeasured_targets=keep"
            )
        close = nearest(unknown[0], names)
        hint = f" ({close})" if len(unknown) == 1 and close.startswith("did you mean") else ""
        raise DataError(
            f"{column} perturbs {shown}, not among the measured genes{hint}: name unperturbed "
            "cells with simulator.control_label, or keep perturbations of genes that are not "
            "measured with simulator.unmeasured_targets=keep"
        )

    @staticmethod
    def _targets(found: list[tuple[Any, Any, Any, Any]], names: tuple[str, ...]) -> np.ndarray:
        """1 for a perturbed gene that is measured, ``(n_run, n_gene)``."""
        import numpy as np

        target = np.zeros((len(found), len(names)))
        for i, (is_perturbed, _, label, _) in enumerate(found):
            for gene in str(label).split("+") if is_perturbed else ():
                if gene in names:
                    target[i, names.index(gene)] = 1.0
        return target

    def _labels(self, cells: anndata.AnnData, name: str) -> np.ndarray:
        column: Any = cells.obs[name]
        if column.isna().any():
            raise DataError(
                f"{int(column.isna().sum())} cells have no label in obs['{name}']: remove them, or "
                "label the unperturbed ones"
            )
        return column.astype(str).to_numpy().astype(str)

    def _media(self, cells: anndata.AnnData) -> np.ndarray:
        import numpy as np

        if self.medium_column is None:
            return np.full(cells.n_obs, self.medium_label or "", dtype=object).astype(str)
        media = self._labels(cells, self.medium_column)
        if self.medium_label not in media:
            raise DataError(
                f"no cell is labelled '{self.medium_label}' in obs['{self.medium_column}']: "
                f"{nearest(str(self.medium_label), sorted(set(media)))}"
            )
        return media

    def _days(self, cells: anndata.AnnData) -> np.ndarray:
        import pandas as pd

        column: Any = cells.obs[self.time_column]
        days: Any = pd.to_numeric(column.astype(str), errors="coerce")
        if days.isna().any():
            raise DataError(
                f"obs['{self.time_column}'] must hold days as numbers, got "
                f"'{column[days.isna()].iloc[0]}'"
            )
        return days.to_numpy(dtype=float)

    def _genes(self, cells: anndata.AnnData, source: str) -> tuple[str, ...]:
        if self.gene_column is None:
            return tuple(map(str, cells.var_names))
        wanted = {"simulator.gene_column": self.gene_column}
        check_columns(cells.var.columns, wanted, f"var of {source} (null takes its index)")
        return tuple(cells.var[self.gene_column].astype(str))


def shifted_batches(
    values: np.ndarray,
    batch: np.ndarray,
    days: np.ndarray,
    is_control: np.ndarray,
    column: str,
) -> np.ndarray:
    """Cells after each batch is moved so that unperturbed cells agree between batches, by day.

    Args:
        values: ``(n_cell, n_gene)``.
        batch: Batch of each cell.
        days: Day of each cell.
        is_control: Unperturbed cells.
        column: Name of the batch column, for messages.

    Raises:
        DataError: a batch without unperturbed cells on a day on which it has others.
    """
    import numpy as np

    moved = values.copy()
    for day in np.unique(days):
        on_day = days == day
        common = values[on_day & is_control].mean(0) if (on_day & is_control).any() else None
        for name in np.unique(batch[on_day]):
            rows = on_day & (batch == name)
            own = rows & is_control
            if common is None or not own.any():
                raise DataError(
                    f"batch '{name}' of obs['{column}'] holds no unperturbed cell on day {day:g}: "
                    "its shift cannot be told from the perturbations (set correct_batches=false "
                    "to leave the batches as they are)"
                )
            moved[rows] += common - values[own].mean(0)
    return moved


class KnockoutSeries:
    """A user's own file. Measured data: cannot be reseeded, and has no truth.

    Args:
        path: ``.h5ad`` file, a path or a name in the data folders; ``X`` is log-normalised.
        perturbation_column: See :class:`SeriesReader`, as for the following.
        time_column: Day of each cell.
        control_label: Unperturbed cells, ``null`` for none.
        gene_column: Gene names, ``null`` for the index of ``var``.
        medium_column: Medium of each cell, ``null`` where there is one.
        medium_label: The usual medium.
        batch_column: Batch of each cell, ``null`` to leave batches alone.
        correct_batches: Whether batches are shifted on each other.
        edges_path: Table of regulator and target genes for ``prior.edges=true`` (two first columns,
            tab-separated, as TRRUST has them), a path or a name in the data folders.
        min_cells: Fewest cells of a condition on a day.
        max_genes: Genes that are kept, ``null`` for all.
        unmeasured_targets: ``refuse``, or ``keep`` perturbations of genes that are not measured.
        keep_cells: Whether the recording holds every cell too.
    """

    def __init__(
        self,
        *,
        path: str,
        perturbation_column: str,
        time_column: str,
        control_label: str | None,
        gene_column: str | None,
        medium_column: str | None,
        medium_label: str | None,
        batch_column: str | None,
        correct_batches: bool,
        edges_path: str,
        min_cells: Count,
        max_genes: int | None,
        unmeasured_targets: str,
        keep_cells: bool,
    ) -> None:
        self.path, self.edges_path = path, edges_path
        self.reader = SeriesReader(
            perturbation_column=perturbation_column,
            time_column=time_column,
            control_label=control_label,
            gene_column=gene_column,
            medium_column=medium_column,
            medium_label=medium_label,
            batch_column=batch_column,
            correct_batches=correct_batches,
            min_cells=min_cells,
            max_genes=max_genes,
            unmeasured_targets=unmeasured_targets,
            keep_cells=keep_cells,
        )

    def simulate(self, seed: int) -> tuple[Recording, None]:
        """Read the file; the seed changes nothing.

        Raises:
            MissingDataError: the file is not there.
            DataError: a column, a label or a number that cannot be used.
        """
        import anndata

        path = find_data(self.path)
        return self.reader.summary(anndata.read_h5ad(path), source=path.name), None

    def reveal(self, recording: Recording, truth: None, /, *, edges: bool) -> dict[str, Tensor]:
        """With ``edges``: published regulatory edges between the measured genes."""
        return {"is_edge": prior_edges(self.edges_path, recording.names)} if edges else {}
