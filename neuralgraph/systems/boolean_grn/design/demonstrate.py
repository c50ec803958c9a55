"""A trajectory that shows the phenotype of a circuit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuralgraph.systems.boolean_grn.attractors import as_states
from neuralgraph.systems.boolean_grn.circuit import SignedCircuit
from neuralgraph.systems.boolean_grn.oracle import successors

N_FRAME_MAX = 30


@dataclass(frozen=True)
class Demonstration:
    """Frames of a trajectory.

    Args:
        states: ``(n_frame, n_gene)`` bool.
        cuts: Frames at which something is done from outside (a gene switched, another start).
        caption: What is shown.
    """

    states: NDArray[np.bool_]
    cuts: tuple[int, ...]
    caption: str


def demonstrate(
    circuit: SignedCircuit, phenotype: str, *, rule: str = "threshold"
) -> Demonstration:
    """A trajectory on which the phenotype can be seen, under synchronous update.

    Args:
        circuit: A circuit that has the phenotype.
        phenotype: Its name.
        rule: Update rule.
    """
    table = successors(circuit, rule=rule)
    fixed = [x for x in range(len(table)) if table[x] == x]
    witness = {
        "toggle_switch": _toggle,
        "oscillator": _oscillation,
        "pulse_generator": _response,
        "amplifier": _response,
    }.get(phenotype, _return)
    path, cuts, caption = witness(circuit, table, fixed, phenotype)
    states = as_states(np.array(path[:N_FRAME_MAX]), circuit.n_gene)
    return Demonstration(states, tuple(c for c in cuts if c < N_FRAME_MAX), caption)


Path = tuple[list[int], tuple[int, ...], str]


def _walk(table: NDArray[np.int32], state: int, *, clamp: int = 0) -> list[int]:
    """States from ``state`` until one comes back, which is the last."""
    path = [state | clamp]
    while True:
        following = int(table[path[-1]]) | clamp
        path.append(following)
        if following in path[:-1]:
            return path


def _toggle(
    circuit: SignedCircuit, table: NDArray[np.int32], fixed: list[int], phenotype: str
) -> Path:
    matrix, names = circuit.adjacency, circuit.names
    moves = np.bitwise_or.reduce(table ^ np.arange(len(table), dtype=table.dtype))
    held = ~int(moves)
    for i, j in np.argwhere((matrix == -1) & (matrix.T == -1) & ~np.eye(len(matrix), dtype=bool)):
        for x in fixed:
            for y in fixed:
                is_pair = x >> i & 1 and not x >> j & 1 and y >> j & 1 and not y >> i & 1
                if is_pair and x & held == y & held:
                    caption = f"two rests with the same inputs: {names[i]} on, or {names[j]} on"
                    return [x] * 5 + [y] * 5, (5,), caption
    return _return(circuit, table, fixed, phenotype)


def _oscillation(
    circuit: SignedCircuit, table: NDArray[np.int32], fixed: list[int], phenotype: str
) -> Path:
    best: list[int] = []
    for start in range(len(table)):
        path = _walk(table, start)
        cycle = path[path.index(path[-1]) : -1]
        if len(cycle) > len(best):
            best = cycle
    n_frame = min(N_FRAME_MAX, max(12, 3 * len(best)))
    path = [best[k % len(best)] for k in range(n_frame)]
    return path, (), f"its longest cycle, of period {len(best)}"


def _response(
    circuit: SignedCircuit, table: NDArray[np.int32], fixed: list[int], phenotype: str
) -> Path:
    """Rest, then one gene held on: the pulse of C, or the steady response of B and C."""
    matrix, names = circuit.adjacency, circuit.names
    n = circuit.n_gene
    for a in range(n):
        for b in range(n):
            for c in range(n):
                is_chain = len({a, b, c}) == 3 and matrix[a, b] == 1
                if phenotype == "pulse_generator":
                    is_motif = is_chain and matrix[a, c] == 1 and matrix[b, c] == -1
                else:
                    is_motif = is_chain and matrix[b, c] == 1
                if not is_motif:
                    continue
                for x in fixed:
                    if x >> a & 1 or x >> c & 1:
                        continue
                    path = _walk(table, x, clamp=1 << a)
                    if path[-1] != path[-2]:
                        continue
                    met = any(y >> c & 1 for y in path)
                    end = path[-1]
                    is_shown = (
                        met and not end >> c & 1
                        if phenotype == "pulse_generator"
                        else not x >> b & 1 and end >> b & 1 and end >> c & 1
                    )
                    if is_shown:
                        what = "pulses" if phenotype == "pulse_generator" else "follows"
                        caption = f"{names[a]} is held on from step 3; {names[c]} {what}"
                        return [x] * 3 + path + [end] * 2, (3,), caption
    return _return(circuit, table, fixed, phenotype)


def _return(
    circuit: SignedCircuit, table: NDArray[np.int32], fixed: list[int], phenotype: str
) -> Path:
    """The longest way back after one gene was flipped, or the longest way to an attractor."""
    inputs = ~int(np.bitwise_or.reduce(table ^ np.arange(len(table), dtype=table.dtype)))
    best: list[int] = []
    start, flipped = 0, ""
    for x in fixed:
        for g in range(circuit.n_gene):
            if inputs >> g & 1:
                continue
            path = _walk(table, x ^ (1 << g))
            if path[-1] == x and len(path) > len(best):
                best, start, flipped = path, x, circuit.names[g]
    if best:
        caption = f"{flipped} is flipped at step 3, and the circuit returns"
        return [start] * 3 + best + [best[-1]], (3,), caption
    best = max((_walk(table, x) for x in range(len(table))), key=len)
    return best, (), "the longest way to an attractor"
