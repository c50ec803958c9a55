r"""An experiment as causal graphs, and a linear field as a structural causal model.

Two graphs of one protocol: the *contextual* one, whose variables are the steps of the protocol and
the expression after each culture; and the *gene-level* one, whose variables are genes and in which
perturbations are parameters of the mechanisms, not variables.

Source:
    the two readings: Kovačević et al. (2025), Fig. 3; how they are drawn from a protocol is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.perturb_ode.operators import Culture, Medium, Perturb, Step, branches


@dataclass(frozen=True)
class Node:
    """A variable of a causal graph.

    Args:
        name: What stands in the drawing.
        kind: ``context``, ``expression`` or ``gene``.
        parameter: What a perturbation sets in its mechanism, empty for nothing.
        column: Place along time (contextual graph), else 0.
    """

    name: str
    kind: str
    parameter: str = ""
    column: int = 0


@dataclass(frozen=True)
class Edge:
    """A cause and its effect, by number of the node; the label says on what it acts."""

    source: int
    target: int
    label: str = ""
    sign: int = 0


@dataclass(frozen=True)
class CausalGraph:
    """Variables and arrows."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def step_words(step: Step, names: Sequence[str]) -> str:
    """A step as text."""
    if isinstance(step, Perturb):
        return f"P: {step.kind} of {_gene(step, names)}"
    if isinstance(step, Medium):
        return "M: v = " + ", ".join(f"{v:g}" for v in step.values)
    return f"W: {step.days:g} days"


def contextual_graph(
    protocol: Sequence[Step], names: Sequence[str], medium_genes: Sequence[str] = ()
) -> CausalGraph:
    """Context variables of a protocol and the expression they act on.

    Every culture turns the expression before it into that after it, under the context that is set
    by then. A perturbation acts on one gene, a medium on the genes named, or on all.

    Args:
        protocol: Steps, the first one first.
        names: Genes.
        medium_genes: Genes on which media act; empty for all.
    """
    nodes = [Node("X before", "expression")]
    edges: list[Edge] = []
    expression, column, day = 0, 0, 0.0
    in_force: list[tuple[int, str]] = []
    for step in protocol:
        if isinstance(step, Culture):
            column, day = column + 1, day + step.days
            nodes.append(Node(f"X on day {day:g}", "expression", column=column))
            new = len(nodes) - 1
            edges.append(Edge(expression, new, f"W {step.days:g} d"))
            edges += [Edge(source, new, label) for source, label in in_force]
            expression = new
            continue
        nodes.append(Node(step_words(step, names), "context", column=column))
        if isinstance(step, Medium):
            # a new medium takes the place of the old one
            in_force = [(n, label) for n, label in in_force if not nodes[n].name.startswith("M")]
            label = ", ".join(medium_genes) if medium_genes else "all genes"
        else:
            label = _gene(step, names)
        in_force.append((len(nodes) - 1, label))
    return CausalGraph(tuple(nodes), tuple(edges))


def gene_graph(sign: Tensor, names: Sequence[str], protocol: Sequence[Step] = ()) -> CausalGraph:
    """Genes as variables; perturbations of the protocol are parameters of their mechanisms.

    A pinned gene has no causes any more; a nuclease knock-out has no effects; the other kinds
    change what a mechanism makes and keep its arrows.

    Args:
        sign: Entry (i, j) not 0: gene j regulates gene i, ``(n_gene, n_gene)``.
        names: Genes.
        protocol: Steps.
    """
    if sign.shape != (len(names), len(names)):
        raise ConfigError(
            f"sign must be (n_gene, n_gene) = ({len(names)}, {len(names)}), got {tuple(sign.shape)}"
        )
    steps = {step.gene: step for step in protocol if isinstance(step, Perturb)}
    words = {
        "knockout": "u = 0",
        "nuclease": "w = 0",
        "pin": "x = {:g}",
        "knockdown": "u = {:g}",
        "overexpression": "+{:g}",
    }
    nodes = [
        Node(name, "gene", words[steps[g].kind].format(steps[g].level) if g in steps else "")
        for g, name in enumerate(names)
    ]
    edges = []
    for target, source in sign.nonzero().tolist():
        if target in steps and steps[target].kind == "pin":
            continue
        if source in steps and steps[source].kind == "nuclease":
            continue
        edges.append(Edge(source, target, sign=int(torch.sign(sign[target, source]))))
    return CausalGraph(tuple(nodes), tuple(edges))


@dataclass(frozen=True)
class BranchingTree:
    """The branching design: a root, a branch for each perturbation or none, a leaf for each medium.

    Args:
        branches: Words of the first level.
        leaves: Branch and words of each leaf, exactly (n_P + 1)(n_M + 1).
    """

    branches: tuple[str, ...]
    leaves: tuple[tuple[int, str], ...]


def branching_tree(
    perturbations: Sequence[Perturb], media: Sequence[Medium], names: Sequence[str]
) -> BranchingTree:
    """The tree of a design with each perturbation or none, in each medium or the usual one."""
    first: list[str] = []
    leaves = []
    for perturb, medium in branches(perturbations, media):
        word = "unedited" if perturb is None else step_words(perturb, names)[3:]
        if word not in first:
            first.append(word)
        place = "usual medium" if medium is None else f"medium {media.index(medium) + 1}"
        leaves.append((first.index(word), place))
    return BranchingTree(tuple(first), tuple(leaves))


def linear_scm(weight: Tensor, base: Tensor, pinned: dict[int, float]) -> Tensor:
    r"""Solution of the linear structural causal model :math:`x = B x + c` under do(x_p = v).

    The mechanism of an intervened gene is replaced by its value. The rest of a linear field
    :math:`\dot x = W x + b - \gamma x` under the same intervention is this with
    :math:`B = W / \gamma` and :math:`c = b / \gamma` (rows), where it is stable.

    Args:
        weight: B, ``(n_gene, n_gene)``; cycles are allowed.
        base: c, ``(n_gene,)``.
        pinned: Value of each intervened gene.
    """
    matrix, right = weight.clone(), base.clone()
    for gene, value in pinned.items():
        matrix[gene] = 0
        right[gene] = value
    return torch.linalg.solve(torch.eye(len(base), dtype=weight.dtype) - matrix, right)


def _gene(step: Perturb, names: Sequence[str]) -> str:
    if not 0 <= step.gene < len(names):
        raise ConfigError(f"gene {step.gene} is perturbed, there are {len(names)}")
    return names[step.gene]
