r"""A perturb-seq experiment as a product of operators on cells and their context.

A cell is its expression x and a context: multipliers u of production and w of regulation, pinned
genes, and a medium v. Perturbing (P) and changing the medium (M) switch the context at once;
culture (W) lets the expression flow. Protocols are lists of such steps, first step first. P and M
commute while no culture lies between them; neither commutes with culture.

Source:
    operators P, M, W and the branching picture: Kovačević et al. (2025), Fig. 1. The extended
    state, the kinds of intervention and the index of order are our construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError, nearest
from neuralgraph.numerics.integrate import rollout

KINDS = ("knockout", "pin", "nuclease", "knockdown", "overexpression")


@dataclass(frozen=True)
class CellState:
    """Expression and context of cells.

    Args:
        expression: x, ``(n_cell, n_gene)``, expression units.
        production: u, multiplier of the production of each gene, ``(n_cell, n_gene)``.
        regulation: w, multiplier of each gene as a regulator, ``(n_cell, n_gene)``.
        added: Constant production on top, expression units / day, ``(n_cell, n_gene)``.
        pinned: Genes that are held where they are, ``(n_cell, n_gene)`` bool.
        medium: v, ``(n_cell, n_medium)``.
    """

    expression: Tensor
    production: Tensor
    regulation: Tensor
    added: Tensor
    pinned: Tensor
    medium: Tensor

    @classmethod
    def unperturbed(cls, expression: Tensor, medium: Tensor) -> CellState:
        """Cells in which nothing is changed; ``medium`` ``(n_medium,)`` is that of all cells."""
        ones = torch.ones_like(expression)
        return cls(
            expression=expression,
            production=ones,
            regulation=ones,
            added=torch.zeros_like(expression),
            pinned=torch.zeros_like(expression, dtype=torch.bool),
            medium=medium.expand(expression.shape[0], -1),
        )


Field = Callable[[CellState], Tensor]
"""dx/dt of cells, ``(n_cell, n_gene)``, expression units / day, from their state."""


@dataclass(frozen=True)
class Perturb:
    """P: change one gene at once.

    - ``knockout``: production stops, the transcript decays;
    - ``pin``: expression is held at ``level`` (units of expression; 0 removes it at once);
    - ``nuclease``: the transcript stays, its protein does nothing;
    - ``knockdown``: production falls to ``level`` of what it was, in (0, 1);
    - ``overexpression``: constant production ``level`` is added.

    Args:
        gene: Index of the gene.
        kind: One of the kinds above.
        level: What the kind needs; ignored by ``knockout`` and ``nuclease``.
    """

    gene: int
    kind: str = "knockout"
    level: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"unknown kind of perturbation '{self.kind}': {nearest(self.kind, KINDS)}"
            )
        if self.kind == "knockdown" and not 0 < self.level < 1:
            raise ConfigError(f"a knock-down needs a level in (0, 1), got {self.level}")
        if self.kind == "overexpression" and self.level <= 0:
            raise ConfigError(f"an over-expression needs a positive level, got {self.level}")

    def __call__(self, state: CellState, field: Field) -> CellState:
        """The same cells with another context."""
        n_gene = state.expression.shape[1]
        if not 0 <= self.gene < n_gene:
            raise ConfigError(f"gene {self.gene} is perturbed, there are {n_gene}")

        def with_value(values: Tensor, value: float | bool) -> Tensor:
            changed = values.clone()
            changed[:, self.gene] = value
            return changed

        if self.kind == "knockout":
            return replace(state, production=with_value(state.production, 0.0))
        if self.kind == "nuclease":
            return replace(state, regulation=with_value(state.regulation, 0.0))
        if self.kind == "knockdown":
            scaled = state.production.clone()
            scaled[:, self.gene] *= self.level
            return replace(state, production=scaled)
        if self.kind == "overexpression":
            more = state.added.clone()
            more[:, self.gene] += self.level
            return replace(state, added=more)
        return replace(
            state,
            expression=with_value(state.expression, self.level),
            pinned=with_value(state.pinned, True),
        )


@dataclass(frozen=True)
class Medium:
    """M: replace the medium, or supplement it.

    Args:
        values: v, one number for each component.
        is_supplement: Whether the values are added to what is there.
    """

    values: tuple[float, ...]
    is_supplement: bool = False

    def __call__(self, state: CellState, field: Field) -> CellState:
        """The same cells in another medium."""
        new = state.medium.new_tensor(self.values)
        if new.shape[0] != state.medium.shape[1]:
            raise ConfigError(
                f"the medium has {state.medium.shape[1]} components, got {new.shape[0]}"
            )
        medium = state.medium + new if self.is_supplement else new.expand_as(state.medium)
        return replace(state, medium=medium)


@dataclass(frozen=True)
class Culture:
    """W: let the cells grow.

    Args:
        days: How long, above 0.
        max_step: Longest Runge–Kutta step, days.
    """

    days: float
    max_step: float = 0.05

    def __post_init__(self) -> None:
        if self.days <= 0 or self.max_step <= 0:
            raise ConfigError(
                f"culture needs positive days and steps, got {self.days} and {self.max_step}"
            )

    def __call__(self, state: CellState, field: Field) -> CellState:
        """The cells after their culture, context unchanged; pinned genes stay where they are."""
        free = (~state.pinned).to(state.expression.dtype)

        def rate(_: Tensor, x: Tensor) -> Tensor:
            return free * field(replace(state, expression=x))

        n_step = max(1, int(-(-self.days // self.max_step)))
        time = state.expression.new_tensor([0.0, self.days])
        end = rollout(rate, state.expression, time, n_substep=n_step)[:, -1]
        return replace(state, expression=end)


Step = Perturb | Medium | Culture


def apply(protocol: Sequence[Step], state: CellState, field: Field) -> CellState:
    """F: the steps of a protocol in their order, the first one first."""
    for step in protocol:
        state = step(state, field)
    return state


def in_vitro(perturb: Perturb, medium: Medium, *, before: float, after: float) -> list[Step]:
    """Edit, culture, change the medium, culture."""
    return [perturb, Culture(before), medium, Culture(after)]


def in_vivo(perturb: Perturb, host: Medium, *, expansion: float, engraftment: float) -> list[Step]:
    """Edit outside the body, expand, transplant (the host is another medium), harvest."""
    return [perturb, Culture(expansion), host, Culture(engraftment)]


def branches(
    perturbations: Sequence[Perturb], media: Sequence[Medium]
) -> Iterator[tuple[Perturb | None, Medium | None]]:
    """Every leaf of the branching design: each perturbation or none, in each medium or none.

    There are exactly (n_P + 1)(n_M + 1).
    """
    for perturb in (None, *perturbations):
        for medium in (None, *media):
            yield perturb, medium


def order_effect(
    first: Sequence[Step], second: Sequence[Step], state: CellState, field: Field
) -> tuple[Tensor, float]:
    r"""How much the order of steps matters.

    Args:
        first: One protocol.
        second: The same steps in another order.
        state: Cells before.
        field: Their dynamics.

    Returns:
        Difference of the final expression, ``(n_cell, n_gene)``, and the index
        :math:`\kappa = \|F_a x - F_b x\| / (\tfrac12 (\|F_a x - x\| + \|F_b x - x\|))`, 0 where
        the order does not matter (and where nothing moves).
    """
    a, b = (apply(protocol, state, field).expression for protocol in (first, second))
    moved = 0.5 * ((a - state.expression).norm() + (b - state.expression).norm())
    return a - b, float((a - b).norm() / moved) if float(moved) > 0 else 0.0
