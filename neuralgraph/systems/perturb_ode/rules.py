"""Boolean rules of a gene network as a Hill network: curated models become vector fields."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neuralgraph.core.bounds import Positive
from neuralgraph.core.errors import DataError

MAX_REGULATORS = 10
"""Regulators of one gene; the table of a rule has two to this power of rows."""

TREE = """Gene\tRule
Stem\tStem and not (Red or Mega or Mono or Gran)
Ery\t(Stem or Ery) and not Mye
Mye\t(Stem or Mye) and not Ery
Red\t(Ery or Red) and Ery and not Mega
Mega\t(Ery or Mega) and Ery and not Red
Mono\t(Mye or Mono) and Mye and not Gran
Gran\t(Mye or Gran) and Mye and not Mono
Hb\tRed
Plt\tMega
"""
"""A tree of toggle switches with four ends: our own, so that a lineage needs no file."""

TREE_START = {"Stem": 1.0}


@dataclass(frozen=True)
class LogicNetwork:
    r"""Rates :math:`\dot x_i = u_i \alpha\, g_i(w \odot x) - \gamma x_i` from Boolean rules.

    Every Boolean regulator becomes a Hill function :math:`h_j = x_j^n / (K^n + x_j^n)`, a rule the
    multilinear interpolation of its truth table: the sum over its true rows of
    :math:`\prod_{j\ on} h_j \prod_{j\ off} (1 - h_j)`. At saturated Hill functions it is the rule.

    Args:
        names: Genes.
        regulators: Regulators of each gene, indices.
        table: Value of each rule by the bits of its regulators (the first is the highest bit).
        maximum: α / γ, the level of a gene that is on, expression units.
        gamma: Decay, 1 / day.
        threshold: K, expression units.
        exponent: n.

    Source:
        HillCubes of Wittmann et al. (2009). BoolODE (Pratapa et al. 2020), whose rule files are
        read here, uses a thermodynamic form of the same tables.
    """

    names: tuple[str, ...]
    regulators: tuple[tuple[int, ...], ...]
    table: tuple[tuple[bool, ...], ...]
    maximum: Positive
    gamma: Positive
    threshold: Positive
    exponent: Positive

    @property
    def n_gene(self) -> int:
        """Number of genes."""
        return len(self.names)

    @property
    def is_edge(self) -> Tensor:
        """Entry (i, j): gene j stands in the rule of gene i, ``(n_gene, n_gene)`` bool."""
        edges = torch.zeros(self.n_gene, self.n_gene, dtype=torch.bool)
        for gene, inputs in enumerate(self.regulators):
            edges[gene, list(inputs)] = True
        return edges

    def production(self, state: Tensor) -> Tensor:
        """Production of states ``(*n, n_gene)``, expression units / day."""
        ratio = (state.clamp_min(0) / self.threshold) ** self.exponent
        hill = ratio / (1 + ratio)
        top = self.maximum * self.gamma
        columns = []
        for inputs, table in zip(self.regulators, self.table, strict=True):
            share = torch.ones_like(hill[..., :1])
            for j in inputs:
                one = hill[..., j : j + 1]
                # rows of the regulators so far, each split by the next one: off, on
                share = torch.stack([share * (1 - one), share * one], dim=-1).flatten(-2)
            rows = torch.tensor(table, dtype=hill.dtype)
            columns.append(top * (share * rows).sum(-1))
        return torch.stack(columns, dim=-1)

    def rate(self, state: Tensor, production: Tensor, regulation: Tensor) -> Tensor:
        """dx/dt of ``(*n, n_gene)`` under interventions u and w."""
        return production * self.production(regulation * state) - self.gamma * state


def read_rules(
    text: str,
    *,
    source: str,
    maximum: float,
    gamma: float,
    threshold: float,
    exponent: float,
) -> LogicNetwork:
    """A network from a table ``Gene <tab> Rule`` with the words ``and``, ``or``, ``not``.

    A gene that stands in a rule and has none itself keeps its level.

    Args:
        text: The table, with its header.
        source: Where it comes from, for messages.
        maximum: See :class:`LogicNetwork`, as for the following.
        gamma: Decay.
        threshold: K.
        exponent: n.

    Raises:
        DataError: a line that is no rule; names it.
    """
    rules: dict[str, ast.expr] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or number == 1:
            continue
        gene, _, rule = line.partition("\t")
        gene = gene.strip()
        if not rule.strip():
            raise DataError(f"{source}, line {number}: expected gene, tab and rule, got '{line}'")
        if gene in rules:
            raise DataError(f"{source}, line {number}: '{gene}' has a rule already")
        try:
            rules[gene] = ast.parse(rule.strip(), mode="eval").body
        except SyntaxError:
            raise DataError(
                f"{source}, line {number}: the rule of '{gene}' cannot be read: {rule.strip()}"
            ) from None
    if not rules:
        raise DataError(f"{source} holds no rule")
    found = {gene: _names(rule, gene, source) for gene, rule in rules.items()}
    names = [*rules]
    for inputs in found.values():
        names += [name for name in inputs if name not in names]
    place = {name: i for i, name in enumerate(names)}
    regulators, tables = [], []
    for name in names:
        inputs = found.get(name, [name])
        if len(inputs) > MAX_REGULATORS:
            raise DataError(
                f"{source}: '{name}' has {len(inputs)} regulators, at most {MAX_REGULATORS}"
            )
        rule = rules.get(name, ast.Name(name))
        rows = itertools.product((False, True), repeat=len(inputs))
        tables.append(tuple(_value(rule, dict(zip(inputs, row, strict=True))) for row in rows))
        regulators.append(tuple(place[i] for i in inputs))
    return LogicNetwork(
        tuple(names), tuple(regulators), tuple(tables), maximum, gamma, threshold, exponent
    )


def read_start(path: Path) -> dict[str, float]:
    """Genes that are on at the start, from a table ``Genes <tab> Values`` as BoolODE writes it."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        genes, values = (ast.literal_eval(part) for part in lines[1].split("\t"))
        return {str(g): float(v) for g, v in zip(genes, values, strict=True)}
    except (IndexError, ValueError, SyntaxError):
        raise DataError(
            f"{path.name}: expected a header and a line ['gene', …] <tab> [value, …]"
        ) from None


def _names(rule: ast.expr, gene: str, source: str) -> list[str]:
    """Names of a rule in order of appearance; nothing else may stand in it."""
    found: list[str] = []

    def visit(node: ast.expr) -> None:
        if isinstance(node, ast.BoolOp):
            for value in node.values:
                visit(value)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            visit(node.operand)
        elif isinstance(node, ast.Name):
            if node.id not in found:
                found.append(node.id)
        else:
            raise DataError(
                f"{source}: the rule of '{gene}' holds '{ast.unparse(node)}'; rules are made of "
                "gene names, and, or, not"
            )

    visit(rule)
    return found


def _value(rule: ast.expr, on: Mapping[str, bool]) -> bool:
    if isinstance(rule, ast.BoolOp):
        values = [_value(part, on) for part in rule.values]
        return all(values) if isinstance(rule.op, ast.And) else any(values)
    if isinstance(rule, ast.UnaryOp):
        return not _value(rule.operand, on)
    assert isinstance(rule, ast.Name)
    return on[rule.id]
