"""Transitions of a Boolean network, cut for learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralgraph.core.bounds import Part
from neuralgraph.core.errors import DataError
from neuralgraph.core.recording import Recording


@dataclass(frozen=True)
class TransitionSpec:
    """Sizes and given facts a model is built from.

    Args:
        n_gene: Number of genes.
        names: Their names.
        is_edge: ``(n_gene, n_gene)`` bool ``[source, target]``, or ``None``.
        is_asynchronous: One gene changes at a time.
    """

    n_gene: int
    names: tuple[str, ...]
    is_edge: Tensor | None
    is_asynchronous: bool


@dataclass(frozen=True)
class TransitionBatch:
    """States and the states after them, both ``(n_batch, n_gene)``, 0 or 1."""

    state: Tensor
    following: Tensor
    is_asynchronous: bool


class TransitionData:
    """Pairs of successive states to learn from, and held-out trajectories.

    Args:
        recording: Trajectories of zeros and ones.
        given: ``is_edge`` or nothing.
        validation_fraction: Share of the training trajectories kept for the validation loss.
    """

    def __init__(
        self, recording: Recording, given: Mapping[str, Tensor], *, validation_fraction: Part
    ) -> None:
        if not ((recording.state == 0) | (recording.state == 1)).all():
            raise DataError("a Boolean network has states 0 and 1: threshold the data first")
        if recording.n_time < 2:
            raise DataError("a trajectory needs at least 2 frames to hold a transition")
        is_test = recording.is_test
        if is_test is None:
            is_test = torch.zeros(recording.n_run, dtype=torch.bool)
        learn = (~is_test).nonzero()[:, 0]
        n_validation = int(validation_fraction * learn.numel())
        cut = learn.numel() - n_validation
        self.spec = TransitionSpec(
            recording.n_var,
            recording.names,
            given.get("is_edge"),
            recording.provenance.get("update") == "asynchronous",
        )
        state = recording.state
        self.state = state[learn[:cut], :-1].flatten(0, 1)
        self.following = state[learn[:cut], 1:].flatten(0, 1)
        self.validation_state = state[learn[cut:], :-1].flatten(0, 1)
        self.validation_following = state[learn[cut:], 1:].flatten(0, 1)
        self.test_state = state[is_test]

    def starts(self, horizon: int) -> Tensor:
        """Every pair; there are no longer horizons."""
        return torch.arange(self.state.shape[0])

    def batch(self, index: Tensor, horizon: int = 1) -> TransitionBatch:
        """Pairs by index."""
        index = index.to(self.state.device)
        return TransitionBatch(self.state[index], self.following[index], self.spec.is_asynchronous)

    def validation(self) -> TransitionBatch | None:
        """Validation pairs, or ``None``."""
        if self.validation_state.shape[0] == 0:
            return None
        return TransitionBatch(
            self.validation_state, self.validation_following, self.spec.is_asynchronous
        )

    def to(self, device: torch.device | str) -> TransitionData:
        """A copy on a device."""
        return self._converted(device=device)

    def astype(self, dtype: torch.dtype) -> TransitionData:
        """A copy in another float type."""
        return self._converted(dtype=dtype)

    def _converted(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> TransitionData:
        copy = object.__new__(TransitionData)
        copy.__dict__.update(self.__dict__)
        for name, value in self.__dict__.items():
            if isinstance(value, Tensor):
                setattr(copy, name, value.to(device=device, dtype=dtype))
        if self.spec.is_edge is not None:
            copy.spec = replace(self.spec, is_edge=self.spec.is_edge.to(device=device))
        return copy
