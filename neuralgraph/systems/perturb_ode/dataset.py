"""Conditions of a screen, cut into folds for learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralgraph.core.bounds import Positive
from neuralgraph.core.errors import ConfigError, DataError, nearest
from neuralgraph.core.recording import Recording
from neuralgraph.systems.perturb_ode.stationarity import last_change, settled

STARTS = ("measured", "unperturbed")


@dataclass(frozen=True)
class ScreenSpec:
    """Sizes and given facts a model is built from.

    Args:
        names: Genes, length ``n_gene``.
        n_state: Coordinates the field lives in: genes, or components of them.
        is_inner: For each split that is trained side by side, whether it serves selection alone.
        state_scale: Typical size of a coordinate in the training conditions of each split.
        is_edge: ``(n_gene, n_gene)`` bool, regulator j of gene i, where given.
        has_interventions: Whether the coordinates are genes, on which interventions act.
        n_medium: Media beside the usual one.
    """

    names: tuple[str, ...]
    n_state: int
    is_inner: tuple[bool, ...]
    state_scale: tuple[float, ...]
    is_edge: Tensor | None
    has_interventions: bool
    n_medium: int

    @property
    def n_fold(self) -> int:
        """Splits that are trained side by side."""
        return len(self.is_inner)


@dataclass(frozen=True)
class ScreenBatch:
    """Conditions of a batch; B conditions, F folds, T days, d coordinates, G genes.

    Args:
        start: State the field starts from, ``(F, B, d)``.
        time: Day of the start, then the days to predict, ``(T + 1,)``.
        target: Measured expression on the days, ``(B, T, G)``.
        weight: Weight of each value in the data loss; 0 for a knocked-out gene, ``(B, T, G)``.
        is_train: Whether a fold may learn from a condition, ``(F, B)``.
        is_control: Unperturbed cells, ``(B,)``.
        production: Multiplier of each production, ``(B, d)``.
        regulation: Multiplier of each gene as a regulator, ``(B, d)``.
        encoded: Target in the coordinates of the field, ``(F, B, T, d)``.
        decoder: Genes from coordinates, ``(F, d, G)``, ``None`` where coordinates are genes.
        offset: Gene values at the origin of the coordinates, ``(F, G)``.
        gate: Whether a condition counts as settled on the last day, ``(F, B)``.
        medium: 1 for the medium of a condition, ``(B, n_medium)``; 0 throughout for the usual one.
        halves: Measured states of two independent halves, ``(F, B, T, 2, d)``, where there are any.
        count: Counts of libraries, ``(B, T, n_library, G)``, where they were counted.
        exposure: Counts per expression unit of each library, ``(B, T, n_library, 1)``.
    """

    start: Tensor
    time: Tensor
    target: Tensor
    weight: Tensor
    is_train: Tensor
    is_control: Tensor
    production: Tensor
    regulation: Tensor
    encoded: Tensor
    decoder: Tensor | None
    offset: Tensor | None
    gate: Tensor
    medium: Tensor
    halves: Tensor | None = None
    count: Tensor | None = None
    exposure: Tensor | None = None

    def decode(self, state: Tensor, fold: Tensor) -> Tensor:
        """Genes ``(n_model, B, T, G)`` of states ``(n_model, B, T, d)``; ``fold`` of each model."""
        if self.decoder is None or self.offset is None:
            return state
        flat = torch.baddbmm(self.offset[fold][:, None], state.flatten(1, 2), self.decoder[fold])
        return flat.unflatten(1, state.shape[1:3])


class ScreenData:
    """Every condition of a simulated screen, in expression units; one fold.

    The held-out conditions stay apart: training batches never hold them.

    Args:
        recording: Expression by condition and day, with its interventions as inputs.
        given: What the learner is told (``is_edge`` or nothing).
        weighting: ``uniform``, or ``inverse_variance`` of the measurement.
        start: State the fields start from: ``measured`` on the first day, or ``unperturbed``, the
            mean over all days of the unperturbed training cells in the usual medium. It is the
            better estimate where these rest: noise in a single measurement of the start looks like
            a change that regulation has to explain. Baselines start from the same.
        gate_margin: Own change a day, between the last two days of measurement, below which a
            condition may be asked to rest by ``steady_gated``, expression units / day (root mean
            square over genes).
    """

    def __init__(
        self,
        recording: Recording,
        given: Mapping[str, Tensor],
        *,
        weighting: str,
        start: str,
        gate_margin: Positive,
    ) -> None:
        if start not in STARTS:
            raise ConfigError(f"unknown start '{start}': {nearest(start, STARTS)}")
        if weighting not in ("uniform", "inverse_variance"):
            raise ConfigError(f"weighting must be uniform or inverse_variance, got '{weighting}'")
        if recording.n_time < 2:
            raise DataError(
                f"a screen needs day 0 and at least one later day, got {recording.n_time} frames"
            )
        if not torch.equal(recording.time, recording.time[:1].expand_as(recording.time)):
            raise DataError("every condition must be measured on the same days")
        n_run = recording.n_run
        is_test = recording.is_test
        if is_test is None:
            is_test = torch.zeros(n_run, dtype=torch.bool)
        self.is_test = is_test
        self.conditions: list[str] = list(recording.provenance["conditions"])
        self.knocked_out = recording.graph["target"]
        measured = (self.knocked_out == 0).to(recording.state.dtype)
        weight = measured[:, None].expand(n_run, recording.n_time - 1, -1)
        if weighting == "inverse_variance":
            variance = recording.inputs["variance"][:, 1:]
            seen = variance[~is_test][weight[~is_test] > 0]
            # no gene counts for more than a hundred typical ones
            weighted = weight / variance.clamp_min(0.01 * float(seen.median()))
            weight = weighted * (weight[~is_test].sum() / weighted[~is_test].sum())
        production = recording.inputs["production"][:, 0]
        is_control = (
            (self.knocked_out.sum(1) == 0)
            & (production == 1).all(1)
            & (recording.inputs["medium"][:, 0] == 0).all(1)
        )
        begin = recording.state[:, 0]
        if start == "unperturbed":
            if not bool((is_control & ~is_test).any()):
                raise ConfigError(
                    "start=unperturbed averages unperturbed training cells, and there are none: "
                    "set start=measured, or add control cells"
                )
            begin = recording.state[is_control & ~is_test].mean((0, 1)).expand_as(begin)
        self._all = ScreenBatch(
            start=begin[None].contiguous(),
            time=recording.time[0],
            target=recording.state[:, 1:],
            weight=weight.contiguous(),
            is_train=(~is_test)[None],
            is_control=is_control,
            production=production,
            regulation=recording.inputs["regulation"][:, 0],
            encoded=recording.state[None, :, 1:],
            decoder=None,
            offset=None,
            gate=settled(
                *last_change(recording.state[:, 1:], recording.inputs["variance"][:, 1:]),
                (~is_test)[None],
                measured,
                margin=gate_margin * float(recording.time[0, -1] - recording.time[0, -2]),
            ),
            medium=recording.inputs["medium"][:, 0],
            halves=_later(recording, "halves", lead=True),
            count=_later(recording, "count"),
            exposure=_later(recording, "exposure"),
        )
        train = (~is_test).nonzero()[:, 0]
        if train.numel() == 0:
            raise DataError("no condition is left for training")
        self.train_index = train
        self.test_index = is_test.nonzero()[:, 0]
        self.held_rows = self.test_index[None]
        """Held-out conditions of each fold, ``(1, n_held)``."""
        self.spec = ScreenSpec(
            names=recording.names,
            n_state=recording.n_var,
            is_inner=(False,),
            state_scale=(float(recording.state[~is_test].abs().mean()),),
            is_edge=given.get("is_edge"),
            has_interventions=True,
            n_medium=recording.inputs["medium"].shape[-1],
        )

    def starts(self, horizon: int) -> Tensor:
        """Training conditions; each is one item to learn from."""
        return torch.arange(self.train_index.numel())

    def batch(self, index: Tensor, horizon: int = 1) -> ScreenBatch:
        """Training conditions by index."""
        return self.conditions_batch(self.train_index[index])

    def everything(self) -> ScreenBatch:
        """Every condition, held-out ones too; ``is_train`` tells them apart."""
        return self._all

    def conditions_batch(self, index: Tensor) -> ScreenBatch:
        """Any conditions by index (the judge asks for those held out)."""
        everything = self._all
        index = index.to(everything.target.device)
        return replace(
            everything,
            start=everything.start[:, index],
            target=everything.target[index],
            weight=everything.weight[index],
            is_train=everything.is_train[:, index],
            is_control=everything.is_control[index],
            gate=everything.gate[:, index],
            production=everything.production[index],
            regulation=everything.regulation[index],
            encoded=everything.encoded[:, index],
            medium=everything.medium[index],
            halves=None if everything.halves is None else everything.halves[:, index],
            count=None if everything.count is None else everything.count[index],
            exposure=None if everything.exposure is None else everything.exposure[index],
        )

    def validation(self) -> None:
        """No condition is kept for validation; arms are compared on the held-out ones."""
        return None

    def to(self, device: torch.device | str) -> ScreenData:
        """A copy on a device."""
        return self._converted(device=device)

    def astype(self, dtype: torch.dtype) -> ScreenData:
        """A copy in another float type."""
        return self._converted(dtype=dtype)

    def _converted(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ScreenData:
        copy = object.__new__(ScreenData)
        copy.__dict__.update(self.__dict__)

        def moved(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        fields = {k: moved(v) for k, v in vars(self._all).items() if isinstance(v, Tensor)}
        copy._all = replace(self._all, **fields)
        copy.train_index, copy.test_index = moved(self.train_index), moved(self.test_index)
        copy.held_rows = moved(self.held_rows)
        if self.spec.is_edge is not None:
            copy.spec = replace(self.spec, is_edge=moved(self.spec.is_edge))
        return copy


def _later(recording: Recording, name: str, *, lead: bool = False) -> Tensor | None:
    """An input on the days after the first; ``lead`` adds the axis of folds."""
    values = recording.inputs.get(name)
    if values is None:
        return None
    return values[None, :, 1:] if lead else values[:, 1:]
