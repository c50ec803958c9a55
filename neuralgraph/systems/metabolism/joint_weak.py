r"""The weak form: equations averaged over windows of time, which need no derivative.

$-\int \dot\phi\, c_i\, dt = \int \phi\, \dot c_i\, dt$ for bumps $\phi = (1 - u^2)^2$ that vanish
at the ends of their window; noise in c enters the left side through $\dot\phi$, averaged over the
window, and never through a difference of neighbouring frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from neuralgraph.core.errors import DataError
from neuralgraph.systems.metabolism.joint_data import KineticData

LONGEST_WINDOW = 40
"""Frame intervals of a window."""
SHORTEST_WINDOW = 6
PER_WINDOW = 8
"""Windows that overlap at any time."""


def weak_form(
    data: KineticData, time: Tensor, pieces: Sequence[tuple[int, int]], known: Tensor | None
) -> KineticData:
    """The same network with equations averaged over windows in place of those at frames.

    Args:
        data: Frames and graph; ``target`` is not used.
        time: Time of each frame, ``(n_frame,)``.
        pieces: First frame of each run and the frame after its last.
        known: Known part of dc/dt at each frame, ``(n_frame, n_met)``, or ``None``.

    Raises:
        DataError: every run is shorter than a window.

    Source:
        weak form of sparse regression, after Messenger & Bortz (2021).
    """
    rows: list[Tensor] = []
    columns: list[Tensor] = []
    weights: list[Tensor] = []
    slopes: list[Tensor] = []
    n_window = 0
    for first, stop in pieces:
        length = min(LONGEST_WINDOW, (stop - first) // 2 // 2 * 2)
        if length < SHORTEST_WINDOW:
            continue
        offset = torch.arange(length + 1)
        starts = torch.arange(first, stop - length, max(1, length // PER_WINDOW))
        frame = starts[:, None] + offset
        at = time[frame]
        u = 2 * (at - at[:, :1]) / (at[:, -1:] - at[:, :1]) - 1
        step = torch.zeros_like(at)  # trapezoidal weights, for any spacing
        step[:, 1:] += 0.5 * at.diff(dim=1)
        step[:, :-1] += 0.5 * at.diff(dim=1)
        half = 0.5 * (at[:, -1:] - at[:, :1])
        rows.append((n_window + torch.arange(len(starts)))[:, None].expand_as(frame).flatten())
        columns.append(frame.flatten())
        weights.append((step * (1 - u.square()).square()).flatten())
        slopes.append((step * 4 * u * (1 - u.square()) / half).flatten())
        n_window += len(starts)
    if not n_window:
        raise DataError(
            f"concentrations alone need runs of at least {2 * SHORTEST_WINDOW} frames: record "
            "longer runs, or use loop.fit_to=derivative"
        )
    index = torch.stack([torch.cat(rows), torch.cat(columns)])
    shape = (n_window, data.n_frame)
    window = torch.sparse_coo_tensor(
        index, torch.cat(weights), shape, check_invariants=True
    ).coalesce()
    moved = torch.sparse_coo_tensor(
        index, torch.cat(slopes), shape, check_invariants=True
    ).coalesce()
    target = torch.sparse.mm(moved, data.concentration)
    if known is not None:
        target = target - torch.sparse.mm(window, known)
    return replace(data, target=target, window=window)
