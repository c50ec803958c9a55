"""A second oracle, written from the definitions and for clarity alone: dictionaries, tuples, loops.

It shares nothing with the package: other data structures, simple cycles by enumeration, responses
by plain simulation. ``scripts/bench_oracle.py`` takes it as the slow row.
"""

from __future__ import annotations

from itertools import product


def rule_threshold(activators, inhibitors, state, gene):
    if not activators and not inhibitors:
        return state[gene]
    a = sum(state[g] for g in activators)
    i = sum(state[g] for g in inhibitors)
    return int(a - i + (-0.5 if activators else 0.5) > 0)


def rule_tie_on(activators, inhibitors, state, gene):
    """The rule "constitutive" of the public implementation."""
    a = sum(state[g] for g in activators)
    i = sum(state[g] for g in inhibitors)
    if not activators and not inhibitors:
        return state[gene]
    if not activators:
        return int(i == 0)
    if not inhibitors:
        return int(a > 0)
    if a == i:
        return int(a > 0)
    return int(a > i)


def rule_tie_hold(activators, inhibitors, state, gene):
    a = sum(state[g] for g in activators)
    i = sum(state[g] for g in inhibitors)
    return 1 if a > i else 0 if i > a else state[gene]


def rule_inhibitor_wins(activators, inhibitors, state, gene):
    if any(state[g] for g in inhibitors):
        return 0
    return 1 if any(state[g] for g in activators) else state[gene]


def rule_inhibitor_wins_or_off(activators, inhibitors, state, gene):
    if any(state[g] for g in inhibitors):
        return 0
    return int(any(state[g] for g in activators))


def rule_literal(activators, inhibitors, state, gene):
    return int(sum(state[g] for g in activators) > sum(state[g] for g in inhibitors))


RULES = {
    "threshold": rule_threshold,
    "tie_on": rule_tie_on,
    "tie_hold": rule_tie_hold,
    "inhibitor_wins": rule_inhibitor_wins,
    "inhibitor_wins_or_off": rule_inhibitor_wins_or_off,
    "literal": rule_literal,
}


def simple_cycles(edges, genes):
    """Signs of all simple cycles among ``genes``; ``edges[(s, t)]`` is the sign."""
    genes = sorted(genes)
    found = []

    def walk(first, at, visited, sign, length):
        for target in genes:
            if (at, target) not in edges:
                continue
            if target == first:
                found.append((sign * edges[at, target], length))
            elif target > first and target not in visited:
                walk(first, target, visited | {target}, sign * edges[at, target], length + 1)

    for first in genes:
        walk(first, first, {first}, 1, 1)
    return found


def attractors(successor):
    """Attractors of a deterministic map, as frozensets of states."""
    found = set()
    for start in successor:
        state = start
        for _ in range(len(successor)):
            state = successor[state]
        cycle = [state]
        while successor[cycle[-1]] != state:
            cycle.append(successor[cycle[-1]])
        found.add(frozenset(cycle))
    return found


def asynchronous_attractors(successor):
    """Terminal strongly connected components of single-gene updates, by mutual reachability."""
    reach = {}
    for start in successor:
        seen, todo = {start}, [start]
        while todo:
            state = todo.pop()
            for g, value in enumerate(successor[state]):
                if value != state[g]:
                    other = (*state[:g], value, *state[g + 1 :])
                    if other not in seen:
                        seen.add(other)
                        todo.append(other)
        reach[start] = frozenset(seen)
    return {r for s, r in reach.items() if all(reach[t] == r for t in r)}


