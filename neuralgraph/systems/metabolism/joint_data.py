"""Frames and graph of a mass-action network with given S, in the form the solvers take."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.dataset import MetabolismBatch, MetabolismSpec
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation


@dataclass(frozen=True)
class KineticData:
    """Frames and graph of a mass-action network whose stoichiometry is given.

    Args:
        concentration: ``(n_frame, n_met)``, >= 0.
        target: What reactions and homeostasis must explain: dc/dt less known inputs; its weak form
            with ``window``.
        met_sub, rxn_sub: Substrate edges, ``(n_sub_edge,)``.
        order: |s| of each substrate edge.
        sto_all: S, dense ``(n_met, n_rxn)``.
        factor: Known factor of each rate ``(n_frame, n_rxn)``, or ``None``.
        has_homeostasis: Whether each metabolite has a line of its own.
        window: Weights of the frames in each equation, sparse ``(n_window, n_frame)``; ``None``
            where each frame is an equation of its own.
    """

    concentration: Tensor
    target: Tensor
    met_sub: Tensor
    rxn_sub: Tensor
    order: Tensor
    sto_all: Tensor
    factor: Tensor | None
    has_homeostasis: bool
    window: Tensor | None = None

    def __post_init__(self) -> None:
        if self.concentration.shape[0] < 2:
            raise DataError(
                f"{self.concentration.shape[0]} training frame cannot determine rate constants: "
                "record at least 2"
            )

    @property
    def n_met(self) -> int:
        """Number of metabolites."""
        return self.sto_all.shape[0]

    @property
    def n_rxn(self) -> int:
        """Number of reactions."""
        return self.sto_all.shape[1]

    @property
    def n_frame(self) -> int:
        """Number of frames."""
        return self.concentration.shape[0]

    def averaged(self, value: Tensor) -> Tensor:
        """Frames ``(n_frame, n)`` in the equations, ``(n_equation, n)``."""
        return value if self.window is None else torch.sparse.mm(self.window, value)

    def every(self, step: int) -> KineticData:
        """Each ``step``-th frame; all of them where equations span several."""
        if self.window is not None:
            return self
        return replace(
            self,
            concentration=self.concentration[::step],
            target=self.target[::step],
            factor=None if self.factor is None else self.factor[::step],
        )

    def over_substrates(self, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sum of ``value * order`` (or of ``value`` on masked edges) over a reaction's substrates.

        Args:
            value: ``(n_frame, n_met)``.
            mask: Edges that count, ``(n_sub_edge,)`` bool; with it the order is not applied.

        Returns:
            ``(n_frame, n_rxn)``.
        """
        met, rxn = self.met_sub, self.rxn_sub
        if mask is not None:
            met, rxn = met[mask], rxn[mask]
        edge = value.T[met]
        if mask is None:
            edge = edge * self.order[:, None]
        total = value.new_zeros(self.n_rxn, value.shape[0])
        return total.index_add_(0, rxn, edge).T


def kinetic_data(
    model: Metabolism_Propagation, spec: MetabolismSpec, batch: MetabolismBatch
) -> KineticData:
    """Frames and given graph in the form the solvers take, float64 on the CPU."""
    if model.flux_limit:
        raise ConfigError(
            "loop.start=closed_form with given S has no flux limiter: set model.flux_limit=false, "
            "or use loop=metabolism_adam"
        )
    assert spec.sto_all is not None
    order = spec.order_sub if spec.order_sub is not None else spec.sto_sub
    assert order is not None
    c, target = (x.detach().double().cpu() for x in (batch.concentration, batch.dx_dt))
    factor = None
    if model.input_mode == "additive" and batch.inputs is not None:
        target = target - batch.inputs.detach().double().cpu()
    elif model.input_mode.startswith("multiplicative") and batch.inputs is not None:
        with torch.no_grad():
            factor = model._mean_input(batch.inputs.t().contiguous()).t().double().cpu()
    sto_all = torch.zeros(spec.n_met, spec.n_rxn, dtype=torch.float64)
    sto_all[spec.met_all.cpu(), spec.rxn_all.cpu()] = spec.sto_all.double().cpu()
    return KineticData(
        concentration=c,
        target=target,
        met_sub=spec.met_sub.cpu(),
        rxn_sub=spec.rxn_sub.cpu(),
        order=order.double().cpu().abs(),
        sto_all=sto_all,
        factor=factor,
        has_homeostasis=model.has_homeostasis,
    )
