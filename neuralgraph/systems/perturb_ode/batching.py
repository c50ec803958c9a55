r"""Which design measures the effect of a perturbation best: batches, controls, cells, cost.

On the log scale a cell of perturbation p in batch b reads
:math:`y = \mu + \delta_p + B_b + (PB)_{pb} + \varepsilon` with variances
:math:`s_B^2, s_{PB}^2, s^2`; the effect :math:`\delta_p` is estimated as mean of the treated minus
mean of the control cells.

Source:
    own derivation by common rules of variance; that every batch should hold unedited cells is the
    advice of Kovačević et al. (2025), whose error analysis was not at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count
from neuralgraph.core.errors import ConfigError, DataError, nearest
from neuralgraph.systems.perturb_ode.columns import check_columns

if TYPE_CHECKING:
    import anndata
    import numpy as np

LAYOUTS = ("crossed", "control_in_one", "one_batch_each", "separate")


@dataclass(frozen=True)
class Variances:
    """Variances of log expression.

    Args:
        batch: Between batches, common to all conditions, s_B².
        batch_condition: Between batches, of one perturbation, s_PB².
        cell: Between cells of a condition and batch, s².
    """

    batch: float
    batch_condition: float
    cell: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"variance.{name} must be a number, 0 or above, got {value}")


def effect_variance(treated: Tensor, control: Tensor, variances: Variances) -> float:
    r"""Variance of mean(treated) - mean(control), all cells pooled.

    .. math::
        s_B^2 \sum_b (w^P_b - w^0_b)^2 + s_{PB}^2 \sum_b (w^P_b)^2 + s^2 (1/N_P + 1/N_0)

    with w the share of a condition's cells in a batch. Equal shares cancel :math:`s_B^2`; the
    second term falls with batches and not with cells.

    Args:
        treated: Treated cells in each batch, ``(n_batch,)``.
        control: Control cells in each batch, ``(n_batch,)``.
        variances: Of the log scale.
    """
    n_treated, n_control = float(treated.sum()), float(control.sum())
    if n_treated <= 0 or n_control <= 0:
        return math.inf
    share, other = treated / n_treated, control / n_control
    return (
        variances.batch * float((share - other).square().sum())
        + variances.batch_condition * float(share.square().sum())
        + variances.cell * (1 / n_treated + 1 / n_control)
    )


def stratified_variance(treated: Tensor, control: Tensor, variances: Variances) -> float:
    """Variance of the contrasts within batches, weighted by their precision.

    Batches that hold only one of the two say nothing here: infinite where there is no other.
    """
    both = (treated > 0) & (control > 0)
    each = variances.batch_condition + variances.cell * (1 / treated[both] + 1 / control[both])
    precision = float((1 / each.clamp_min(1e-300)).sum())
    return 1 / precision if precision > 0 else math.inf


def floor_of_variance(treated: Tensor, control: Tensor, variances: Variances) -> float:
    """What is left of :func:`effect_variance` with as many cells as one likes in these shares."""
    return effect_variance(
        treated, control, Variances(variances.batch, variances.batch_condition, 0.0)
    )


def best_control_ratio(n_perturbation: int) -> float:
    """Control cells for each cell of one perturbation: √K, for K perturbations on one control."""
    return math.sqrt(n_perturbation)


def best_cells_per_batch(
    variances: Variances, *, n_perturbation: int, cost_batch: float, cost_cell: float
) -> float:
    r"""Cells of each perturbation in a batch that cost least for a given variance.

    :math:`n^* = (s / s_{PB}) \sqrt{c_b / (K c_c)}`, with :math:`\sqrt K n^*` control cells beside;
    infinite where nothing differs between batches.
    """
    if variances.batch_condition == 0:
        return math.inf
    spread = math.sqrt(variances.cell / variances.batch_condition)
    return spread * math.sqrt(cost_batch / (n_perturbation * cost_cell))


def layout(name: str, *, n_treated: int, n_control: int, n_batch: int) -> tuple[Tensor, Tensor]:
    """Cells of a perturbation and of the control by batch, each ``(n_batch,)``.

    - ``crossed``: both in every batch, in equal shares;
    - ``control_in_one``: the treated in every batch, the control in the first;
    - ``one_batch_each``: the treated in the first batch, the control in every one;
    - ``separate``: the treated in the first half of the batches, the control in the others.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"unknown layout '{name}': {nearest(name, LAYOUTS)}")
    if name != "crossed" and n_batch < 2:
        raise ConfigError(f"the layout '{name}' needs 2 batches or more, got {n_batch}")
    every, first = torch.ones(n_batch), torch.arange(n_batch) == 0
    half = torch.arange(n_batch) < max(1, n_batch // 2)
    treated, control = {
        "crossed": (every, every),
        "control_in_one": (every, first),
        "one_batch_each": (first, every),
        "separate": (half, ~half),
    }[name]
    treated, control = treated.double(), control.double()
    return n_treated * treated / treated.sum(), n_control * control / control.sum()


def warnings_of(
    treated: Tensor, control: Tensor, variances: Variances, label: str = "the perturbation"
) -> list[str]:
    """What is wrong with a design, in sentences; empty where nothing is."""
    has_treated, has_control = treated > 0, control > 0
    total = effect_variance(treated, control, variances)
    if not bool(has_control.any()):
        return [f"{label}: there are no control cells, the effect cannot be estimated"]
    if not bool(has_treated.any()):
        return [f"{label}: there are no treated cells"]
    found = []
    if not bool((has_treated & has_control).any()):
        lost = floor_of_variance(treated, control, variances)
        found.append(
            f"{label}: confounded, no batch holds both its cells and controls; a variance of "
            f"{lost:.3g} of {total:.3g} does not fall with more cells"
        )
    elif not bool(has_control[has_treated].all()):
        missing = int((has_treated & ~has_control).sum())
        found.append(
            f"{label}: {missing} of {int(has_treated.sum())} of its batches hold no control cells; "
            "put controls into every batch, in the shares of the treated cells"
        )
    if int(has_treated.sum()) == 1 and variances.batch_condition > 0 and not found:
        found.append(
            f"{label}: one batch alone; its interaction with the perturbation (variance "
            f"{variances.batch_condition:.3g}) does not fall with more cells"
        )
    return found


def estimate_variances(
    cells: anndata.AnnData,
    *,
    perturbation_column: str,
    batch_column: str,
    control_label: str,
    min_cells: int,
) -> tuple[Variances, dict[str, np.ndarray]]:
    """Variances from a pilot by the method of moments, mean over genes.

    s² is the variance within conditions and batches. s_B² is what the control means of batches
    differ beyond sampling, s_PB² what the effects differ between batches beyond sampling. A gene's
    own estimate may be below 0; only the mean over genes is cut at 0.

    Args:
        cells: ``X`` is on a log scale.
        perturbation_column: Column of ``obs``.
        batch_column: Column of ``obs``.
        control_label: Unperturbed cells.
        min_cells: Fewest cells of a condition in a batch for it to count, 2 or more.

    Returns:
        Variances, and each of them by gene.

    Raises:
        DataError: values that are no logarithms of expression, fewer than two batches with
            controls, or no perturbation in two of them.
    """
    import numpy as np

    wanted = {"perturbation_column": perturbation_column, "batch_column": batch_column}
    check_columns(cells.obs.columns, wanted, "obs of the pilot")
    perturbation, batch = (
        cells.obs[name].astype(str).to_numpy().astype(str)
        for name in (perturbation_column, batch_column)
    )
    if control_label not in perturbation:
        raise DataError(
            f"no cell is labelled '{control_label}' (control_label) in "
            f"obs['{perturbation_column}']: "
            f"{nearest(control_label, sorted(set(perturbation)))}"
        )
    x: Any = cells.X
    values = np.asarray(x.todense() if hasattr(x, "todense") else x, dtype=np.float64)
    _check_logarithms(values)
    mean: dict[tuple[str, str], np.ndarray] = {}
    count: dict[tuple[str, str], int] = {}
    scatter, freedom = np.zeros(values.shape[1]), 0
    for p in np.unique(perturbation):
        for b in np.unique(batch):
            chosen = values[(perturbation == p) & (batch == b)]
            if len(chosen) < max(2, min_cells):
                continue
            mean[p, b], count[p, b] = chosen.mean(0), len(chosen)
            scatter += ((chosen - mean[p, b]) ** 2).sum(0)
            freedom += len(chosen) - 1
    with_control = [b for b in np.unique(batch) if (control_label, b) in mean]
    if len(with_control) < 2:
        raise DataError(
            f"the pilot has {len(with_control)} batches with {min_cells} control cells or more; "
            "two are needed to tell batches apart (lower min_cells, or give the variances)"
        )
    within = scatter / freedom
    control = np.stack([mean[control_label, b] for b in with_control])
    own = np.mean([within / count[control_label, b] for b in with_control], axis=0)
    between = control.var(0, ddof=1) - own
    interaction = []
    for p in np.unique(perturbation):
        shared = [b for b in with_control if (p, b) in mean]
        if p == control_label or len(shared) < 2:
            continue
        effect = np.stack([mean[p, b] - mean[control_label, b] for b in shared])
        noise = np.mean(
            [within / count[p, b] + within / count[control_label, b] for b in shared], axis=0
        )
        interaction.append(effect.var(0, ddof=1) - noise)
    if not interaction:
        raise DataError(
            "no perturbation of the pilot lies in two batches with controls: its interaction with "
            "batches cannot be estimated (give the variances)"
        )
    by_gene = {
        "batch": between,
        "batch_condition": np.mean(interaction, axis=0),
        "cell": within,
    }
    found = {name: max(0.0, float(v.mean())) for name, v in by_gene.items()}
    return Variances(**found), by_gene


def _check_logarithms(values: np.ndarray) -> None:
    """Refuse what is no log expression, ``(n_cell, n_gene)``.

    Raises:
        DataError: no genes; values that are not finite or beyond 50; whole numbers only.
    """
    import numpy as np

    advice = "normalise and log1p first (scanpy.pp.normalize_total, scanpy.pp.log1p)"
    if not values.size:
        raise DataError(f"the pilot's X is empty: its shape is {values.shape}")
    is_broken = ~np.isfinite(values)
    if is_broken.any():
        raise DataError(
            f"the pilot's X must hold finite log expression; {int(is_broken.sum())} of its values "
            "are not finite: remove those cells or genes"
        )
    if values.max() > 50:
        raise DataError(
            f"the pilot's X reaches {values.max():g}, which no log expression does: {advice}"
        )
    if (values == np.round(values)).all():
        raise DataError(f"the pilot's X holds whole numbers only, as counts are: {advice}")


def read_design(rows: Sequence[Mapping[str, str]], control_label: str) -> dict[str, Tensor]:
    """Cells by batch for each perturbation and the control, from rows batch, perturbation, cells.

    Raises:
        DataError: a missing column, a row with too few or too many fields, a number of cells that
            is none, no control, nothing but controls.
    """
    needed = ("batch", "perturbation", "cells")
    for name in needed:
        if not rows or name not in rows[0]:
            raise DataError(f"the table of the design needs the columns {', '.join(needed)}")
    for number, row in enumerate(rows, start=1):
        if None in row or any(not (row[name] or "").strip() for name in needed):
            got = ", ".join(f"{name}={row[name]!r}" for name in needed)
            raise DataError(
                f"row {number} of the table of the design must hold one value for each column "
                f"({', '.join(rows[0])}), got {got}"
                + (" and more fields than columns" if None in row else "")
            )
    batches = sorted({row["batch"] for row in rows})
    names = sorted({row["perturbation"] for row in rows})
    if control_label not in names:
        raise DataError(
            f"the design has no '{control_label}' rows: {nearest(control_label, names)}"
        )
    if len(names) == 1:
        raise DataError(
            f"every row of the design is '{control_label}': add the rows of the perturbations"
        )
    found = {name: torch.zeros(len(batches), dtype=torch.float64) for name in names}
    for row in rows:
        try:
            number = float(row["cells"])
        except ValueError:
            number = -1.0
        if not (math.isfinite(number) and number >= 0):
            raise DataError(f"cells must be numbers, 0 or above, got '{row['cells']}'")
        found[row["perturbation"]][batches.index(row["batch"])] += number
    return found


class MatchedBatchSampler:
    """Minibatches of treated and control cells that share an experimental batch.

    The contrast of a minibatch is then free of what differs between batches: its variance is that
    of :func:`effect_variance` with equal shares. Batches are visited in proportion to their treated
    cells.

    Args:
        batch: Experimental batch of each cell, ``(n_cell,)`` int.
        is_control: ``(n_cell,)`` bool.
        n_treated: Treated cells of a minibatch.
        n_control: Control cells of a minibatch.
        n_minibatch: Minibatches of a pass.
        generator: Source of the draws.

    Raises:
        DataError: no batch holds both; names the batches without controls otherwise left out.
    """

    def __init__(
        self,
        batch: Tensor,
        is_control: Tensor,
        *,
        n_treated: Count,
        n_control: Count,
        n_minibatch: Count,
        generator: torch.Generator,
    ) -> None:
        self.pools: list[tuple[Tensor, Tensor]] = []
        self.left_out: list[int] = []
        for name in batch.unique().tolist():
            treated = ((batch == name) & ~is_control).nonzero()[:, 0]
            control = ((batch == name) & is_control).nonzero()[:, 0]
            if len(treated) and len(control):
                self.pools.append((treated, control))
            elif len(treated):
                self.left_out.append(int(name))
        if not self.pools:
            raise DataError("no batch holds both treated and control cells: nothing can be matched")
        self.weight = torch.tensor([float(len(treated)) for treated, _ in self.pools])
        self.n_treated, self.n_control = n_treated, n_control
        self.n_minibatch, self.generator = n_minibatch, generator

    def __len__(self) -> int:
        return self.n_minibatch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices of treated and of control cells of each minibatch, drawn with replacement."""
        for _ in range(self.n_minibatch):
            chosen = int(torch.multinomial(self.weight, 1, generator=self.generator))
            treated, control = (
                pool[torch.randint(len(pool), (number,), generator=self.generator)]
                for pool, number in zip(
                    self.pools[chosen], (self.n_treated, self.n_control), strict=True
                )
            )
            yield treated, control
