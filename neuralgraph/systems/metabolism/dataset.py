"""A metabolism Recording cut for learning: training, validation and held-out parts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.recording import Recording


@dataclass(frozen=True)
class MetabolismSpec:
    """Every size and every given tensor a model needs.

    Args:
        n_met: Number of metabolites.
        n_rxn: Number of reactions.
        met_sub, rxn_sub: Candidate substrate edges, ``(n_sub_edge,)``: the true ones with roles,
            else every candidate pair.
        met_all, rxn_all: Candidate edges with net change, ``(n_all_edge,)``: the true ones with
            support, else every (metabolite, reaction) pair.
        sign_all: ``(n_all_edge,)`` in {-1, 0 (unknown), +1}, with roles and support.
        sto_sub, sto_all: Coefficients, where given.
        order_sub: Kinetic orders on the substrate edges, where the rate-law family fixes them.
        log_k: log10 rate constants ``(n_rxn,)``, where given.
        metabolite_names, reaction_names: Public names.
        concentration_scale: Root mean square of the training concentrations, mM.
        frame_interval: Frame interval, min (median where it varies).
        input_mode: How ``inputs`` act: ``none``, ``additive``, ``multiplicative_substrate``,
            ``multiplicative_product``.
        has_roles, has_support: What was given.
        mass_balanced: Whether every reaction conserves the sum of coefficients, as far as public.
        flux_limit: Whether the data come from rates that are limited by what is left of a
            substrate, as far as public.
        n_drive: Number of known functions of time among the inputs.
        drive_sub, drive_rxn: Which of them each rate depends on, ``(n_drive_edge,)``, with roles.
    """

    n_met: int
    n_rxn: int
    met_sub: Tensor
    rxn_sub: Tensor
    met_all: Tensor
    rxn_all: Tensor
    sign_all: Tensor | None
    sto_sub: Tensor | None
    sto_all: Tensor | None
    order_sub: Tensor | None
    log_k: Tensor | None
    metabolite_names: tuple[str, ...]
    reaction_names: tuple[str, ...]
    concentration_scale: float
    frame_interval: float
    input_mode: str
    has_roles: bool
    has_support: bool
    mass_balanced: bool | None = None
    flux_limit: bool | None = None
    n_drive: int = 0
    drive_sub: Tensor | None = None
    drive_rxn: Tensor | None = None

    def moved(self, device: torch.device | str | None, dtype: torch.dtype | None) -> MetabolismSpec:
        """The same spec on another device, its floating tensors in another type."""
        changed = {
            f.name: _moved(getattr(self, f.name), device, dtype)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **changed)


@dataclass(frozen=True)
class MetabolismBatch:
    """Frames drawn together.

    Args:
        concentration: ``(n_batch, n_met)`` mM.
        dx_dt: Its time derivative, ``(n_batch, n_met)`` mM/min.
        inputs: External input at the frame, ``(n_batch, n_met)``, or known functions of time,
            ``(n_batch, n_drive)``, or ``None``.
        future: The next ``horizon`` states, ``(n_batch, horizon, n_met)``; ``None`` for 1.
        future_inputs: External input at those frames, or ``None``.
        dt: Frame interval, min.
        run, frame: Where each frame comes from, ``(n_batch,)`` long.
        time: Time of each frame, ``(n_batch,)`` min.
    """

    concentration: Tensor
    dx_dt: Tensor
    inputs: Tensor | None
    future: Tensor | None
    future_inputs: Tensor | None
    dt: float
    run: Tensor
    frame: Tensor
    time: Tensor

    def __len__(self) -> int:
        return self.concentration.shape[0]


class HeldOut(NamedTuple):
    """One held-out trajectory: times ``(n_time,)``, states and derivatives ``(n_time, n_met)``."""

    time: Tensor
    state: Tensor
    dx_dt: Tensor | None
    inputs: Tensor | None


class MetabolismData:
    """Training, validation and held-out parts of one recording.

    Held out are the runs the recording flags as such; else, with five runs or more, the last
    fifth of the runs; else the last fifth of each run's frames. Validation takes whole runs,
    evenly spread, where at least five are left for training, else the last training frames of
    each run.

    Args:
        recording: What was measured.
        given: What the learner is told (``simulator.reveal``).
        validation_fraction: Fraction of the training runs (or frames) set aside, in [0, 0.5].
    Raises:
        ConfigError: a fraction that cannot work.
        DataError: concentrations that are negative, no derivatives, too few frames, or given
            tensors that do not match the recording.
    """

    def __init__(
        self,
        recording: Recording,
        given: Mapping[str, Tensor],
        *,
        validation_fraction: float,
    ) -> None:
        if not 0 <= validation_fraction <= 0.5:
            raise ConfigError(
                f"dataset.validation_fraction must lie in [0, 0.5], got {validation_fraction}"
            )
        _check(recording)
        self.dtype = recording.state.dtype
        n_run, n_time, n_met = recording.state.shape
        frames = torch.arange(n_time)
        part = torch.zeros(n_run, n_time, dtype=torch.long)  # 0 train, 1 validation, 2 test
        if recording.is_test is not None and bool(recording.is_test.any()):
            held = recording.is_test
            if bool(held.all()):
                raise DataError("every run is flagged as held out: none is left to train on")
            n_held = int(held.sum())
            self.test_description = f"{n_held} held-out initial condition" + "s" * (n_held > 1)
            part[held] = 2
        elif n_run >= 5:
            held = torch.arange(n_run) >= n_run - n_run // 5
            n_held = int(held.sum())
            self.test_description = (
                f"the last {n_held} of {n_run} runs"
                if n_held > 1
                else (f"the last of {n_run} runs")
            )
            part[held] = 2
        else:
            first = n_time - max(2, n_time // 5)
            if first < 2:
                raise DataError(
                    f"{n_run} run(s) of {n_time} frames are too few to hold out the last fifth: "
                    "record at least 5 frames of each run, or 5 runs"
                )
            self.test_description = (
                "last fifth of the single trajectory"
                if n_run == 1
                else f"last fifth of each of the {n_run} trajectories"
            )
            part[:, first:] = 2
        train_run = torch.nonzero((part == 0).any(1)).flatten()
        if validation_fraction > 0:
            if len(train_run) >= 5:
                n = max(1, round(validation_fraction * len(train_run)))
                at = ((torch.arange(n, dtype=torch.float64) + 0.5) * len(train_run) / n).long()
                part[train_run[at]] = 1
            else:
                n_free = int((part[train_run[0]] == 0).sum())
                n = max(1, round(validation_fraction * n_free))
                if n_free - n < 1:
                    raise DataError(
                        f"{n_free} training frames of each run are too few to set "
                        f"{validation_fraction:g} of them aside: lower dataset.validation_fraction"
                    )
                part[train_run, n_free - n : n_free] = 1

        flat = part.reshape(-1)
        run_of = torch.arange(n_run)[:, None].expand(n_run, n_time).reshape(-1)
        frame_of = frames.expand(n_run, n_time).reshape(-1)
        keep = torch.cat([torch.nonzero(flat == 0), torch.nonzero(flat == 1)]).flatten()
        self.n_train = int((flat == 0).sum())
        self.n_validation = int((flat == 1).sum())
        self._state = recording.state.reshape(-1, n_met)[keep].to(self.dtype)
        assert recording.dx_dt is not None
        self._dx_dt = recording.dx_dt.reshape(-1, n_met)[keep].to(self.dtype)
        external = recording.inputs.get("external_input", recording.inputs.get("time_dependent"))
        self._inputs = None if external is None else external.flatten(0, 1)[keep].to(self.dtype)
        self._run, self._frame = run_of[keep], frame_of[keep]
        self._time = recording.time.reshape(-1)[keep].to(self.dtype)
        # frames of the same run and part that follow each frame without a gap
        same = (self._run[1:] == self._run[:-1]) & (self._frame[1:] == self._frame[:-1] + 1)
        same[self.n_train - 1 : self.n_train] = False
        block_end = torch.cat([torch.nonzero(~same).flatten(), torch.tensor([len(keep) - 1])])
        at = torch.arange(len(keep))
        self._follows = block_end[torch.searchsorted(block_end, at)] - at

        self.test: list[HeldOut] = []
        for run in range(n_run):
            held = torch.nonzero(part[run] == 2).flatten()
            if not len(held):
                continue
            self.test.append(
                HeldOut(
                    recording.time[run, held].to(self.dtype),
                    recording.state[run, held].to(self.dtype),
                    recording.dx_dt[run, held].to(self.dtype),
                    None if external is None else external[run, held].to(self.dtype),
                )
            )
        step = recording.time.diff(dim=1)
        interval = float(step.median())
        self._is_even = bool(((step - interval).abs() <= 1e-6 * interval).all())
        self.dx_dt_source = recording.dx_dt_source
        self.time_unit = recording.units.get("time", "min")
        self.concentration_unit = recording.units.get("state", "mM")
        self.notes: list[str] = []
        """Sentences for the top of the report about what does not suit these data."""
        scale = float(self._state[: self.n_train].double().square().mean().sqrt())
        self.spec = _spec(recording, given, scale if scale > 0 else 1.0, interval)
        self.spec = self.spec.moved(None, self.dtype)

    # -- frames -------------------------------------------------------------------------------

    def batch(self, index: Tensor, horizon: int = 1) -> MetabolismBatch:
        """Training frames by index, with the ``horizon`` states that follow when above 1.

        Args:
            index: ``(n_batch,)`` long, below ``n_train``; from :meth:`starts` when horizon > 1.
            horizon: Steps of a rollout.
        Raises:
            DataError: a rollout that would leave its run, or frames that are unevenly spaced.
        """
        future = future_inputs = None
        if horizon > 1:
            self._need_even()
            if bool((self._follows[index] < horizon).any()):
                raise DataError(
                    f"a rollout of {horizon} steps leaves its run: draw the first frames from "
                    f"data.starts({horizon})"
                )
            ahead = index[:, None] + torch.arange(1, horizon + 1, device=index.device)
            future = self._state[ahead]
            future_inputs = None if self._inputs is None else self._inputs[ahead]
        return self._take(index, future, future_inputs)

    def starts(self, horizon: int) -> Tensor:
        """Training frames from which ``horizon`` steps stay inside one run, ``(n,)`` long.

        With a horizon of 1 a frame is judged by its own derivative, so every frame will do.
        """
        if horizon <= 1:
            return torch.arange(self.n_train, device=self._follows.device)
        self._need_even()
        found = torch.nonzero(self._follows[: self.n_train] >= horizon).flatten()
        if not len(found):
            raise DataError(
                f"no training run is longer than {horizon} steps: the longest has "
                f"{int(self._follows[: self.n_train].max()) + 1} frames in a row, use a shorter "
                "loop.time_step"
            )
        return found

    @property
    def train(self) -> MetabolismBatch:
        """Every training frame."""
        return self._take(torch.arange(self.n_train, device=self._state.device), None, None)

    def validation(self) -> MetabolismBatch | None:
        """Every validation frame, or ``None``."""
        if not self.n_validation:
            return None
        index = torch.arange(
            self.n_train, self.n_train + self.n_validation, device=self._state.device
        )
        return self._take(index, None, None)

    def _take(
        self, index: Tensor, future: Tensor | None, future_inputs: Tensor | None
    ) -> MetabolismBatch:
        return MetabolismBatch(
            concentration=self._state[index],
            dx_dt=self._dx_dt[index],
            inputs=None if self._inputs is None else self._inputs[index],
            future=future,
            future_inputs=future_inputs,
            dt=self.spec.frame_interval,
            run=self._run[index],
            frame=self._frame[index],
            time=self._time[index],
        )

    def _need_even(self) -> None:
        if not self._is_even:
            raise DataError(
                "rollouts of several steps need evenly spaced frames, and the intervals of this "
                "recording differ: resample it, or set loop.recurrent_training=false"
            )

    # -- where it lives -----------------------------------------------------------------------

    def to(self, device: torch.device | str) -> MetabolismData:
        """The same data on a device."""
        return self._copy(device, None)

    def astype(self, dtype: torch.dtype) -> MetabolismData:
        """The same data in another floating type."""
        return self._copy(None, dtype)

    def _copy(self, device: torch.device | str | None, dtype: torch.dtype | None) -> MetabolismData:
        other = object.__new__(type(self))
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                value = _moved(value, device, dtype)
            setattr(other, name, value)
        other.spec = self.spec.moved(device, dtype)
        other.test = [HeldOut(*(_moved(v, device, dtype) for v in held)) for held in self.test]
        other.dtype = dtype or self.dtype
        other.notes = list(self.notes)
        return other

    def note(self, sentence: str) -> None:
        """Keep a sentence for the report, once, and log it as a warning."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            logging.getLogger("neuralgraph").warning(sentence)


