"""What trajectories of a linear network say about its matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralgraph.core.bounds import Natural, Part, Positive
from neuralgraph.core.recording import Truth
from neuralgraph.numerics.information import Equation, Parameters, Problem
from neuralgraph.systems.linear.dataset import LinearData
from neuralgraph.systems.linear.model import LinearDynamics


class LinearIdentifiability:
    r"""Sensitivity of $\hat{\dot x}_i = \sum_j A_{ij} x_j$ on the entries of row i: the states.

    The entries enter linearly, so that rank and combinations hold for every matrix.

    Args:
        rtol: Relative singular value below which a direction is free.
        noise_relative: Noise of the derivatives relative to their root mean square, where no
            residual of a fit is there to show it.
        precise_below: Relative standard error from which an entry counts as precise.
        n_pulse: Variables whose pulse is tried as a candidate design.
    """

    def __init__(
        self, *, rtol: Positive, noise_relative: Positive, precise_below: Part, n_pulse: Natural
    ) -> None:
        self.rtol = rtol
        self.noise_relative = noise_relative
        self.precise_below = precise_below
        self.n_pulse = n_pulse

    def problem(
        self, model: LinearDynamics, data: LinearData, truth: Truth | None, *, is_fitted: bool
    ) -> Problem:
        """Parameters and sensitivities; see :class:`neuralgraph.core.contracts.Identifier`."""
        n = data.spec.n_var
        names = data.spec.names
        matrix = model.matrix.detach().cpu().double()
        if truth is not None:
            matrix = truth.parameters["matrix"].double()
        is_edge = data.spec.is_edge
        mask = torch.ones(n, n, dtype=torch.bool) if is_edge is None else is_edge.cpu()
        row, column = mask.nonzero().T
        at = [column[row == i] for i in range(n)]
        begin = torch.cat([torch.zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)])
        state = data.state.cpu().double()
        dx_dt = data.dx_dt.cpu().double()

        def equations(x: Tensor) -> list[Equation]:
            return [
                Equation(
                    i,
                    torch.arange(int(begin[i]), int(begin[i + 1])),
                    x,
                    at[i],
                    torch.ones(at[i].numel(), dtype=torch.float64),
                )
                for i in range(n)
            ]

        runs = state.view(-1, data.n_time, n)
        parameters = Parameters(
            tuple(
                f"A({names[i]},{names[j]})"
                for i, j in zip(row.tolist(), column.tolist(), strict=True)
            ),
            tuple("decay" if i == j else "edge" for i, j in zip(row, column, strict=True)),
            matrix[row, column],
        )
        return Problem(
            parameters=parameters,
            design=equations(state),
            variable=names,
            size=dx_dt.square().mean(0).sqrt(),
            point="",
            assumed=() if is_edge is None else ("entries outside the given support are 0",),
            residual=dx_dt - state @ matrix.T if is_fitted else None,
            state=state,
            time=data.dt * torch.arange(data.n_time, dtype=torch.float64),
            start=runs[:, 0],
            equations=equations,
            rhs=lambda x: x @ matrix.T,
        )
