"""Recording (what was measured), Truth (what only a simulator knows), and their files."""

# torch leaves some of its members untyped:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralgraph.core.errors import DataError

FORMAT = 1


@dataclass(frozen=True)
class Recording:
    """What a laboratory would have on disk: states in time, and how they were obtained.

    Args:
        time: Sample times, ``(n_run, n_time)``, strictly increasing along each run.
        state: Measured state, ``(n_run, n_time, n_var)``.
        names: One name per variable, length ``n_var``.
        dx_dt: Time derivative of the state, same shape, or ``None`` when it must be estimated.
        dx_dt_source: ``exact`` (the simulator's own right-hand side), ``measured`` (that with
            noise), ``estimated`` (from the state), or ``none``.
        inputs: Known external inputs by name, each ``(n_run, n_time, …)``.
        graph: Known, public index tensors (never a hidden parameter).
        units: Unit of each quantity, e.g. ``{"time": "min", "state": "mM"}``.
        provenance: Plain facts for the report: design, source, warnings.
        is_test: ``(n_run,)`` bool, runs held out from training by design; ``None``: none are.
    """

    time: Tensor
    state: Tensor
    names: tuple[str, ...]
    dx_dt: Tensor | None = None
    dx_dt_source: str = "none"
    inputs: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    graph: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    units: Mapping[str, str] = field(default_factory=dict[str, str])
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_test: Tensor | None = None

    def __post_init__(self) -> None:
        if self.state.ndim != 3:
            raise DataError(
                f"Recording.state must be (n_run, n_time, n_var), got shape "
                f"{tuple(self.state.shape)}"
            )
        n_run, n_time, n_var = self.state.shape
        if tuple(self.time.shape) != (n_run, n_time):
            raise DataError(
                f"Recording.time must be (n_run, n_time) = ({n_run}, {n_time}), got "
                f"{tuple(self.time.shape)}"
            )
        if len(self.names) != n_var:
            raise DataError(f"Recording.names must name {n_var} variables, got {len(self.names)}")
        if self.is_test is not None and tuple(self.is_test.shape) != (n_run,):
            raise DataError(
                f"Recording.is_test must be (n_run,) = ({n_run},), got {tuple(self.is_test.shape)}"
            )
        if len(set(self.names)) != n_var:
            twice = sorted({n for n in self.names if list(self.names).count(n) > 1})
            raise DataError(f"variable names must be unique; these occur twice: {twice[:5]}")
        if self.dx_dt is not None and self.dx_dt.shape != self.state.shape:
            raise DataError(
                f"Recording.dx_dt must have the shape of state {tuple(self.state.shape)}, got "
                f"{tuple(self.dx_dt.shape)}"
            )
        for what, values in (("state", self.state), ("time", self.time), ("dx_dt", self.dx_dt)):
            if values is not None and not torch.isfinite(values).all():
                at = tuple((~torch.isfinite(values)).nonzero()[0].tolist())
                name = f" ({self.names[at[2]]})" if len(at) == 3 else ""
                raise DataError(
                    f"{what} holds a value that is not finite (NaN or infinite), first at run "
                    f"{at[0]}, frame {at[1]}{name}: remove the frame or fill the gap first"
                )
        if n_time > 1:
            step = self.time.diff(dim=1)
            if not (step > 0).all():
                run, frame = (step <= 0).nonzero()[0].tolist()
                raise DataError(
                    f"time must increase along each run; run {run} goes from "
                    f"{float(self.time[run, frame]):g} to {float(self.time[run, frame + 1]):g} "
                    f"between frames {frame} and {frame + 1}: sort the frames, and give repeated "
                    "experiments a run column"
                )

    @property
    def n_run(self) -> int:
        """Number of runs (independent trajectories)."""
        return self.state.shape[0]

    @property
    def n_time(self) -> int:
        """Number of frames of each run."""
        return self.state.shape[1]

    @property
    def n_var(self) -> int:
        """Number of state variables."""
        return self.state.shape[2]

    def save(self, path: Path | str) -> None:
        """Write atomically; :meth:`load` reads it back bit by bit."""
        save_tensors(path, {"kind": "recording", **_plain(self)})

    @classmethod
    def load(cls, path: Path | str) -> Recording:
        """Read what :meth:`save` wrote (``weights_only``, so no code runs)."""
        content = load_tensors(path, kind="recording")
        content["names"] = tuple(content["names"])
        return cls(**content)


@dataclass(frozen=True)
class Truth:
    """What only a simulator knows. It reaches the evaluator, and nothing else.

    Args:
        parameters: Hidden parameters by name.
        facts: Plain facts about them (type names, rate-law family …).
    """

    parameters: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def save(self, path: Path | str) -> None:
        """Write atomically."""
        save_tensors(
            path,
            {
                "kind": "truth",
                "parameters": dict(self.parameters),
                "facts": dict(self.facts),
            },
        )

    @classmethod
    def load(cls, path: Path | str) -> Truth:
        """Read what :meth:`save` wrote."""
        return cls(**load_tensors(path, kind="truth"))


def _plain(recording: Recording) -> dict[str, Any]:
    return {
        "time": recording.time,
        "state": recording.state,
        "names": list(recording.names),
        "dx_dt": recording.dx_dt,
        "dx_dt_source": recording.dx_dt_source,
        "inputs": dict(recording.inputs),
        "graph": dict(recording.graph),
        "units": dict(recording.units),
        "provenance": dict(recording.provenance),
        "is_test": recording.is_test,
    }


def save_tensors(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write a dictionary of tensors and plain values to ``path``, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, path)


def load_tensors(path: Path | str, *, kind: str) -> dict[str, Any]:
    """Read a file of :func:`save_tensors`, and say plainly when it is something else."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no {kind} file at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(
            f"{path} cannot be read as a neuralgraph {kind} ({type(error).__name__}): the file is "
            "broken or was written by another program"
        ) from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        found = content.get("kind", "no kind") if isinstance(content, dict) else type(content)
        raise DataError(f"{path} is no neuralgraph {kind}: it holds {found}")
    if content["format"] != FORMAT:
        raise DataError(
            f"{path} has format {content['format']}, this version reads {FORMAT}: simulate again"
        )
    return {k: v for k, v in content.items() if k not in ("kind", "format")}
