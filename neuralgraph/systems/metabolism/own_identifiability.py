r"""What the data say of S where every reaction has a law of its own.

$\dot c_i = d_i + \sum_j S_{ij} \sum_m \theta_{jm} (\phi_m - \bar\phi_m)$: coefficients and laws
enter as products, and only the scale of a column is free: S_j a, theta_j / a. It is fixed by the
coefficient of smallest size of each column, as integers without a common factor would; the others
are then determined wherever the rates of the reactions of a metabolite are not alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralgraph.core.bounds import Natural, Part, Positive
from neuralgraph.core.errors import ConfigError
from neuralgraph.core.recording import Truth
from neuralgraph.numerics.information import Equation, Parameters, Problem
from neuralgraph.systems.metabolism.dataset import MetabolismData

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.own_rates import Metabolism_OwnRates

S, LAW, LEVEL = "stoichiometry", "rate law", "mean of dc/dt"
SILENT = 1e-12
"""Size relative to the largest below which a coefficient cannot hold the scale of its column."""


class OwnRatesIdentifiability:
    """Sensitivities of the derivatives to coefficients, laws and levels.

    Args:
        rtol: Relative singular value below which a direction is free.
        noise_relative: Noise of the derivatives relative to their root mean square, where no
            residual of a fit is there to show it.
        precise_below: Relative standard error from which a parameter counts as precise.
        n_pulse: Demanded by :class:`neuralgraph.core.contracts.Identifier` and without effect
            here: no further experiment is scored, since a polynomial law says nothing beyond the
            range of the data.
    """

    def __init__(
        self, *, rtol: Positive, noise_relative: Positive, precise_below: Part, n_pulse: Natural
    ) -> None:
        self.rtol = rtol
        self.noise_relative = noise_relative
        self.precise_below = precise_below
        self.n_pulse = n_pulse

    @torch.no_grad()
    def problem(
        self,
        model: Metabolism_OwnRates,
        data: MetabolismData,
        truth: Truth | None,
        *,
        is_fitted: bool,
    ) -> Problem:
        """Parameters and sensitivities; see :class:`neuralgraph.core.contracts.Identifier`.

        Raises:
            ConfigError: ``identify.at=truth``: the true laws are no polynomials.
        """
        if truth is not None:
            raise ConfigError(
                "identify.at=truth: the true rate laws are not those of the model; use "
                "identify.at=prior"
            )
        spec, batch = data.spec, data.train
        if not is_fitted:
            model.standardise(batch)
        features = model.features(batch.concentration, batch.inputs).detach().cpu().double()
        flux = model.flux(batch.concentration, batch.inputs).detach().cpu().double()
        sto = model.sto_all.detach().cpu().double()
        met, rxn = model.met_all.cpu(), model.rxn_all.cpu()
        theta, owner = model.theta.detach().cpu().double(), model.feature_rxn.cpu()
        drift = model.drift.detach().cpu().double()
        is_free = torch.zeros(0, dtype=torch.bool)
        if not model.is_stoichiometry_given:
            is_free = torch.ones_like(sto, dtype=torch.bool)
            is_free[_scale_of_column(sto, rxn, spec.n_rxn)] = False
        free = is_free.nonzero()[:, 0]
        place = torch.full((max(sto.numel(), 1),), -1)
        place[free] = torch.arange(len(free))
        n_s, n_law = len(free), theta.numel()
        mets, rxns = spec.metabolite_names, spec.reaction_names
        names = [f"S({mets[int(met[e])]},{rxns[int(rxn[e])]})" for e in free]
        names += [f"theta({rxns[j]},{q + 1})" for j, q in _numbered(owner.tolist())]
        names += [f"level({name})" for name in mets]
        group = [S] * n_s + [LAW] * n_law + [LEVEL] * spec.n_met
        features_of = [(owner == j).nonzero()[:, 0] for j in range(spec.n_rxn)]
        design: list[Equation] = []
        one = torch.ones(len(batch), 1, dtype=torch.float64)
        for i in range(spec.n_met):
            edges = (met == i).nonzero()[:, 0]
            mine = edges[place[edges] >= 0] if n_s else edges[:0]
            columns = [place[mine]]
            parts = [flux[:, rxn[mine]]]
            for e in edges.tolist():
                at = features_of[int(rxn[e])]
                columns.append(n_s + at)
                parts.append(sto[e] * features[:, at])
            columns.append(torch.tensor([n_s + n_law + i]))
            parts.append(one)
            base = torch.cat(parts, 1)
            n = base.shape[1]
            scale = torch.ones(n, dtype=torch.float64)
            design.append(Equation(i, torch.cat(columns), base, torch.arange(n), scale))
        dx_dt = batch.dx_dt.detach().cpu().double()
        residual = None
        if is_fitted:
            residual = dx_dt - model(batch.concentration, batch.inputs).detach().cpu().double()
        assumed = [
            "a law is a polynomial in the logarithms of what its rate depends on, and its level is "
            "in the mean of dc/dt",
        ]
        if n_s:
            assumed.append(
                "the smallest coefficient of each column is known: it holds the scale S·a, theta/a"
            )
        return Problem(
            parameters=Parameters(tuple(names), tuple(group), torch.cat([sto[free], theta, drift])),
            design=design,
            variable=mets,
            size=dx_dt.square().mean(0).sqrt(),
            point="",
            assumed=tuple(assumed),
            residual=residual,
            run=batch.run.cpu(),
        )


def _scale_of_column(sto: Tensor, rxn: Tensor, n_rxn: int) -> Tensor:
    """Edge of smallest size of each column, ``(n,)``."""
    chosen: list[int] = []
    for j in range(n_rxn):
        edges = (rxn == j).nonzero()[:, 0]
        size = sto[edges].abs()
        acting = edges[size > SILENT * size.max()] if len(edges) else edges
        if len(acting):
            chosen.append(int(acting[sto[acting].abs().argmin()]))
    return torch.tensor(chosen, dtype=torch.long)


def _numbered(owner: list[int]) -> list[tuple[int, int]]:
    """Each entry with its number among those of the same owner.

    >>> _numbered([0, 0, 1])
    [(0, 0), (0, 1), (1, 0)]
    """
    count: dict[int, int] = {}
    result: list[tuple[int, int]] = []
    for j in owner:
        result.append((j, count.get(j, 0)))
        count[j] = count.get(j, 0) + 1
    return result


__all__ = ["OwnRatesIdentifiability"]
