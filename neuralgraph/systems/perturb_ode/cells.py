"""Single cells of a simulated screen, counted, as a user's own file would hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from neuralgraph.core.bounds import Count, NotNegative
from neuralgraph.core.errors import ConfigError, nearest
from neuralgraph.core.product import Product
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.perturb_ode.measurement import Measurement
from neuralgraph.systems.perturb_ode.recorded import SeriesReader
from neuralgraph.systems.perturb_ode.simulator import HillScreen

if TYPE_CHECKING:
    import anndata

DESIGNS = ("crossed", "by_day")

FILE = "cells.h5ad"


class CountedScreen:
    """A Hill screen of single cells through the measurement operator.

    ``simulate`` writes ``cells.h5ad`` beside the data: ``X`` log-normalised, ``layers['counts']``,
    and in ``obs`` perturbation, day, batch and medium. The same file, given to
    ``simulator=perturb_ode_renge simulator.path=…``, is read back to the same recording.

    Args:
        screen: The conditions and their network.
        measurement: How cells are counted.
        n_cell: Cells of each condition on each day.
        n_batch: Batches; with ``by_day`` each day has as many of its own.
        design: ``crossed``: every batch holds every condition and day; ``by_day``: a batch holds
            one day alone, so that day and batch cannot be told apart.
        cell_spread: Standard deviation of log expression between the cells of a condition.
        correct_batches: Whether batches are shifted on each other (see :class:`SeriesReader`).
        min_cells: Fewest cells of a condition on a day.
        keep_cells: Whether the recording holds the cells, and not their means alone.
    """

    def __init__(
        self,
        *,
        screen: HillScreen,
        measurement: Measurement,
        n_cell: Count,
        n_batch: Count,
        design: str,
        cell_spread: NotNegative,
        correct_batches: bool,
        min_cells: Count,
        keep_cells: bool,
    ) -> None:
        if correct_batches and not screen.has_control:
            raise ConfigError(
                "batches are shifted by unperturbed cells: set screen.has_control=true, or "
                "correct_batches=false"
            )
        if design not in DESIGNS:
            raise ConfigError(f"unknown design '{design}': {nearest(design, DESIGNS)}")
        if n_cell < n_batch:
            raise ConfigError(
                f"{n_cell} cells of a condition cannot be spread over {n_batch} batches"
            )
        self.screen, self.measurement = screen, measurement
        self.n_cell, self.n_batch, self.design = n_cell, n_batch, design
        self.cell_spread = cell_spread
        self.reader = SeriesReader(
            perturbation_column="perturbation",
            time_column="day",
            control_label="control" if screen.has_control else None,
            gene_column=None,
            medium_column="medium" if screen.n_medium else None,
            medium_label="M0" if screen.n_medium else None,
            batch_column="batch",
            correct_batches=correct_batches,
            min_cells=min_cells,
            max_genes=None,
            unmeasured_targets="refuse",
            keep_cells=keep_cells,
        )

    def simulate(self, seed: int) -> tuple[Recording, Truth]:
        """Cells of a new screen, as means, covariances and cell counts.

        The truth keeps the expression units of the network (``state_unit`` in its facts), on day 0
        and the days of the recording, whose own state is log1p expression; its conditions stand in
        the order of the recording.
        """
        recording, truth = self.screen.simulate(seed)
        table = self.table(recording, truth, seed)
        found = self.reader.summary(table, source=f"simulated with seed {seed}")
        order = {name: row for row, name in enumerate(recording.provenance["conditions"])}
        rows = [order[name] for name in found.provenance["conditions"]]
        by_condition = {
            name: truth.parameters[name][rows] for name in ("state", "attractor", "added")
        }
        found = replace(found, provenance={**found.provenance, "seed": seed})
        return found, Truth(
            parameters={**truth.parameters, **by_condition},
            facts={**truth.facts, "state_unit": recording.units["state"]},
        )

    def reveal(
        self, recording: Recording, truth: Truth | None, /, *, edges: bool
    ) -> dict[str, Tensor]:
        """With ``edges``: which gene regulates which, without signs."""
        return self.screen.reveal(recording, truth, edges=edges)

    def exhibits(
        self, recording: Recording, truth: Truth | None, folder: Path
    ) -> Iterator[Product]:
        """The cells as a file for other programs."""
        seed = int(recording.provenance["seed"])
        clean, its_truth = self.screen.simulate(seed)
        table = self.table(clean, its_truth, seed)
        path = folder / FILE
        table.write_h5ad(path)
        obs: Any = table.obs
        yield Product(
            path,
            "Cells",
            "AnnData: X log-normalised, layers['counts'], obs with perturbation, day, batch and "
            "medium. Read back with simulator=perturb_ode_renge simulator.path=FILE "
            "simulator.perturbation_column=perturbation simulator.time_column=day "
            "simulator.gene_column=null simulator.control_label=control; batches with "
            "simulator.batch_column=batch.",
            f"{table.n_obs} cells, {table.n_vars} genes\n" + obs.head(3).to_string(),
        )

    def table(self, recording: Recording, truth: Truth, seed: int) -> anndata.AnnData:
        """Every cell of the screen on the days after day 0."""
        import anndata
        import numpy as np
        import pandas as pd

        clean = truth.parameters["state"][:, 1:].numpy()
        n_run, n_day, n_gene = clean.shape
        run = np.repeat(np.arange(n_run), n_day * self.n_cell)
        day = np.tile(np.repeat(np.arange(n_day), self.n_cell), n_run)
        batch = np.tile(np.arange(self.n_cell) % self.n_batch, n_run * n_day)
        if self.design == "by_day":
            batch = batch + day * self.n_batch
        generator = numpy_generator(seed, "cells")
        spread = self.cell_spread
        apart = np.exp(spread * generator.standard_normal((len(run), n_gene)) - spread**2 / 2)
        counted = self.measurement(clean[run, day] * apart, batch, run, generator)
        labels: list[str] = recording.provenance["conditions"]
        split = [name.partition(" in ") for name in labels]
        days = recording.time[0, 1:].numpy()
        return log_normalised(
            anndata.AnnData(
                counted.count.astype(np.float32),
                obs=pd.DataFrame(
                    {
                        "perturbation": pd.Categorical([split[r][0] for r in run]),
                        "day": days[day],
                        "batch": pd.Categorical([f"B{b + 1}" for b in batch]),
                        "medium": pd.Categorical([split[r][2] or "M0" for r in run]),
                    },
                    index=pd.Index([f"cell{i}" for i in range(len(run))]),
                ),
                var=pd.DataFrame(index=pd.Index(list(recording.names))),
            )
        )


def log_normalised(counts: anndata.AnnData) -> anndata.AnnData:
    """The same cells with log1p of counts per median library in ``X``, counts in a layer."""
    import numpy as np

    count: Any = counts.X
    total = count.sum(1, keepdims=True)
    if not (total > 0).all():
        raise ConfigError(
            "a cell without a single count cannot be normalised: raise measurement.depth"
        )
    counts.layers["counts"] = count.copy()
    counts.X = np.log1p(count / total * np.median(total)).astype(np.float32)
    return counts
