"""A stable linear network, solved exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural, NotNegative, Positive
from neuralgraph.core.errors import ConfigError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import torch_generator


class LinearNetwork:
    r"""Trajectories of $\dot x = A x$, $x(t) = e^{A t} x_0$, exact to rounding.

    $A$ is sparse with a negative diagonal; it is shifted so that its slowest mode decays at
    ``slowest_rate``, hence every trajectory stays bounded.

    Args:
        n_var: Number of variables.
        n_edge_per_var: Incoming edges of each variable besides its own decay.
        n_run: Training trajectories, each from its own standard-normal start.
        n_test_run: Held-out trajectories.
        n_time: Frames of a trajectory.
        dt: Time between frames.
        slowest_rate: Largest real part of the eigenvalues of $-A$ closest to zero, 1/time, > 0.
        measurement_noise: Standard deviation of Gaussian noise on the state; the derivatives stay
            exact only at 0 and are left out otherwise.

    Source:
        own; matrix exponential by scaling and squaring (``torch.linalg.matrix_exp``).
    """

    def __init__(
        self,
        *,
        n_var: Count,
        n_edge_per_var: Natural,
        n_run: Count,
        n_test_run: Natural,
        n_time: Count,
        dt: Positive,
        slowest_rate: Positive,
        measurement_noise: NotNegative,
    ) -> None:
        if n_edge_per_var >= n_var:
            raise ConfigError(f"n_edge_per_var must be below n_var = {n_var}, got {n_edge_per_var}")
        self.n_var = n_var
        self.n_edge_per_var = n_edge_per_var
        self.n_run = n_run
        self.n_test_run = n_test_run
        self.n_time = n_time
        self.dt = dt
        self.slowest_rate = slowest_rate
        self.measurement_noise = measurement_noise

    def simulate(self, seed: int) -> tuple[Recording, Truth]:
        """Draw a network and its trajectories; the same seed gives the same bytes."""
        matrix = self._draw_matrix(seed)
        n_run = self.n_run + self.n_test_run
        start = torch.randn(
            n_run, self.n_var, dtype=torch.float64, generator=torch_generator(seed, "start")
        )
        time = torch.arange(self.n_time, dtype=torch.float64) * self.dt
        flow = torch.linalg.matrix_exp(time[:, None, None] * matrix)
        state = torch.einsum("tij,rj->rti", flow, start)
        dx_dt: Tensor | None = state @ matrix.T
        if self.measurement_noise > 0:
            noise = torch.randn(
                state.shape, dtype=state.dtype, generator=torch_generator(seed, "noise")
            )
            state = state + self.measurement_noise * noise
            dx_dt = None
        is_test = torch.zeros(n_run, dtype=torch.bool)
        is_test[self.n_run :] = True
        recording = Recording(
            time=time.expand(n_run, -1).contiguous(),
            state=state,
            names=tuple(f"x{i}" for i in range(self.n_var)),
            dx_dt=dx_dt,
            dx_dt_source="none" if dx_dt is None else "exact",
            units={"time": "1", "state": "1"},
            provenance={
                "design": f"{self.n_run} trajectories of {self.n_time} frames, dt {self.dt:g}, "
                "starts standard normal",
                "measurement_noise": self.measurement_noise,
            },
            is_test=is_test,
        )
        return recording, Truth(parameters={"matrix": matrix})

    def reveal(
        self, recording: Recording, truth: Truth | None, /, *, support: bool
    ) -> dict[str, Tensor]:
        """With ``support``: which entries of A may differ from zero."""
        if not support:
            return {}
        if truth is None:
            raise ConfigError("prior.support=true needs a simulated network: set it to false")
        return {"is_edge": truth.parameters["matrix"] != 0}

    def _draw_matrix(self, seed: int) -> Tensor:
        generator = torch_generator(seed, "network")
        n = self.n_var
        weight = torch.randn(n, n, dtype=torch.float64, generator=generator)
        rank = torch.rand(n, n, dtype=torch.float64, generator=generator)
        rank.fill_diagonal_(2.0)
        threshold = rank.kthvalue(max(1, self.n_edge_per_var), dim=1, keepdim=True).values
        is_edge = (rank <= threshold) & (self.n_edge_per_var > 0)
        matrix = torch.where(is_edge, weight, torch.zeros_like(weight))
        slowest = torch.linalg.eigvals(matrix).real.max()
        matrix.diagonal().sub_(slowest + self.slowest_rate)
        return matrix
