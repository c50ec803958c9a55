"""One door to ODE solvers: adaptive steps through torchdiffeq, fixed steps batched over runs.

Failures come back in words: which variable, at what time, and what to try.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# (torch types parts of its own methods as unknown, torchdiffeq has no types)
from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neuralgraph.core.errors import SolverError, nearest

Rhs = Callable[[Tensor, Tensor], Tensor]

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun", "rk4", "adams")

# Butcher tableaus (nodes, rows, weights) of the fixed-step methods; order in the comment.
_TABLEAU: dict[str, tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "euler": ((0.0,), ((),), (1.0,)),  # 1
    "midpoint": ((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),  # 2
    "heun": ((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),  # 2
    "rk4": (
        (0.0, 0.5, 0.5, 1.0),
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),  # 4
}


# Adams of order 4, weights of the newest rate first; the corrector begins with the new state's.
_PREDICTOR = (55 / 24, -59 / 24, 37 / 24, -9 / 24)
_CORRECTOR = (9 / 24, 19 / 24, -5 / 24, 1 / 24)


class DivergedError(SolverError):
    """A trajectory that left every bound, or a step that shrank to nothing.

    Args:
        message: The sentence for the user.
        time: Time at which it was noticed.
        variable: Name of the variable that went first.
        run: Index of the run, ``None`` where there is only one.
    """

    def __init__(self, message: str, *, time: float, variable: str, run: int | None) -> None:
        super().__init__(message)
        self.time = time
        self.variable = variable
        self.run = run


def integrate(
    rhs: Rhs,
    x0: Tensor,
    times: Tensor,
    *,
    method: str = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-8,
    max_steps: int = 1_000_000,
    names: Sequence[str] | None = None,
    adjoint: Sequence[Tensor] | None = None,
) -> Tensor:
    """Solve ``dx/dt = rhs(t, x)`` with an adaptive step.

    Runs are integrated together and share their steps; use :func:`rollout` for steps that do not
    depend on the neighbours.

    Args:
        rhs: Maps a scalar time and ``(*n_run, n_var)`` to derivatives of the same shape.
        x0: Start, ``(*n_run, n_var)``.
        times: Output times, ``(n_time,)``, strictly increasing; the first is the start.
        method: One of ``dopri5`` (order 5), ``dopri8``, ``bosh3``, ``fehlberg2``,
            ``adaptive_heun``.
        rtol: Relative error allowed in each step.
        atol: Absolute error allowed in each step, in units of the state.
        max_steps: Steps allowed between two output times.
        names: Names of the ``n_var`` variables, for messages.
        adjoint: Parameters of ``rhs`` whose gradient is found by integrating the adjoint equation
            backwards, in memory that does not grow with the steps; ``None`` differentiates
            through the steps.
    Returns:
        States, ``(n_time, *n_run, n_var)``.
    Raises:
        SolverError: unknown method, bad times or tolerances; as :class:`DivergedError` when the
            step underflows, too many steps are needed or a value is not finite.
    Source:
        torchdiffeq; Dormand & Prince (1980) for the default; Chen et al. (2018) for the adjoint.
    """
    if method not in ADAPTIVE:
        hint = " (a fixed-step method: call rollout)" if method in FIXED else ""
        raise SolverError(f"unknown adaptive method '{method}'{hint}: {nearest(method, ADAPTIVE)}")
    if rtol <= 0 or atol <= 0:
        raise SolverError(f"rtol and atol must be positive, got {rtol:g} and {atol:g}")
    _check(x0, times, names)
    from torchdiffeq import odeint, odeint_adjoint

    last: dict[str, Any] = {"time": float(times[0]), "state": x0, "rate": torch.zeros_like(x0)}

    def watched(t: Tensor, x: Tensor) -> Tensor:
        rate = rhs(t, x)
        if not bool(torch.isfinite(rate.detach()).all()):
            finite = bool(torch.isfinite(x.detach()).all())
            what = "the derivative is not finite" if finite else "the state is not finite"
            _raise_first(what, rate if finite else x, float(t), names)
        last.update(time=float(t), state=x.detach(), rate=rate.detach())
        return rate

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*converting a tensor with requires_grad.*")
            solve = odeint if adjoint is None else odeint_adjoint
            solution = solve(
                watched,
                x0,
                times.to(x0.dtype),
                method=method,
                rtol=rtol,
                atol=atol,
                options={"max_num_steps": max_steps},
                **({} if adjoint is None else {"adjoint_params": tuple(adjoint)}),
            )
    except AssertionError as error:
        speed = last["rate"].abs() / (last["state"].abs() + atol / rtol)
        at = _position(int(speed.flatten().argmax()), speed.shape)
        variable = _name(at[-1], names)
        too_many = "max_num_steps" in str(error)
        what = f"needs more than {max_steps} steps" if too_many else "underflows its step"
        raise DivergedError(
            f"the solver '{method}' {what} at t = {last['time']:g}; fastest there is "
            f"{variable} (value {float(last['state'][at]):.4g}, derivative "
            f"{float(last['rate'][at]):.4g}): loosen rtol (now {rtol:g}), shorten the time span, "
            "or check the rate constants that act on it (a stiff system needs larger tolerances "
            "or fixed steps)",
            time=last["time"],
            variable=variable,
            run=at[0] if len(at) > 1 else None,
        ) from error
    assert isinstance(solution, Tensor)
    return solution


def rollout(
    rhs: Rhs,
    x0: Tensor,
    times: Tensor,
    *,
    method: str = "rk4",
    n_substep: int = 1,
    bound: float = 1e12,
    names: Sequence[str] | None = None,
) -> Tensor:
    r"""Solve ``dx/dt = rhs(t, x)`` with fixed steps from one output time to the next.

    All runs advance together in one batched call of ``rhs`` per stage; a run's numbers do not
    depend on the others. The error falls with the step as $h^p$, p = 1 (``euler``), 2
    (``midpoint``, ``heun``), 4 (``rk4``, ``adams``). ``adams`` predicts and corrects (PECE, two
    calls of ``rhs`` a step in place of four); it takes a step of ``rk4`` where fewer than three
    equal steps lie behind, as after a change of the frame interval of any run.

    Args:
        rhs: Maps times ``(n_run,)`` and states ``(n_run, n_var)`` to derivatives
            ``(n_run, n_var)``.
        x0: Start, ``(n_run, n_var)``.
        times: Output times, ``(n_time,)`` for all runs or ``(n_run, n_time)``, increasing.
        method: ``euler``, ``midpoint``, ``heun``, ``rk4`` or ``adams``.
        n_substep: Equal steps between two output times, at least 1.
        bound: A state beyond this magnitude counts as diverged.
        names: Names of the ``n_var`` variables, for messages.
    Returns:
        States, ``(n_run, n_time, n_var)``; the first frame is ``x0``.
    Raises:
        SolverError: unknown method or bad arguments; as :class:`DivergedError` when a state is
            not finite or exceeds ``bound``, naming run, variable and time.
    Source:
        Hairer, Nørsett & Wanner (1993), sections II.1 and III.1.
    """
    if method not in FIXED:
        hint = " (an adaptive method: call integrate)" if method in ADAPTIVE else ""
        raise SolverError(f"unknown fixed-step method '{method}'{hint}: {nearest(method, FIXED)}")
    if n_substep < 1:
        raise SolverError(f"n_substep must be at least 1, got {n_substep}")
    if x0.ndim != 2:
        raise SolverError(f"x0 must be (n_run, n_var), got shape {tuple(x0.shape)}")
    grid = times.to(x0)
    if grid.ndim == 1:
        grid = grid.expand(x0.shape[0], -1)
    if grid.shape[0] != x0.shape[0]:
        raise SolverError(
            f"times must be (n_time,) or (n_run, n_time) with n_run = {x0.shape[0]}, got "
            f"{tuple(times.shape)}"
        )
    _check(x0, grid[0], names)
    tableau = _TABLEAU["rk4" if method == "adams" else method]
    state = x0
    frames = [x0]
    past: list[Tensor] = []  # rates at the newest states first, all one step apart
    last = grid.new_zeros(grid.shape[0])
    for frame in range(1, grid.shape[1]):
        start = grid[:, frame - 1]
        step = (grid[:, frame] - start) / n_substep
        if not bool(torch.isclose(step, last, rtol=1e-9, atol=0.0).all()):
            past = past[:1]
        last = step
        for substep in range(n_substep):
            now = start + substep * step
            if method != "adams":
                state = _runge_kutta(rhs, now, state, step, tableau, None)
                continue
            past = past or [rhs(now, state)]
            if len(past) < 4:
                state = _runge_kutta(rhs, now, state, step, tableau, past[0])
            else:
                state = _adams(rhs, now + step, state, step, past)
            past = [rhs(now + step, state), *past[:3]]
        size = state.detach().abs()
        if not bool((size <= bound).all()):  # NaN fails the comparison too
            beyond = torch.where(size <= bound, state.detach(), torch.nan)
            run = int((~(size <= bound)).any(1).nonzero()[0])
            _raise_first(
                f"the trajectory leaves ±{bound:g}", beyond, float(grid[run, frame]), names
            )
        frames.append(state)
    return torch.stack(frames, dim=1)


def _runge_kutta(
    rhs: Rhs,
    now: Tensor,
    state: Tensor,
    step: Tensor,
    tableau: tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]],
    rate: Tensor | None,
) -> Tensor:
    """One explicit step; ``rate`` is the derivative at the start where it is known."""
    nodes, rows, weights = tableau
    stages: list[Tensor] = [] if rate is None else [rate]
    for node, row in list(zip(nodes, rows, strict=True))[len(stages) :]:
        inner = state
        for weight, stage in zip(row, stages, strict=False):
            if weight:
                inner = inner + (weight * step)[:, None] * stage
        stages.append(rhs(now + node * step, inner))
    for weight, stage in zip(weights, stages, strict=True):
        if weight:
            state = state + (weight * step)[:, None] * stage
    return state


def _adams(rhs: Rhs, after: Tensor, state: Tensor, step: Tensor, past: list[Tensor]) -> Tensor:
    """Predicted and corrected state one step later, from four rates."""
    size = step[:, None]
    guess = state + size * sum(w * f for w, f in zip(_PREDICTOR, past, strict=True))
    rates = [rhs(after, guess), *past[:3]]
    return state + size * sum(w * f for w, f in zip(_CORRECTOR, rates, strict=True))


def _check(x0: Tensor, times: Tensor, names: Sequence[str] | None) -> None:
    if not bool(torch.isfinite(x0).all()):
        _raise_first("the start is not finite", x0, float(times.flatten()[0]), names)
    if times.ndim != 1 or times.numel() < 1 or not bool((times.diff() > 0).all()):
        raise SolverError(
            f"times must be one-dimensional and strictly increasing, got shape "
            f"{tuple(times.shape)}: sort them and drop repeats"
        )
    if names is not None and len(names) != x0.shape[-1]:
        raise SolverError(f"names must name {x0.shape[-1]} variables, got {len(names)}")


def _raise_first(what: str, values: Tensor, time: float, names: Sequence[str] | None) -> None:
    flat = int((~torch.isfinite(values)).flatten().long().argmax())
    at = _position(flat, values.shape)
    variable = _name(at[-1], names)
    run = at[0] if len(at) > 1 else None
    where = f" of run {run}" if run is not None else ""
    raise DivergedError(
        f"{what} at t = {time:g}, first for {variable}{where}: take smaller steps (n_substep, "
        "rtol), or check the parameters that act on it",
        time=time,
        variable=variable,
        run=run,
    )


def _name(index: int, names: Sequence[str] | None) -> str:
    return names[index] if names is not None else f"variable {index}"


def _position(flat: int, shape: Sequence[int]) -> tuple[int, ...]:
    result: list[int] = []
    for size in reversed(shape):
        result.append(flat % size)
        flat //= size
    return tuple(reversed(result))
