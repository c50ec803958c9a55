"""The search: propose, drop what is known, ask the oracle, keep what it confirms."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.recording import Recording
from neuralgraph.systems.boolean_grn.circuit import Adjacency, canonical_form
from neuralgraph.systems.boolean_grn.design.generators import Generator, usable
from neuralgraph.systems.boolean_grn.design.task import DesignTask
from neuralgraph.systems.boolean_grn.oracle import CircuitFacts
from neuralgraph.systems.boolean_grn.simulator import LEARN, core_keys

OBJECTIVES = ("first", "robust")
"""``first``: stop at the number asked for; ``robust``: use up the evaluations, return the most
robust."""
N_PROPOSAL_IDLE = 200
"""Batches without anything new after which a search ends."""


@dataclass(frozen=True)
class Design:
    """What a search found.

    Args:
        circuits: ``(n_found, n, n)``, confirmed by the oracle, no two isomorphic.
        robustness: Share of one-edge mutants that keep the phenotype, ``(n_found,)``.
        facts: The oracle's facts about them.
        n_evaluation: Circuits the oracle labelled during the search.
        n_evaluation_robustness: Mutants it labelled on top, for the robustness.
        n_hit: Circuits of the phenotype met, also those left out because they were known.
        n_known_hit: Those of them left out because they are in the training data.
        n_class: Isomorphism classes of the phenotype, where all are known (up to 3 genes).
        notes: What the user must know.
    """

    circuits: Adjacency
    robustness: NDArray[np.float64]
    facts: CircuitFacts
    n_evaluation: int
    n_evaluation_robustness: int
    n_hit: int
    n_known_hit: int
    n_class: int | None
    notes: tuple[str, ...] = field(default=())

    @property
    def evaluations_per_success(self) -> float:
        """Oracle evaluations of the search for each circuit of the phenotype it met."""
        return self.n_evaluation / self.n_hit if self.n_hit else float("inf")

    @property
    def novelty(self) -> float:
        """Share of the circuits met with the phenotype that are not in the training data."""
        return 1 - self.n_known_hit / self.n_hit if self.n_hit else float("nan")


def search(
    task: DesignTask,
    generator: Generator,
    *,
    n: int,
    n_batch: int,
    n_evaluation_max: int,
    objective: str,
    known: frozenset[bytes] = frozenset(),
) -> Design:
    """Find ``n`` circuits of the phenotype, no two isomorphic and none of them known.

    Every returned circuit was labelled by the exact oracle, so that success among the returned is
    certain and not a rate. Where all circuits are known (up to 3 genes) and there are no more
    classes than asked for, all of them are returned without a search, with a note.

    Args:
        task: What is designed.
        generator: Who proposes.
        n: Circuits to return.
        n_batch: Proposals at a time.
        n_evaluation_max: Oracle evaluations at most.
        objective: One of :data:`OBJECTIVES`.
        known: Keys that do not count as new (:func:`training_keys`).

    Raises:
        ConfigError: no circuit of this size has the phenotype, or none was found.
    """
    for name, value in (("n", n), ("n_batch", n_batch), ("n_evaluation_max", n_evaluation_max)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if objective not in OBJECTIVES:
        raise ConfigError(f"objective must be one of {', '.join(OBJECTIVES)}, got '{objective}'")
    classes = task.classes()
    if classes is not None and len(classes) <= n:
        return _all_classes(task, classes, n)

    seen: set[bytes] = set()
    hits: list[NDArray[np.int8]] = []
    n_evaluation = n_evaluation_robustness = n_known = n_idle = 0
    n_mutant = 2 * task.n_gene**2
    is_robust = objective == "robust"
    found: dict[bytes, float] = {}
    while n_evaluation < n_evaluation_max and (is_robust or len(hits) < n):
        proposals = generator.propose(n_batch)
        canonical = canonical_form(proposals[usable(task, proposals)])
        fresh = []
        for matrix in canonical:
            key = matrix.tobytes()
            if key not in seen:
                seen.add(key)
                fresh.append(matrix)
        n_idle = 0 if fresh else n_idle + 1
        if n_idle > N_PROPOSAL_IDLE:
            break
        if not fresh:
            continue
        batch = np.stack(fresh[: n_evaluation_max - n_evaluation])
        facts = task.facts(batch)
        n_evaluation += len(batch)
        is_hit = facts.label == task.label
        score = is_hit.astype(np.float64)
        if is_robust and is_hit.any():
            share = task.robustness(batch[is_hit])
            score[is_hit] += share
            n_evaluation_robustness += n_mutant * int(is_hit.sum())
            found.update(
                (matrix.tobytes(), float(r)) for matrix, r in zip(batch[is_hit], share, strict=True)
            )
        generator.learn(batch, facts, score)
        met = batch[is_hit]
        for matrix, key in zip(met, core_keys(met) if known else met, strict=True):
            if known and key in known:
                n_known += 1
            else:
                hits.append(matrix)
    if not hits:
        raise ConfigError(
            f"no {task.phenotype} of {task.n_gene} genes was found in {n_evaluation:,} evaluations"
            + (f" ({n_known} that were found are in the training data)" if n_known else "")
            + ": raise n_evaluation_max, or change the generator"
        )
    n_hit = len(hits) + n_known
    if is_robust:
        hits.sort(key=lambda matrix: -found[matrix.tobytes()])
    circuits = np.stack(hits[:n])
    robustness = task.robustness(circuits)
    if not is_robust:  # the simplest first
        n_edge = np.count_nonzero(circuits, axis=(1, 2))
        order = np.lexsort((-robustness, n_edge))
        circuits, robustness = circuits[order], robustness[order]
    notes = []
    if len(circuits) < n:
        why = (
            "nothing new was proposed any more"
            if n_idle > N_PROPOSAL_IDLE
            else f"n_evaluation_max = {n_evaluation_max:,} was reached"
        )
        notes.append(f"{len(circuits)} of {n} circuits were found before {why}")
    if n_known:
        notes.append(f"{n_known} circuits that were found are in the training data and left out")
    return Design(
        circuits=circuits,
        robustness=robustness,
        facts=task.facts(circuits),
        n_evaluation=n_evaluation,
        n_evaluation_robustness=n_evaluation_robustness + n_mutant * len(circuits),
        n_hit=n_hit,
        n_known_hit=n_known,
        n_class=None if classes is None else len(classes),
        notes=tuple(notes),
    )


def _all_classes(task: DesignTask, classes: Adjacency, n: int) -> Design:
    from neuralgraph.systems.boolean_grn.circuit import enumerate_circuits

    note = (
        f"there are exactly {len(classes)} {'connected ' if task.is_connected else ''}"
        f"{task.phenotype} circuits of {task.n_gene} genes up to relabelling"
        + (f", fewer than the {n} asked for: " if len(classes) < n else ": ")
        + "these are all of them"
    )
    order = np.argsort([np.count_nonzero(matrix) for matrix in classes], kind="stable")
    circuits = classes[order]
    return Design(
        circuits=circuits,
        robustness=task.robustness(circuits),
        facts=task.facts(circuits),
        n_evaluation=len(enumerate_circuits(task.n_gene)),
        n_evaluation_robustness=2 * task.n_gene**2 * len(circuits),
        n_hit=len(circuits),
        n_known_hit=0,
        n_class=len(classes),
        notes=(note,),
    )


def training_keys(recording: Recording, source: str) -> frozenset[bytes]:
    """Keys of the circuits a classifier learned from, validation circuits included.

    Unconnected genes do not count: a training circuit of 5 genes of which 4 are connected makes
    that circuit of 4 genes known.

    Args:
        recording: A population of circuits.
        source: Where it comes from, for the error.

    Raises:
        DataError: the recording holds no circuits.
    """
    graph = recording.graph
    if not {"adjacency", "n_gene"} <= set(graph):
        raise DataError(f"{source} holds no circuits: give a run of grn_phenotype")
    is_ours = graph["use"] == LEARN if "use" in graph else graph["n_gene"] > 0
    if not bool(is_ours.any()):
        return frozenset()
    n = int(graph["n_gene"][is_ours].max())
    return frozenset(core_keys(graph["adjacency"][is_ours][:, :n, :n].numpy().astype(np.int8)))


def load_population(path: str) -> Recording:
    """The circuits of a run or simulation folder of ``grn_phenotype``.

    Raises:
        DataError: the folder holds no recording.
    """
    folder = Path(path)
    for file in (folder / "data" / "recording.pt", folder / "recording.pt"):
        if file.is_file():
            return Recording.load(file)
    raise DataError(f"training={path} holds no recording.pt: give the folder of a run")
