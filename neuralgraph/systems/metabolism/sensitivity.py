"""Sensitivity of the derivatives of a metabolic network to its parameters, column by column."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from neuralgraph.numerics.information import Equation, Parameters
from neuralgraph.systems.metabolism.dataset import MetabolismSpec
from neuralgraph.systems.metabolism.linearisation import Point

K, S, PRODUCT = "rate constant", "stoichiometry", "k·S"
SLOPE, OFFSET, LAW = "homeostasis slope", "homeostasis offset", "rate law"


class Columns:
    """Which parameters there are, and which regressors they stand on.

    Order: rate constants (or coefficients, or products k·S), slopes and offsets of homeostasis, p.
    """

    def __init__(
        self,
        point: Point,
        spec: MetabolismSpec,
        *,
        given_s: bool,
        given_k: bool,
        has_power: bool,
    ) -> None:
        self.point, self.n_met, self.n_rxn = point, spec.n_met, spec.n_rxn
        self.has_lines = point.slope is not None
        self.met, self.rxn = spec.met_all.cpu(), spec.rxn_all.cpu()
        mets, rxns = spec.metabolite_names, spec.reaction_names
        edges = list(zip(self.met.tolist(), self.rxn.tolist(), strict=True))
        names: list[str] = []
        group: list[str] = []
        values: list[Tensor] = []
        self.edge_scale = torch.ones(self.met.numel(), dtype=torch.float64)
        self.edge_column: Tensor | None = None
        if given_s and not given_k:
            names += [f"k({name})" for name in rxns]
            group += [K] * self.n_rxn
            values.append(point.k)
            self.edge_scale, self.edge_column = point.sto_all, self.rxn
        elif not given_s:
            self.edge_column = torch.arange(self.met.numel())
            if given_k:
                self.edge_scale = point.k[self.rxn]
                names += [f"S({mets[i]},{rxns[j]})" for i, j in edges]
                group += [S] * len(edges)
                values.append(point.sto_all)
            else:
                names += [f"k({rxns[j]})·S({mets[i]},{rxns[j]})" for i, j in edges]
                group += [PRODUCT] * len(edges)
                values.append(point.sto_all * point.k[self.rxn])
        self.first_line = len(names)
        if self.has_lines:
            assert point.slope is not None and point.offset is not None
            names += [f"slope({name})" for name in mets] + [f"offset({name})" for name in mets]
            group += [SLOPE] * self.n_met + [OFFSET] * self.n_met
            values += [point.slope, point.offset]
        self.has_power = has_power
        if has_power:
            names.append("p")
            group.append(LAW)
            values.append(torch.ones(1, dtype=torch.float64))
        value = torch.cat(values) if values else torch.zeros(0, dtype=torch.float64)
        self.parameters = Parameters(tuple(names), tuple(group), value.double())
        order = torch.argsort(self.met, stable=True)
        count = torch.bincount(self.met, minlength=self.n_met)
        self.edges_of = order.split(count.tolist())

    def tie(self) -> Tensor | None:
        """What moves freely beside the law where integers hold the columns of S: k and lines."""
        if self.edge_column is None or self.parameters.group[:1] != (PRODUCT,):
            return None
        n_edge = self.met.numel()
        n_line = len(self.parameters) - n_edge
        tie = torch.zeros(n_edge + n_line, self.n_rxn + n_line, dtype=torch.float64)
        tie[torch.arange(n_edge), self.rxn] = self.point.sto_all
        tie[n_edge:, self.n_rxn :] = torch.eye(n_line, dtype=torch.float64)
        return tie

    def base(self, c: Tensor, inputs: Tensor | None) -> Tensor:
        """Regressors: rates at k = 1, ones, concentrations, slopes along p."""
        g = self.point.rates(c, inputs)
        parts = [g]
        if self.has_lines:
            parts += [torch.ones(c.shape[0], 1, dtype=torch.float64), c]
        if self.has_power:
            parts.append(self._change(g * self.point.k * self.point.exponent(c)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def equations(self, base: Tensor) -> list[Equation]:
        """One equation for each metabolite."""
        result: list[Equation] = []
        n = self.n_rxn
        one = torch.ones(1, dtype=torch.float64)
        last = len(self.parameters) - 1
        for i in range(self.n_met):
            edges = self.edges_of[i]
            columns, at, scale = [], [], []
            if self.edge_column is not None:
                columns.append(self.edge_column[edges])
                at.append(self.rxn[edges])
                scale.append(self.edge_scale[edges])
            if self.has_lines:
                first = self.first_line
                columns.append(torch.tensor([first + i, first + self.n_met + i]))
                at.append(torch.tensor([n + 1 + i, n]))
                scale += [one, one]
            if self.has_power:
                columns.append(torch.tensor([last]))
                at.append(torch.tensor([base.shape[1] - self.n_met + i]))
                scale.append(one)
            if not columns:
                continue
            result.append(
                Equation(i, torch.cat(columns), base, torch.cat(at), torch.cat(scale).double())
            )
        return result

    def flow(self, c: Tensor) -> Tensor:
        """dc/dt at the point of linearisation."""
        c = c.clamp_min(0)
        result = self._change(self.point.rates(c, None) * self.point.k)
        if self.has_lines:
            assert self.point.slope is not None and self.point.offset is not None
            result = result + self.point.slope * c + self.point.offset
        return result if self.point.additive is None else result + self.point.additive

    def evaluator(
        self, state: Tensor, base: Tensor
    ) -> Callable[[Tensor], tuple[Tensor, list[Equation]]]:
        """Prediction and sensitivities at other parameters, where p is one of them."""
        exponent = self.point.exponent(state)
        n, m = self.n_rxn, self.n_met
        has_k = self.edge_column is not None

        def evaluate(value: Tensor) -> tuple[Tensor, list[Equation]]:
            k = value[:n] if has_k else self.point.k
            moved = base.clone()
            moved[:, :n] = base[:, :n] * ((value[-1] - 1) * exponent).exp()
            flux = moved[:, :n] * k
            moved[:, moved.shape[1] - m :] = self._change(flux * exponent)
            result = self._change(flux)
            if self.has_lines:
                line = value[self.first_line : self.first_line + 2 * m].view(2, m)
                result = result + line[0] * state + line[1]
            return result, self.equations(moved)

        return evaluate

    def _change(self, flux: Tensor) -> Tensor:
        """S times fluxes, ``(n_frame, n_rxn) -> (n_frame, n_met)``."""
        each = flux.T[self.rxn] * self.point.sto_all[:, None]
        total = flux.new_zeros(self.n_met, flux.shape[0])
        return total.index_add_(0, self.met, each).T
