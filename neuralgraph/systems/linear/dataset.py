"""Frames of a linear network, cut for learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralgraph.core.bounds import Part
from neuralgraph.core.errors import DataError
from neuralgraph.core.recording import Recording


@dataclass(frozen=True)
class LinearSpec:
    """Sizes and given facts a model is built from."""

    n_var: int
    is_edge: Tensor | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class LinearBatch:
    """Frames of a batch.

    ``state`` and ``dx_dt`` are ``(n_batch, n_var)``; ``future`` holds the next states for rollouts,
    ``(n_batch, horizon, n_var)``, ``dt`` apart.
    """

    state: Tensor
    dx_dt: Tensor
    future: Tensor | None
    dt: float


class LinearData:
    """Training frames, and held-out trajectories for the judge.

    Without exact derivatives they are central differences of the state (second order).

    Args:
        recording: What was measured.
        given: What the learner is told (``is_edge`` or nothing).
        validation_fraction: Share of the training trajectories kept for the validation loss.
    """

    def __init__(
        self, recording: Recording, given: Mapping[str, Tensor], *, validation_fraction: Part
    ) -> None:
        if recording.n_time < 3:
            raise DataError(f"a trajectory needs at least 3 frames, got {recording.n_time}")
        dx_dt = recording.dx_dt
        if dx_dt is None:
            dx_dt = torch.stack(
                [
                    torch.gradient(x, spacing=(t,), dim=0)[0]
                    for x, t in zip(recording.state, recording.time, strict=True)
                ]
            )
        is_test = recording.is_test
        if is_test is None:
            is_test = torch.zeros(recording.n_run, dtype=torch.bool)
        learn = (~is_test).nonzero()[:, 0]
        n_validation = int(validation_fraction * learn.numel())
        train, held = learn[: learn.numel() - n_validation], learn[learn.numel() - n_validation :]
        self.spec = LinearSpec(recording.n_var, given.get("is_edge"), recording.names)
        self.dt = float(recording.time[0, 1] - recording.time[0, 0])
        self.n_time = recording.n_time
        self.state = recording.state[train].flatten(0, 1)
        self.dx_dt = dx_dt[train].flatten(0, 1)
        self.validation_state = recording.state[held].flatten(0, 1)
        self.validation_dx_dt = dx_dt[held].flatten(0, 1)
        self.test_time = recording.time[is_test]
        self.test_state = recording.state[is_test]

    def starts(self, horizon: int) -> Tensor:
        """Frames that are followed by ``horizon - 1`` more of their trajectory."""
        index = torch.arange(self.state.shape[0])
        if horizon == 1:
            return index
        return index[index % self.n_time + horizon < self.n_time]

    def batch(self, index: Tensor, horizon: int = 1) -> LinearBatch:
        """Frames by index, with the next ``horizon`` states where asked for."""
        index = index.to(self.state.device)
        future = None
        if horizon > 1:
            ahead = index[:, None] + torch.arange(1, horizon + 1, device=index.device)
            future = self.state[ahead]
        return LinearBatch(self.state[index], self.dx_dt[index], future, self.dt)

    def validation(self) -> LinearBatch | None:
        """Validation frames, or ``None``."""
        if self.validation_state.shape[0] == 0:
            return None
        return LinearBatch(self.validation_state, self.validation_dx_dt, None, self.dt)

    def to(self, device: torch.device | str) -> LinearData:
        """A copy on a device."""
        return self._converted(device=device)

    def astype(self, dtype: torch.dtype) -> LinearData:
        """A copy in another float type."""
        return self._converted(dtype=dtype)

    def _converted(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LinearData:
        copy = object.__new__(LinearData)
        copy.__dict__.update(self.__dict__)
        for name, value in self.__dict__.items():
            if isinstance(value, Tensor):
                setattr(copy, name, value.to(device=device, dtype=dtype))
        if self.spec.is_edge is not None:
            copy.spec = replace(self.spec, is_edge=self.spec.is_edge.to(device=device))
        return copy
