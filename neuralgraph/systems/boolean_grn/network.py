"""Boolean networks with any update functions, and ``.bnet`` files, the exchange format for them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neuralgraph.core.errors import ConfigError, DataError, MissingDataError
from neuralgraph.systems.boolean_grn.circuit import SignedCircuit
from neuralgraph.systems.boolean_grn.oracle import successors

Expression: TypeAlias = tuple[Any, ...]
"""``("gene", i)``, ``("constant", bool)``, ``("not", e)``, ``("and", e, …)``, ``("or", e, …)``."""

N_GENE_LISTED = 20
"""Largest network whose states are listed one by one (a million)."""
N_REGULATOR_MAX = 16
"""Most regulators of one gene whose truth table is written out."""


@dataclass(frozen=True)
class BooleanNetwork:
    """Genes, each with a Boolean function of the others.

    Args:
        names: Gene names.
        functions: One expression per gene.
        warnings: What was assumed when the network was read.
    """

    names: tuple[str, ...]
    functions: tuple[Expression, ...]
    warnings: tuple[str, ...] = ()

    @property
    def n_gene(self) -> int:
        """Number of genes."""
        return len(self.names)

    @classmethod
    def from_bnet(cls, text: str, *, source: str = "the text") -> BooleanNetwork:
        r"""Read the ``.bnet`` format: one line ``gene, function`` with ``! & | ( ) 0 1``.

        A regulator without a line of its own becomes an input that holds, with a warning.

        Args:
            text: Content of the file.
            source: What to call it in errors.

        Raises:
            DataError: a gene with two functions, names that collide, a function that cannot be
                read, a file without genes; each with its line.

        >>> BooleanNetwork.from_bnet("A, !B\nB, A & !C").names
        ('A', 'B', 'C')
        """
        lines: dict[str, tuple[int, str]] = {}
        for number, raw in enumerate(text.splitlines(), start=1):
            line = raw.split("#", 1)[0].strip()
            if not line or re.fullmatch(r"targets\s*,\s*(factors|functions)", line, re.IGNORECASE):
                continue
            name, comma, factors = (part.strip() for part in line.partition(","))
            if not comma or not name or not factors:
                raise DataError(
                    f"{source}, line {number}: expected 'gene, function', got '{raw.strip()}'"
                )
            if not re.fullmatch(r"[^\s&|!~()]+", name):
                raise DataError(
                    f"{source}, line {number}: '{name}' cannot be a gene name: no spaces, "
                    "operators or brackets"
                )
            if name in lines:
                earlier, other = lines[name]
                how = "the same" if other == factors else "another"
                raise DataError(
                    f"{source} contradicts itself: {name} has a function in line {earlier} and "
                    f"{how} in line {number}; keep one"
                )
            lines[name] = number, factors
        if not lines:
            raise DataError(f"{source} holds no gene: expected lines such as  A, B & !C")
        names = list(lines)
        _refuse_equal_but_case(names, lines, source)
        parsed = [
            _Parser(factors, f"{source}, line {number} ({name})").parse()
            for name, (number, factors) in lines.items()
        ]
        unknown = list(dict.fromkeys(g for e in parsed for g in _genes(e) if g not in lines))
        names += unknown
        place = {name: i for i, name in enumerate(names)}
        functions = [_numbered(e, place) for e in parsed]
        functions += [("gene", place[name]) for name in unknown]
        warnings = ()
        if unknown:
            warnings = (
                f"{len(unknown)} regulators have no function and are taken as inputs that hold: "
                + ", ".join(unknown[:8])
                + (" …" if len(unknown) > 8 else ""),
            )
        network = cls(tuple(names), tuple(functions), warnings)
        return replace(network, warnings=warnings + network._constants_in_disguise())

    @classmethod
    def load(cls, path: Path | str) -> BooleanNetwork:
        """Read a ``.bnet`` file.

        Raises:
            MissingDataError: there is no such file.
            DataError: it cannot be read.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingDataError(f"there is no file {path}: give the path of a .bnet file")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is no text file: a .bnet file was expected") from error
        return cls.from_bnet(text, source=path.name)

    @classmethod
    def from_circuit(cls, circuit: SignedCircuit, *, rule: str = "threshold") -> BooleanNetwork:
        """The network a signed circuit is under an update rule, as sums of its prime terms."""
        functions = []
        for gene in range(circuit.n_gene):
            column = circuit.adjacency[:, gene]
            regulators = np.flatnonzero(column).tolist()
            local = sorted({*regulators, gene})
            _check_regulators(len(local), circuit.names[gene])
            part = np.zeros((len(local), len(local)), dtype=np.int8)
            own = local.index(gene)
            part[:, own] = column[local]
            table = (successors(part, rule=rule) >> own) & 1
            functions.append(_prime_terms(table.astype(bool), local))
        return cls(circuit.names, tuple(functions))

    def to_bnet(self) -> str:
        """Text of a ``.bnet`` file."""
        rows = [
            f"{name}, {_written(function, self.names)}"
            for name, function in zip(self.names, self.functions, strict=True)
        ]
        return "\n".join(["targets, factors", *rows]) + "\n"

    def step(self, states: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Synchronous successors of states, both ``(n_state, n_gene)`` bool."""
        columns = [np.ascontiguousarray(states[:, g]) for g in range(self.n_gene)]
        return np.stack(
            [_evaluated(f, columns.__getitem__, len(states)) for f in self.functions], 1
        )

    def successors(self) -> NDArray[np.int32]:
        """Successor of every state, ``(2ⁿ,)`` int32; bit ``g`` of a state is gene ``g``.

        Raises:
            ConfigError: more than 20 genes.
        """
        if self.n_gene > N_GENE_LISTED:
            raise ConfigError(
                f"{self.n_gene} genes have 2^{self.n_gene} states; they are listed up to "
                f"{N_GENE_LISTED} genes: use the symbolic engine (engine=symbolic)"
            )
        n_state = 2**self.n_gene
        states = np.arange(n_state, dtype=np.int32)
        columns: dict[int, NDArray[np.bool_]] = {}

        def column(gene: int) -> NDArray[np.bool_]:
            if gene not in columns:
                columns[gene] = (states >> gene) & 1 == 1
            return columns[gene]

        successor = np.zeros(n_state, dtype=np.int32)
        for gene, function in enumerate(self.functions):
            successor |= _evaluated(function, column, n_state).astype(np.int32) << gene
        return successor

    def regulators(self, gene: int) -> list[int]:
        """Genes that occur in the function of a gene, ascending."""
        return sorted(set(_genes(self.functions[gene])))

    def signs(self) -> NDArray[np.int8]:
        """Sign of each essential influence, ``[source, target]``; 2 where it acts both ways.

        Raises:
            DataError: a function of more than 16 regulators.
        """
        matrix = np.zeros((self.n_gene, self.n_gene), dtype=np.int8)
        for gene, function in enumerate(self.functions):
            local = self.regulators(gene)
            table = self._table(gene, local, function)
            for k, source in enumerate(local):
                pairs = table.reshape(-1, 2, 2**k)
                rises = bool((pairs[:, 1] & ~pairs[:, 0]).any())
                falls = bool((pairs[:, 0] & ~pairs[:, 1]).any())
                matrix[source, gene] = 2 if rises and falls else int(rises) - int(falls)
        return matrix

    def to_circuit(self, *, rule: str = "threshold") -> SignedCircuit:
        """The signed circuit whose rule gives exactly these functions.

        A gene that holds (``A, A``) becomes an input without edges.

        Raises:
            DataError: an influence with both signs, or functions no circuit has under the rule.
        """
        signs = self.signs()
        if (signs == 2).any():
            source, target = np.argwhere(signs == 2)[0]
            raise DataError(
                f"{self.names[source]} both activates and inhibits {self.names[target]}: this "
                "network is no signed circuit; attractors are found without making it one"
            )
        for gene, function in enumerate(self.functions):
            local = sorted({*self.regulators(gene), gene})
            own = local.index(gene)
            wanted = self._table(gene, local, function)
            part = np.zeros((len(local), len(local)), dtype=np.int8)
            without = (successors(part, rule=rule) >> own) & 1 == 1
            if local == [gene] and np.array_equal(without, wanted):
                signs[gene, gene] = 0  # a gene that holds is an input, where the rule has such
                continue
            part[:, own] = signs[local, gene]
            if not np.array_equal((successors(part, rule=rule) >> own) & 1 == 1, wanted):
                raise DataError(
                    f"the function of {self.names[gene]} is not what the rule '{rule}' makes of "
                    "its activators and inhibitors: this network is no signed circuit"
                )
        return SignedCircuit(signs, self.names)

    def _constants_in_disguise(self) -> tuple[str, ...]:
        """A warning for each gene whose function contradicts itself, as ``A & !A`` does."""
        found = []
        for gene, function in enumerate(self.functions):
            local = self.regulators(gene)
            if not 0 < len(local) <= N_REGULATOR_MAX:
                continue
            table = self._table(gene, local, function)
            if table.all() or not table.any():
                found.append(
                    f"the function of {self.names[gene]} is always {int(table[0])}, whatever its "
                    "regulators do"
                )
        return tuple(found)

    def _table(self, gene: int, local: Sequence[int], function: Expression) -> NDArray[np.bool_]:
        _check_regulators(len(local), self.names[gene])
        bits = np.arange(2 ** len(local))
        columns = {g: (bits >> k) & 1 == 1 for k, g in enumerate(local)}
        return _evaluated(function, columns.__getitem__, len(bits))


def _refuse_equal_but_case(
    names: Sequence[str], lines: dict[str, tuple[int, str]], source: str
) -> None:
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(
                f"{source}: the gene names '{other}' (line {lines[other][0]}) and '{name}' (line "
                f"{lines[name][0]}) collide: names must differ by more than case"
            )


def _check_regulators(n: int, name: str) -> None:
    if n > N_REGULATOR_MAX:
        raise DataError(
            f"{name} has {n} regulators; truth tables are written out up to {N_REGULATOR_MAX}"
        )


class _Parser:
    """Recursive descent: a sum (``|``) of products (``&``) of genes, negations and brackets."""

    def __init__(self, text: str, where: str) -> None:
        self.tokens = re.findall(r"[!~&|()]|[^\s!~&|()]+", text)
        self.text = text
        self.where = where
        self.at = 0

    def parse(self) -> Expression:
        expression = self._chain("|", "or", lambda: self._chain("&", "and", self._unary))
        if self.at < len(self.tokens):
            raise self._error(f"'{self.tokens[self.at]}' is unexpected")
        return expression

    def _chain(self, symbol: str, name: str, part: Callable[[], Expression]) -> Expression:
        parts = [part()]
        while self._next() == symbol:
            self.at += 1
            parts.append(part())
        return parts[0] if len(parts) == 1 else (name, *parts)

    def _unary(self) -> Expression:
        token = self._next()
        self.at += 1
        if token is None or token in "&|)":
            raise self._error("a gene, 0, 1 or a bracket is missing")
        if token in ("!", "~"):
            return ("not", self._unary())
        if token == "(":
            inner = self._chain("|", "or", lambda: self._chain("&", "and", self._unary))
            if self._next() != ")":
                raise self._error("a bracket is not closed")
            self.at += 1
            return inner
        if token.lower() in ("0", "1", "true", "false"):
            return ("constant", token.lower() in ("1", "true"))
        return ("gene", token)

    def _next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def _error(self, what: str) -> DataError:
        return DataError(
            f"{self.where}: {what} in '{self.text}' (operators are ! & | and brackets)"
        )


def _genes(expression: Expression) -> list[Any]:
    if expression[0] == "gene":
        return [expression[1]]
    if expression[0] == "constant":
        return []
    return [g for part in expression[1:] for g in _genes(part)]


def _numbered(expression: Expression, place: dict[str, int]) -> Expression:
    if expression[0] == "gene":
        return ("gene", place[expression[1]])
    if expression[0] == "constant":
        return expression
    return (expression[0], *(_numbered(part, place) for part in expression[1:]))


def _evaluated(
    expression: Expression, column: Callable[[int], NDArray[np.bool_]], n_state: int
) -> NDArray[np.bool_]:
    kind = expression[0]
    if kind == "gene":
        return column(expression[1])
    if kind == "constant":
        return np.full(n_state, expression[1])
    if kind == "not":
        return ~_evaluated(expression[1], column, n_state)
    result = _evaluated(expression[1], column, n_state)
    for part in expression[2:]:
        other = _evaluated(part, column, n_state)
        result = result & other if kind == "and" else result | other
    return result


def _written(expression: Expression, names: tuple[str, ...], *, inside: bool = False) -> str:
    kind = expression[0]
    if kind == "gene":
        return names[expression[1]]
    if kind == "constant":
        return "1" if expression[1] else "0"
    if kind == "not":
        return "!" + _written(expression[1], names, inside=True)
    symbol = " & " if kind == "and" else " | "
    text = symbol.join(_written(part, names, inside=True) for part in expression[1:])
    return f"({text})" if inside else text


def _prime_terms(table: NDArray[np.bool_], genes: Sequence[int]) -> Expression:
    """Sum of the prime terms of a unate truth table over ``genes`` (bit k is gene k of them)."""
    if table.all() or not table.any():
        return ("constant", bool(table[0]))
    bits = np.arange(len(table))
    signs: list[int] = []
    for k in range(len(genes)):
        pairs = table.reshape(-1, 2, 2**k)
        rises, falls = (pairs[:, 1] & ~pairs[:, 0]).any(), (pairs[:, 0] & ~pairs[:, 1]).any()
        if rises and falls:
            raise AssertionError("update rules of signed circuits are unate")
        signs.append(int(rises) - int(falls))
    used = [k for k, sign in enumerate(signs) if sign]
    # in literals (1: the gene is in its favourable state) the function is monotone
    favourable = sum(1 << k for k in used if signs[k] < 0)
    terms: list[tuple[int, ...]] = []
    for size in range(len(used) + 1):
        for chosen in itertools.combinations(used, size):
            if any(set(term) <= set(chosen) for term in terms):
                continue
            state = sum(1 << k for k in chosen) ^ favourable
            if table[bits[state]]:
                terms.append(chosen)
    products: list[Expression] = []
    for term in terms:
        literals: list[Expression] = [
            ("gene", genes[k]) if signs[k] > 0 else ("not", ("gene", genes[k])) for k in term
        ]
        products.append(literals[0] if len(literals) == 1 else ("and", *literals))
    return products[0] if len(products) == 1 else ("or", *products)