def _moved(value: Any, device: torch.device | str | None, dtype: torch.dtype | None) -> Any:
    if value is None:
        return None
    if dtype is not None and value.is_floating_point():
        value = value.to(dtype)
    return value if device is None else value.to(device)


def _check(recording: Recording) -> None:
    low = recording.state.amin()
    if bool(low < 0):
        run, frame, met = (recording.state < 0).nonzero()[0].tolist()
        raise DataError(
            f"concentrations must not be negative, got {float(low):g} (first: "
            f"{recording.names[met]}, run {run}, frame {frame}): clip or drop such values first"
        )
    if recording.dx_dt is None:
        raise DataError(
            "the recording has no time derivatives and the metabolism dataset needs them: "
            "estimate them with neuralgraph.numerics.differentiate, as simulator="
            "metabolism_recorded does"
        )
    if recording.n_time < 2:
        raise DataError(f"at least 2 frames of each run are needed, got {recording.n_time}")


def _spec(
    recording: Recording, given: Mapping[str, Tensor], scale: float, interval: float
) -> MetabolismSpec:
    n_met = recording.n_var
    if "n_rxn" not in given:
        raise DataError("'n_rxn' is missing from what is given: call simulator.reveal first")
    n_rxn = int(given["n_rxn"])
    names = tuple(str(n) for n in recording.provenance.get("reaction_names", ()))
    if not names:
        names = tuple(f"R{j + 1}" for j in range(n_rxn))
    if len(names) != n_rxn:
        raise DataError(f"{n_rxn} reactions are given but {len(names)} are named")
    for side in ("met", "rxn"):
        size = n_met if side == "met" else n_rxn
        for suffix in ("sub", "all"):
            index = given.get(f"{side}_{suffix}")
            if (
                index is not None
                and index.numel()
                and not (int(index.min()) >= 0 and int(index.max()) < size)
            ):
                what = "metabolites" if side == "met" else "reactions"
                raise DataError(
                    f"the stoichiometric matrix does not match the data: its edges reach "
                    f"{what[:-1]} number {int(index.max())}, the recording has {size} {what}"
                )
    has_support, has_roles = "met_all" in given, "met_sub" in given
    if has_support:
        met_all, rxn_all = given["met_all"], given["rxn_all"]
    else:
        rxn_all = torch.arange(n_rxn).repeat_interleave(n_met)
        met_all = torch.arange(n_met).repeat(n_rxn)
    met_sub, rxn_sub = (given["met_sub"], given["rxn_sub"]) if has_roles else (met_all, rxn_all)
    for name, size, of in (
        ("rxn_sub", len(met_sub), "met_sub"),
        ("sto_sub", len(met_sub), "met_sub"),
        ("order_sub", len(met_sub), "met_sub"),
        ("rxn_all", len(met_all), "met_all"),
        ("sto_all", len(met_all), "met_all"),
        ("sign_all", len(met_all), "met_all"),
        ("log_k", n_rxn, "n_rxn"),
    ):
        if name in given and len(given[name]) != size:
            raise DataError(
                f"given '{name}' must have {size} entries, as {of} says; got {len(given[name])}"
            )
    drives = recording.inputs.get("time_dependent")
    return MetabolismSpec(
        n_met=n_met,
        n_rxn=n_rxn,
        met_sub=met_sub.clone(),
        rxn_sub=rxn_sub.clone(),
        met_all=met_all.clone(),
        rxn_all=rxn_all.clone(),
        sign_all=given.get("sign_all"),
        sto_sub=given.get("sto_sub"),
        sto_all=given.get("sto_all"),
        order_sub=given.get("order_sub"),
        log_k=given.get("log_k"),
        metabolite_names=recording.names,
        reaction_names=names,
        concentration_scale=scale,
        frame_interval=interval,
        input_mode=str(recording.provenance.get("external_input_mode", "none")),
        n_drive=0 if drives is None or "external_input" in recording.inputs else drives.shape[-1],
        drive_sub=given.get("drive_sub"),
        drive_rxn=given.get("drive_rxn"),
        has_roles=has_roles,
        has_support=has_support,
        mass_balanced=recording.provenance.get("mass_balanced"),
        flux_limit=recording.provenance.get("flux_limit"),
    )
