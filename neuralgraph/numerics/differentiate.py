"""Time derivatives of sampled, noisy series."""

# torch leaves some of its members untyped, and scipy has no stubs:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neuralgraph.core.errors import DataError

METHODS = ("local_polynomial", "smoothing_spline", "finite_difference")


def differentiate(
    time: Tensor, state: Tensor, *, method: str, window: int, degree: int
) -> tuple[Tensor, Tensor]:
    """Smoothed state and its time derivative.

    Args:
        time: Sample times, ``(n_time,)`` shared by all runs or ``(n_run, n_time)``, strictly
            increasing, any spacing.
        state: ``(n_run, n_time, n_var)``.
        method: ``local_polynomial`` (least squares in a sliding window, Savitzky-Golay for any
            spacing), ``smoothing_spline`` (cubic, smoothness by generalised cross-validation) or
            ``finite_difference`` (second order, no smoothing).
        window: Frames in the window of ``local_polynomial``, odd; shortened to the series.
        degree: Degree of its polynomials; a polynomial of that degree is reproduced exactly.
    Returns:
        Smoothed state and derivative, ``(n_run, n_time, n_var)`` float64.
    Raises:
        DataError: unknown method, or too few frames.
    Source:
        Savitzky & Golay (1964); Woltring (1986) for the spline.
    """
    n_run, n_time, _ = state.shape
    need = {"local_polynomial": degree + 1, "smoothing_spline": 5, "finite_difference": 2}
    if method not in METHODS:
        raise DataError(f"unknown derivative method {method!r}; known: {', '.join(METHODS)}")
    if n_time < need[method]:
        raise DataError(
            f"{method} needs at least {need[method]} frames of each run, got {n_time}: record "
            "more frames, or use derivative.method=finite_difference or a lower degree"
        )
    state = state.double()
    time = time.double()
    if method == "finite_difference":
        shared = time.ndim == 1
        parts = [
            np.gradient(
                state[run].numpy(),
                (time if shared else time[run]).numpy(),
                axis=0,
                edge_order=2 if n_time > 2 else 1,
            )
            for run in range(n_run)
        ]
        return state.clone(), torch.from_numpy(np.stack(parts))
    if method == "smoothing_spline":
        return _spline(time, state)
    return _local_polynomial(time, state, window, degree)


def _local_polynomial(
    time: Tensor, state: Tensor, window: int, degree: int
) -> tuple[Tensor, Tensor]:
    n_time = state.shape[1]
    window = min(window, n_time)
    # the window slides inside the series, so that it is one-sided at both ends
    first = (torch.arange(n_time) - window // 2).clamp(0, n_time - window)
    frames = first[:, None] + torch.arange(window)
    times = time if time.ndim == 2 else time[None]
    offset = times[:, frames] - times[:, :, None]
    width = offset.abs().amax(dim=2, keepdim=True)
    powers = (offset / width)[..., None] ** torch.arange(degree + 1)
    weight = torch.linalg.pinv(powers)
    smooth = torch.zeros_like(state)
    slope = torch.zeros_like(state)
    for lag in range(window):
        part = state[:, frames[:, lag]]
        smooth += weight[:, :, 0, lag, None] * part
        slope += (weight[:, :, 1, lag, None] / width) * part
    return smooth, slope


def _spline(time: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    from scipy.interpolate import make_smoothing_spline

    smooth, slope = np.empty(state.shape), np.empty(state.shape)
    for run in range(state.shape[0]):
        t = (time if time.ndim == 1 else time[run]).numpy()
        for var in range(state.shape[2]):
            values = state[run, :, var].numpy()
            scale = float(np.ptp(values))
            if scale == 0:
                smooth[run, :, var], slope[run, :, var] = values, 0.0
                continue
            unit = (t - t[0]) / (t[-1] - t[0])
            spline = make_smoothing_spline(unit, (values - values[0]) / scale)
            smooth[run, :, var] = values[0] + scale * spline(unit)
            slope[run, :, var] = scale * spline.derivative()(unit) / (t[-1] - t[0])
    return torch.from_numpy(smooth), torch.from_numpy(slope)
