"""A measured time series, cut so that every condition is held out once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Positive
from neuralgraph.core.errors import ConfigError, DataError, nearest
from neuralgraph.core.recording import Recording
from neuralgraph.systems.perturb_ode.dataset import ScreenBatch, ScreenSpec
from neuralgraph.systems.perturb_ode.reference import Series
from neuralgraph.systems.perturb_ode.stationarity import last_change, settled

INTERVENTIONS = ("nuclease", "knockout")


def components(state: Tensor, is_train: Tensor, n_component: int) -> tuple[Tensor, Tensor]:
    """Origin ``(n_fold, n_gene)`` and basis ``(n_fold, n_component, n_gene)`` of training means."""
    offset, decoder = [], []
    for mask in is_train:
        seen = state[mask].flatten(0, 1)
        centre = seen.mean(0)
        _, _, vectors = torch.linalg.svd(seen - centre, full_matrices=False)
        offset.append(centre)
        decoder.append(vectors[:n_component])
    return torch.stack(offset), torch.stack(decoder)


class FoldedSeries:
    """Leave-one-condition-out folds of a time series, and the inner folds that select.

    Outer fold h learns from every condition but h. Inner fold {h, v} learns without both: judged
    on v it serves the choice of arm and epoch for h, and the other way round. Each fold has its
    own components (of the mean expression of its training conditions), so that nothing of a
    held-out condition enters but its first day, from which the field starts. Unperturbed cells are
    never held out.

    Args:
        recording: Means, covariances and cell counts by condition and day.
        given: ``is_edge``, of use where the field lives in genes.
        n_component: Components the field lives in; ``null`` for the genes themselves, on which
            interventions act.
        intervention: What a knock-out does to a field in genes: ``nuclease`` takes its effect on
            others and leaves the transcript, ``knockout`` stops its production.
        has_inner: Whether the inner folds are trained.
        gate_margin: Own change a day, between the last two days of measurement, below which a
            condition may be asked to rest by ``steady_gated``, log expression / day (root mean
            square over genes).
    """

    def __init__(
        self,
        recording: Recording,
        given: Mapping[str, Tensor],
        *,
        n_component: Count | None,
        intervention: str,
        has_inner: bool,
        gate_margin: Positive,
    ) -> None:
        n_run, n_time, n_gene = recording.state.shape
        self.conditions: list[str] = list(recording.provenance["conditions"])
        self.knocked_out = recording.graph["target"]
        first = int(recording.provenance["n_control"])
        self.has_control = first > 0
        self.held = list(range(first, n_run))
        if len(self.held) < 3:
            raise DataError(
                f"leave-one-out with inner selection needs 3 perturbations, got {len(self.held)}"
            )
        largest = min(n_gene, (n_run - 2) * n_time - 1)
        if n_component is not None and n_component > largest:
            raise ConfigError(
                f"dataset.n_component must be at most {largest} (training means less one), got "
                f"{n_component}"
            )
        if intervention not in INTERVENTIONS:
            raise ConfigError(
                f"unknown intervention '{intervention}': {nearest(intervention, INTERVENTIONS)}"
            )
        left_out: list[tuple[int, ...]] = [(h,) for h in self.held]
        if has_inner:
            left_out += list(itertools.combinations(self.held, 2))
        self.left_out = left_out
        is_train = torch.ones(len(left_out), n_run, dtype=torch.bool)
        for fold, rows in enumerate(left_out):
            is_train[fold, list(rows)] = False
        self.series = Series(
            mean=recording.state,
            covariance=recording.inputs["covariance"],
            n_cell=recording.inputs["n_cell"],
            measured=(self.knocked_out == 0).to(recording.state.dtype),
        )
        weight = self.series.measured[:, None].expand(n_run, n_time - 1, n_gene)
        halves = recording.inputs["halves"][:, 1:]
        if n_component is None:
            origin = basis = None
            n_state = n_gene
            encoded = recording.state.expand(len(left_out), -1, -1, -1)
            halves = halves.expand(len(left_out), *halves.shape)
            lost = 1 - recording.graph["target"]
        else:
            origin, basis = components(recording.state, is_train, n_component)
            n_state = n_component
            encoded = torch.einsum("fbtg,fdg->fbtd", recording.state - origin[:, None, None], basis)
            halves = torch.einsum("fbtkg,fdg->fbtkd", halves - origin[:, None, None, None], basis)
            lost = torch.ones(n_run, n_component, dtype=recording.state.dtype)
        ones = torch.ones_like(lost)
        is_control = torch.zeros(n_run, dtype=torch.bool)
        is_control[:first] = True
        self._all = ScreenBatch(
            start=encoded[:, :, 0],
            time=recording.time[0],
            target=recording.state[:, 1:],
            weight=weight.contiguous(),
            is_train=is_train,
            is_control=is_control,
            production=lost if intervention == "knockout" else ones,
            regulation=lost if intervention == "nuclease" else ones,
            encoded=encoded[:, :, 1:],
            decoder=basis,
            offset=origin,
            gate=settled(
                *last_change(recording.state, recording.inputs["variance"]),
                is_train,
                self.series.measured,
                margin=gate_margin * float(recording.time[0, -1] - recording.time[0, -2]),
            ),
            medium=recording.inputs["medium"][:, 0],
            halves=halves,
        )
        size = encoded.square().mean((-1, -2))
        self.held_rows = torch.tensor([(rows[0], rows[-1]) for rows in left_out])
        """Held-out conditions of each fold, ``(n_fold, 2)``; one alone stands twice."""
        self.spec = ScreenSpec(
            names=recording.names,
            n_state=n_state,
            is_inner=tuple(len(rows) == 2 for rows in left_out),
            state_scale=tuple(((size * is_train).sum(1) / is_train.sum(1)).sqrt().tolist()),
            is_edge=given.get("is_edge") if n_component is None else None,
            has_interventions=n_component is None,
            n_medium=recording.inputs["medium"].shape[-1],
        )

    def starts(self, horizon: int) -> Tensor:
        """All folds learn in one step: a single item."""
        return torch.arange(1)

    def batch(self, index: Tensor, horizon: int = 1) -> ScreenBatch:
        """Every condition; ``is_train`` says which fold may learn from which."""
        return self._all

    def everything(self) -> ScreenBatch:
        """The same."""
        return self._all

    def validation(self) -> None:
        """The inner folds select."""
        return None

    def to(self, device: torch.device | str) -> FoldedSeries:
        """A copy on a device."""
        return self._converted(device=device)

    def astype(self, dtype: torch.dtype) -> FoldedSeries:
        """A copy in another float type."""
        return self._converted(dtype=dtype)

    def _converted(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> FoldedSeries:
        copy = object.__new__(FoldedSeries)
        copy.__dict__.update(self.__dict__)
        copy.held_rows = self.held_rows.to(device=device)
        copy._all = replace(
            self._all,
            **{
                k: v.to(device=device, dtype=dtype if v.is_floating_point() else None)
                for k, v in vars(self._all).items()
                if isinstance(v, Tensor)
            },
        )
        return copy
