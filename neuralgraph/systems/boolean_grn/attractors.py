"""Attractors as data: fixed points, cycles and complex attractors, with periods and basins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuralgraph.core.errors import ConfigError, MissingExtraError, SolverError, nearest
from neuralgraph.systems.boolean_grn.circuit import SignedCircuit
from neuralgraph.systems.boolean_grn.network import N_GENE_LISTED, BooleanNetwork
from neuralgraph.systems.boolean_grn.oracle import N_GENE_EXACT, UPDATES, successors

ENGINES = ("auto", "exact", "symbolic")
N_STATE_KEPT = 64
"""States of one attractor that are written out; larger ones are described by their pattern."""
N_STEP_MAX = 2000
"""Steps after which a walk of the symbolic engine's cycle sample is given up."""


@dataclass(frozen=True)
class Attractor:
    """States a network stays in for ever.

    Args:
        kind: ``fixed_point``, ``cycle`` (synchronous) or ``complex`` (several states,
            asynchronous).
        n_state: How many states it has.
        period: Steps until it repeats; ``None`` for a complex attractor.
        pattern: One sign per gene: ``0`` and ``1`` stay, ``-`` moves.
        states: ``(n, n_gene)`` bool, in the order of a cycle from its smallest state; the first 64
            at most.
        basin: Share of all states that lead here and nowhere else; ``None`` from the symbolic
            engine.
        reach: Share of all states that can lead here; the same as ``basin`` under synchronous
            update.
    """

    kind: str
    n_state: int
    period: int | None
    pattern: str
    states: NDArray[np.bool_]
    basin: float | None
    reach: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; states as strings of 0 and 1."""
        content = asdict(self)
        content["states"] = ["".join("01"[int(v)] for v in row) for row in self.states]
        return content


@dataclass(frozen=True)
class AttractorList:
    """Attractors of one network.

    Args:
        names: Genes, in the order of every state and pattern.
        update: ``synchronous`` or ``asynchronous``.
        engine: ``exact`` (every state visited) or ``symbolic``.
        attractors: The attractors found, fixed points first.
        counts: Number of attractors of each kind, also of those not listed.
        notes: What the list leaves out, and why.
    """

    names: tuple[str, ...]
    update: str
    engine: str
    attractors: tuple[Attractor, ...]
    counts: Mapping[str, int]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "names": list(self.names),
            "update": self.update,
            "engine": self.engine,
            "counts": dict(self.counts),
            "notes": list(self.notes),
            "attractors": [a.to_dict() for a in self.attractors],
        }


def find_attractors(
    network: BooleanNetwork | SignedCircuit,
    *,
    update: str = "synchronous",
    rule: str = "threshold",
    engine: str = "auto",
    n_listed: int = 1000,
    seconds_limit: float = 60.0,
    n_start: int = 1000,
) -> AttractorList:
    """Attractors of a network, with their basins.

    Args:
        network: A Boolean network, or a signed circuit with an update rule.
        update: ``synchronous`` or ``asynchronous`` (one gene at a time).
        rule: Update rule of a signed circuit; a network has its own functions.
        engine: ``exact`` visits every state (up to 20 genes), ``symbolic`` takes decision diagrams
            (extra ``boolean``); ``auto`` is exact up to 20 genes. The symbolic engine knows
            asynchronous update; fixed points are the same under both.
        n_listed: Attractors written out; all are counted.
        seconds_limit: Time the symbolic search for attractors of several states may take.
        n_start: Random states from which the symbolic engine follows synchronous update to find
            cycles; they are a sample, and the notes say so.

    Raises:
        ConfigError: an unknown update or engine, or too many genes for the exact engine.
        MissingExtraError: the symbolic engine is not installed.

    >>> found = find_attractors(SignedCircuit.from_text("A -| B, B -| A"))
    >>> [(a.kind, a.pattern, a.basin) for a in found.attractors]
    [('fixed_point', '10', 0.25), ('fixed_point', '01', 0.25), ('cycle', '--', 0.5)]
    """
    for what, value, known in (("update", update, UPDATES), ("engine", engine, ENGINES)):
        if value not in known:
            raise ConfigError(f"there is no {what} '{value}': {nearest(str(value), known)}")
    if engine == "auto":
        engine = "exact" if network.n_gene <= N_GENE_LISTED else "symbolic"
    if isinstance(network, SignedCircuit) and network.n_gene > N_GENE_EXACT:
        network = BooleanNetwork.from_circuit(network, rule=rule)
    if engine == "exact":
        if isinstance(network, SignedCircuit):
            table = successors(network, rule=rule)
        else:
            table = network.successors()
        return _exact(table, network.names, update, n_listed)
    if isinstance(network, SignedCircuit):
        network = BooleanNetwork.from_circuit(network, rule=rule)
    return _symbolic(network, update, n_listed, seconds_limit, n_start)


def as_states(index: NDArray[np.integer], n_gene: int) -> NDArray[np.bool_]:
    """States as rows of bits, ``(n, n_gene)``; bit ``g`` of the integer is gene ``g``."""
    return (np.asarray(index)[:, None] >> np.arange(n_gene)) & 1 == 1


def pattern_of(states: NDArray[np.bool_]) -> str:
    """``0`` and ``1`` for genes that stay, ``-`` for genes that move.

    >>> pattern_of(np.array([[True, False], [True, True]]))
    '1-'
    """
    low, high = states.min(0), states.max(0)
    return "".join("-" if lo != hi else "01"[int(lo)] for lo, hi in zip(low, high, strict=True))


def _exact(
    successor: NDArray[np.int32], names: tuple[str, ...], update: str, n_listed: int
) -> AttractorList:
    from neuralgraph.systems.boolean_grn import kernels

    n_gene, n_state = len(names), len(successor)
    attractor_of = np.empty(n_state, dtype=np.int32)
    found: list[tuple[tuple[int, int], NDArray[np.integer], float, float]] = []
    if update == "synchronous":
        n_found, first = kernels.synchronous_attractors(successor, attractor_of)
        sizes = np.bincount(attractor_of, minlength=n_found)
        for k in range(n_found):
            cycle = [int(first[k])]
            while (following := int(successor[cycle[-1]])) != cycle[0]:
                cycle.append(following)
            start = cycle.index(min(cycle))
            cycle = np.array(cycle[start:] + cycle[:start])
            share = float(sizes[k] / n_state)
            found.append(((len(cycle), int(cycle[0])), cycle, share, share))
    else:
        n_reached = np.empty(n_state, dtype=np.int32)
        n_found, first, reach = kernels.asynchronous_attractors(
            successor, n_gene, attractor_of, n_reached
        )
        mark = np.zeros(n_state, dtype=np.int32)
        queue = np.empty(n_state, dtype=np.int32)
        members = np.argsort(attractor_of, kind="stable")
        begins = np.searchsorted(attractor_of[members], np.arange(n_found + 1))
        for k in range(n_found):
            kernels.backward_closure(successor, n_gene, int(first[k]), k + 1, mark, queue)
            certain = int(((mark == k + 1) & (n_reached == 1)).sum())
            own = members[begins[k] : begins[k + 1]]
            key = (len(own), int(own[0]))
            found.append((key, own, certain / n_state, float(reach[k] / n_state)))
    found.sort(key=lambda item: item[0])
    attractors = []
    several = "cycle" if update == "synchronous" else "complex"
    for _, index, basin, reached in found[:n_listed]:
        states = as_states(index, n_gene)
        kind = "fixed_point" if len(index) == 1 else several
        attractors.append(
            Attractor(
                kind=kind,
                n_state=len(index),
                period=None if kind == "complex" else len(index),
                pattern=pattern_of(states),
                states=states[:N_STATE_KEPT],
                basin=basin,
                reach=reached,
            )
        )
    n_fixed = sum(len(index) == 1 for _, index, _, _ in found)
    notes = ()
    if len(found) > n_listed:
        notes = (f"{len(found):,} attractors in all; the first {n_listed:,} are listed",)
    return AttractorList(
        names=names,
        update=update,
        engine="exact",
        attractors=tuple(attractors),
        counts={"fixed_point": n_fixed, several: len(found) - n_fixed},
        notes=notes,
    )


def _symbolic(
    network: BooleanNetwork, update: str, n_listed: int, seconds_limit: float, n_start: int
) -> AttractorList:
    """Fixed points by decision diagrams; complex attractors in a process that may be stopped."""
    try:
        import biodivine_aeon as aeon
    except ImportError as error:
        raise MissingExtraError("biodivine_aeon", "boolean", "the symbolic engine") from error

    graph, order = _aeon_graph(network)
    every = graph.mk_unit_colored_vertices()
    fixed = aeon.FixedPoints.symbolic(graph, every).vertices()
    n_fixed = int(fixed.cardinality())
    notes: list[str] = []
    points = []
    for vertex in fixed.items():
        if len(points) == n_listed:
            break
        row = np.array([vertex.to_named_dict()[name] for name in order], dtype=bool)
        points.append(row)
    if n_fixed > n_listed:
        notes.append(f"{n_fixed:,} fixed points in all; the first {n_listed:,} found are listed")
    points.sort(key=lambda row: tuple(row[::-1]))
    attractors = [
        Attractor("fixed_point", 1, 1, pattern_of(row[None]), row[None], None, None)
        for row in points
    ]
    counts = {"fixed_point": n_fixed}
    if update == "synchronous":
        cycles, n_open = _sampled_cycles(network, n_start)
        counts["cycle"] = len(cycles)
        for states, share in cycles[: max(0, n_listed - len(attractors))]:
            period, kept = len(states), states[:N_STATE_KEPT]
            attractors.append(
                Attractor("cycle", period, period, pattern_of(states), kept, None, share)
            )
        notes.append(
            f"{network.n_gene} genes are too many to visit every state: the fixed points are "
            f"complete, cycles were looked for from {n_start:,} random states only (reach is the "
            "share of them that came there)"
            + (
                f"; {n_open:,} of these had not come back after {N_STEP_MAX:,} steps"
                if n_open
                else ""
            )
        )
    else:
        complexes = _within(seconds_limit, _complex_sets, network)
        if complexes is None:
            n_space = _within(seconds_limit, _n_minimal_trap_space, network)
            bound = ""
            if n_space is not None:
                bound = (
                    f"; at least {n_space - n_fixed:,} of these there are (minimal trap spaces "
                    "that are no fixed point, each of which holds one)"
                    if n_space > n_fixed
                    else "; every minimal trap space is a fixed point"
                )
            notes.append(
                f"the search for complex attractors was stopped after {seconds_limit:g} s: the "
                f"fixed points are complete, other attractors may be missing{bound}; raise "
                "seconds_limit"
            )
        else:
            counts["complex"] = len(complexes)
            for n_state, pattern, sample in complexes[: max(0, n_listed - len(attractors))]:
                states = np.array(sample, dtype=bool)
                attractors.append(Attractor("complex", n_state, None, pattern, states, None, None))
    notes.append("the symbolic engine gives no basins")
    return AttractorList(
        names=network.names,
        update=update,
        engine="symbolic",
        attractors=tuple(attractors),
        counts=counts,
        notes=tuple(notes),
    )


def _sampled_cycles(
    network: BooleanNetwork, n_start: int
) -> tuple[list[tuple[NDArray[np.bool_], float]], int]:
    """Synchronous cycles met from random states (a fixed stream): states in order, and share.

    All walks step together. After a burn-in the state is kept and every walk goes on until it
    comes back to it.
    """
    from neuralgraph.core.seeding import numpy_generator  # imports torch, which the search's own
    # process does without

    states = numpy_generator(0, "synchronous cycles").random((n_start, network.n_gene)) < 0.5
    cycles: dict[bytes, tuple[NDArray[np.bool_], int]] = {}
    burn_in, n_step = 64, 0
    while len(states) and n_step < N_STEP_MAX:
        for _ in range(burn_in):
            states = network.step(states)
        n_step += burn_in
        path = [states]
        is_back = np.zeros(len(states), dtype=bool)
        period = np.zeros(len(states), dtype=int)
        for k in range(1, burn_in + 1):
            path.append(network.step(path[-1]))
            is_now = ~is_back & (path[-1] == states).all(1)
            period[is_now] = k
            is_back |= is_now
            if is_back.all():
                break
        for walk in np.flatnonzero(is_back & (period > 1)):
            cycle = np.stack([path[k][walk] for k in range(period[walk])])
            first = min(range(len(cycle)), key=lambda k: cycle[k].tobytes())
            cycle = np.roll(cycle, -first, axis=0)
            known = cycles.get(cycle[0].tobytes(), (cycle, 0))
            cycles[cycle[0].tobytes()] = known[0], known[1] + 1
        states = states[~is_back]
        burn_in *= 2
    found = sorted(cycles.values(), key=lambda item: (len(item[0]), item[0][0].tobytes()))
    return [(cycle, count / n_start) for cycle, count in found], len(states)


def _aeon_graph(network: BooleanNetwork) -> tuple[Any, list[str]]:
    """The symbolic graph of a network, with plain names (the engine allows fewer letters)."""
    import biodivine_aeon as aeon

    order = [f"g{k}" for k in range(network.n_gene)]
    plain = BooleanNetwork(tuple(order), network.functions)
    model = aeon.BooleanNetwork.from_bnet(plain.to_bnet()).infer_valid_graph()
    return aeon.AsynchronousGraph(model), order


def _complex_sets(network: BooleanNetwork) -> list[tuple[int, str, list[list[bool]]]]:
    import biodivine_aeon as aeon

    graph, order = _aeon_graph(network)
    every = graph.mk_unit_colored_vertices()
    fixed = aeon.FixedPoints.symbolic(graph, every)
    # what can reach a fixed point is in no complex attractor
    settled = aeon.Reachability.reach_bwd(graph, fixed)
    rest = every.minus(settled)
    found = []
    sets = [] if rest.is_empty() else aeon.Attractors.attractors(graph, rest)
    for member in sets:
        vertices = member.vertices()
        space = vertices.enclosing_named_subspace() or {}
        pattern = "".join("-" if space.get(n) is None else "01"[bool(space[n])] for n in order)
        sample = []
        for vertex in vertices.items():
            if len(sample) == N_STATE_KEPT:
                break
            values = vertex.to_named_dict()
            sample.append([bool(values[name]) for name in order])
        found.append((int(vertices.cardinality()), pattern, sample))
    return sorted(found, key=lambda item: (item[0], item[1]))


def _n_minimal_trap_space(network: BooleanNetwork) -> int:
    """Smallest sets of states, given by fixed values of some genes, that cannot be left.

    Fixed points are among them, and each holds at least one attractor of its own, whatever the
    update: a lower bound where the attractors themselves are too many to compute.

    Source:
        Klarner, Bockmayr & Siebert, Natural Computing 14 (2015).
    """
    import biodivine_aeon as aeon

    order = tuple(f"g{k}" for k in range(network.n_gene))
    plain = BooleanNetwork(order, network.functions).to_bnet()
    model = aeon.BooleanNetwork.from_bnet(plain).infer_valid_graph()
    context = aeon.SymbolicSpaceContext(model)
    graph = aeon.AsynchronousGraph(model, context)
    return int(aeon.TrapSpaces.minimal_symbolic(context, graph).spaces().cardinality())


def _work(task: Callable[[BooleanNetwork], Any], network: BooleanNetwork, pipe: Any) -> None:
    pipe.send("begins")  # the clock does not run while the process starts
    pipe.send(task(network))
    pipe.close()


def _within(
    seconds_limit: float, task: Callable[[BooleanNetwork], Any], network: BooleanNetwork
) -> Any | None:
    """Result of a symbolic search, or ``None`` when the time is up; it runs in its own process.

    Raises:
        SolverError: the process ended by itself without a result.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(task, network, sender), daemon=True)
    process.start()
    sender.close()
    try:
        receiver.recv()
        return receiver.recv() if receiver.poll(seconds_limit) else None
    except EOFError as error:
        raise SolverError(
            "the process of the symbolic search ended without a result (out of memory?): ask for "
            "update=synchronous, which needs the fixed points only"
        ) from error
    finally:
        if process.is_alive():
            process.terminate()
        process.join()