def facts(matrix, rule="threshold", update="synchronous", feedback="self_activation"):
    """Label and a few facts of one circuit, ``matrix[source][target]``."""
    n = len(matrix)
    genes = range(n)
    edges = {(s, t): int(matrix[s][t]) for s in genes for t in genes if matrix[s][t]}
    up = {g: [s for s in genes if edges.get((s, g)) == 1] for g in genes}
    down = {g: [s for s in genes if edges.get((s, g)) == -1] for g in genes}
    follow = RULES[rule]
    states = list(product((0, 1), repeat=n))
    successor = {x: tuple(follow(up[g], down[g], x, g) for g in genes) for x in states}
    inputs = [g for g in genes if all(successor[x][g] == x[g] for x in states)]
    slice_of = {x: tuple(x[g] for g in inputs) for x in states}
    synchronous = attractors(successor)
    fixed = [x for x in states if successor[x] == x]
    cycles = [a for a in synchronous if len(a) > 1]
    loops = simple_cycles(edges, genes)
    is_negative = any(sign < 0 for sign, _ in loops)
    complexes = None
    if update == "asynchronous":
        complexes = [a for a in asynchronous_attractors(successor) if len(a) > 1]

    def moving(cycle):
        return [g for g in genes if len({x[g] for x in cycle}) == 2]

    def turns(cycle):
        return any(sign < 0 for sign, _ in simple_cycles(edges, moving(cycle)))

    def response(x, a):
        """States with ``a`` held on, from ``x`` until one comes back; None if it is a cycle."""
        path = [(*x[:a], 1, *x[a + 1 :])]
        while True:
            y = successor[path[-1]]
            y = (*y[:a], 1, *y[a + 1 :])
            if y == path[-1]:
                return path
            if y in path:
                return None
            path.append(y)

    def is_toggle():
        for i in genes:
            for j in genes:
                if i == j or edges.get((i, j)) != -1 or edges.get((j, i)) != -1:
                    continue
                for x in fixed:
                    for y in fixed:
                        if slice_of[x] == slice_of[y] and (x[i], x[j], y[i], y[j]) == (1, 0, 0, 1):
                            return True
        return False

    def is_pulse():
        for a in genes:
            for b in genes:
                for c in genes:
                    if len({a, b, c}) < 3:
                        continue
                    if (edges.get((a, b)), edges.get((a, c)), edges.get((b, c))) != (1, 1, -1):
                        continue
                    for x in fixed:
                        if x[a] or x[c]:
                            continue
                        path = response(x, a)
                        if path is not None and path[-1][c] == 0 and any(y[c] for y in path):
                            return True
        return False

    def is_amplifier():
        if feedback == "strict" and loops:
            return False
        if is_negative or (feedback == "self_activation" and any(k > 1 for _, k in loops)):
            return False
        for a in genes:
            for b in genes:
                for c in genes:
                    if len({a, b, c}) < 3 or edges.get((a, b)) != 1 or edges.get((b, c)) != 1:
                        continue
                    for x in fixed:
                        if x[a] or x[b] or x[c]:
                            continue
                        path = response(x, a)
                        if path is not None and path[-1][b] and path[-1][c]:
                            return True
        return False

    per_slice = {s: [] for s in slice_of.values()}
    for cycle in synchronous:
        per_slice[slice_of[next(iter(cycle))]].append(len(cycle))
    is_single = all(found == [1] for found in per_slice.values())
    if is_toggle():
        label = "toggle_switch"
    elif complexes if complexes is not None else any(turns(c) for c in cycles):
        label = "oscillator"
    elif is_pulse():
        label = "pulse_generator"
    elif is_amplifier():
        label = "amplifier"
    elif is_single and is_negative:
        label = "adaptation"
    else:
        label = "stable"
    return {
        "label": label,
        "n_input": len(inputs),
        "n_fixed_point": len(fixed),
        "n_cycle": len(cycles),
        "longest_period": max(len(a) for a in synchronous),
        "n_loop_cycle": sum(turns(c) for c in cycles),
        "is_multistable": any(found.count(1) > 1 for found in per_slice.values()),
        "has_negative_loop": is_negative,
        "has_spurious_cycle": any(not turns(c) for c in cycles),
        "complexes": complexes,
        "is_monostable": is_single if complexes is None else None,
    }


def label_all(matrices):
    """Labels of many circuits, as the benchmark counts them."""
    return [facts(matrix.tolist())["label"] for matrix in matrices]
