"""A population of circuits with assayed phenotypes, cut so that no isomorphic copy straddles."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural, Positive, Share
from neuralgraph.core.errors import ConfigError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import derived_seed, numpy_generator
from neuralgraph.systems.boolean_grn.circuit import (
    Adjacency,
    canonical_form,
    canonical_keys,
    distinct,
    enumerate_circuits,
    random_circuits,
)
from neuralgraph.systems.boolean_grn.oracle import (
    PHENOTYPES,
    analyse_circuits,
    check_size,
    label_circuits,
)

LEARN, NATURAL, STRATIFIED = 0, 1, 2
"""What a circuit is in the recording for: learning, a natural test, a stratified test."""
N_DRAW_MAX = 3_000_000


class CircuitPopulation:
    """Circuits, and an assay of the phenotype of those that are there to learn from.

    To learn from: every circuit of 1 to 3 genes up to isomorphism, but for one fold of the classes;
    random circuits of ``sizes_learn`` genes, ``n_natural`` as they come and ``n_per_phenotype`` of
    each phenotype, found by rejection from the same distribution. To be judged by: the 3-gene
    classes of the fold; for each of ``sizes_test``, ``n_test`` random circuits as they come, and as
    many more as give ``n_test_per_phenotype`` of each phenotype.

    A circuit is compared by its canonical form without genes that have no edge (they change no
    phenotype). What occurs in a test is dropped from learning.

    The recording holds the phenotype of the circuits to learn from only; the truth holds all.

    Args:
        sizes_learn: Genes of the random circuits to learn from.
        n_natural: Of each of these sizes.
        n_per_phenotype: Of each of these sizes and each phenotype.
        sizes_test: Genes of the random test circuits, 4 or more.
        n_test: Unstratified test circuits of each size.
        n_test_per_phenotype: Least number of test circuits of each phenotype and size.
        in_degree: Expected regulators of a gene in random circuits.
        share_inhibition: Expected share of inhibitions among the edges.
        n_fold: Parts the isomorphism classes of 1 to 3 genes are cut into, class by class.
        fold: The part held out; ``null``: the seed modulo ``n_fold``, so that so many seeds in a
            row make a cross-validation over every class.
    """

    def __init__(
        self,
        *,
        sizes_learn: list[int],
        n_natural: Natural,
        n_per_phenotype: Natural,
        sizes_test: list[int],
        n_test: Count,
        n_test_per_phenotype: Natural,
        in_degree: Positive,
        share_inhibition: Share,
        n_fold: Count,
        fold: Natural | None,
    ) -> None:
        for size in (*sizes_learn, *sizes_test):
            if size < 4:
                raise ConfigError(
                    f"sizes_learn and sizes_test hold sizes from 4 genes on, got {size}: all "
                    "circuits of 1 to 3 genes are there already"
                )
            check_size(size)
        if n_fold < 2:
            raise ConfigError(f"n_fold must be at least 2, got {n_fold}")
        if fold is not None and fold >= n_fold:
            raise ConfigError(f"fold must be below n_fold = {n_fold}, got {fold}")
        self.sizes_learn = sizes_learn
        self.n_natural = n_natural
        self.n_per_phenotype = n_per_phenotype
        self.sizes_test = sizes_test
        self.n_test = n_test
        self.n_test_per_phenotype = n_test_per_phenotype
        self.in_degree = in_degree
        self.share_inhibition = share_inhibition
        self.n_fold = n_fold
        self.fold = fold

    def simulate(self, seed: int) -> tuple[Recording, Truth]:
        """Draw circuits and label them exactly; the same seed gives the same bytes."""
        fold = seed % self.n_fold if self.fold is None else self.fold
        small, is_held = self._small_classes(fold)
        # (circuits, what for); tests first, since learning must avoid them
        tests: list[tuple[Adjacency, int]] = [
            (classes[held], NATURAL if classes.shape[1] == 3 else -1)
            for classes, held in zip(small, is_held, strict=True)
        ]
        for size in self.sizes_test:
            generator = numpy_generator(seed, f"test/{size}")
            natural = self._draw(self.n_test, size, generator)
            tests.append((natural, NATURAL))
            if self.n_test_per_phenotype:
                found = np.bincount(label_circuits(natural), minlength=len(PHENOTYPES))
                wanted = np.maximum(self.n_test_per_phenotype - found, 0)
                more = self._of_each_phenotype(wanted, size, generator)
                tests.append((more, STRATIFIED))
        known = {key for circuits, _ in tests for key in core_keys(circuits)}
        learn: list[Adjacency] = [
            classes[~held] for classes, held in zip(small, is_held, strict=True)
        ]
        for size in self.sizes_learn:
            generator = numpy_generator(seed, f"learn/{size}")
            wanted = np.full(len(PHENOTYPES), self.n_per_phenotype)
            drawn = [
                self._draw(self.n_natural, size, generator),
                self._of_each_phenotype(wanted, size, generator),
            ]
            circuits = np.concatenate(drawn)
            learn.append(circuits[np.sort(_first_of_each(core_keys(circuits)))])
        kept = []
        for circuits in learn:
            is_new = np.array([key not in known for key in core_keys(circuits)], dtype=bool)
            kept.append((circuits[is_new], LEARN))
        parts = [part for part in (*kept, *tests) if part[1] >= 0 and len(part[0])]
        return self._recording(parts, fold)

    def reveal(
        self, recording: Recording, truth: Truth | None, /, *, attractors: bool
    ) -> dict[str, Tensor]:
        """With ``attractors``: cycle, bistability and number of attractors of the circuits to learn
        from (0 elsewhere), for the auxiliary heads.
        """
        if not attractors:
            return {}
        if truth is None:
            raise ConfigError("prior.attractors=true needs a simulated population: set it to false")
        is_learn = (recording.graph["use"] == LEARN).to(torch.float64)
        names = ("has_cycle", "is_bistable", "n_attractor")
        return {name: truth.parameters[name] * is_learn for name in names}

    def _small_classes(self, fold: int) -> tuple[list[Adjacency], list[NDArray[np.bool_]]]:
        """Isomorphism classes of 1 to 3 genes, and which of them are in the fold held out.

        Classes with the same core (isolated genes removed) go together; the folds are even in each
        phenotype, and do not depend on the seed.
        """
        classes = []
        for size in (1, 2, 3):
            every = enumerate_circuits(size)
            classes.append(canonical_form(every[distinct(every)]))
        keys = [core_keys(circuits) for circuits in classes]
        label: dict[bytes, int] = {}
        for circuits, own in zip(classes, keys, strict=True):
            label.update(zip(own, label_circuits(circuits).tolist(), strict=True))
        held: set[bytes] = set()
        for phenotype in range(len(PHENOTYPES)):
            members = [key for key, value in label.items() if value == phenotype]
            members.sort(key=lambda key: hashlib.blake2b(key, digest_size=8).digest())
            held.update(members[fold :: self.n_fold])
        return classes, [np.array([key in held for key in own], dtype=bool) for own in keys]

    def _draw(self, n_circuit: int, n_gene: int, generator: np.random.Generator) -> Adjacency:
        return random_circuits(
            n_circuit,
            n_gene,
            in_degree=self.in_degree,
            share_inhibition=self.share_inhibition,
            generator=generator,
        )

    def _of_each_phenotype(
        self, wanted: NDArray[np.int64], n_gene: int, generator: np.random.Generator
    ) -> Adjacency:
        """So many circuits of each phenotype, by rejection, in the order they were drawn."""
        missing = wanted.astype(np.int64).copy()
        found = [np.empty((0, n_gene, n_gene), dtype=np.int8)]
        n_drawn = 0
        while missing.any():
            if n_drawn > N_DRAW_MAX:
                rare = [name for name, n in zip(PHENOTYPES, missing, strict=True) if n]
                raise ConfigError(
                    f"{n_drawn:,} random circuits of {n_gene} genes hold too few of "
                    f"{', '.join(rare)}: ask for fewer, or change in_degree"
                )
            drawn = self._draw(20_000, n_gene, generator)
            n_drawn += len(drawn)
            labels = label_circuits(drawn)
            is_kept = np.zeros(len(drawn), dtype=bool)
            for phenotype in missing.nonzero()[0]:
                where = (labels == phenotype).nonzero()[0][: missing[phenotype]]
                is_kept[where] = True
                missing[phenotype] -= len(where)
            found.append(drawn[is_kept])
        return np.concatenate(found)

    def _recording(self, parts: list[tuple[Adjacency, int]], fold: int) -> tuple[Recording, Truth]:
        n_max = max(circuits.shape[1] for circuits, _ in parts)
        n_circuit = sum(len(circuits) for circuits, _ in parts)
        adjacency = np.zeros((n_circuit, n_max, n_max), dtype=np.int8)
        n_gene = np.zeros(n_circuit, dtype=np.int64)
        use = np.zeros(n_circuit, dtype=np.int64)
        label = np.zeros(n_circuit, dtype=np.int64)
        attractors = np.zeros((3, n_circuit))
        at = 0
        for circuits, what in parts:
            n, size = len(circuits), circuits.shape[1]
            place = slice(at, at + n)
            adjacency[place, :size, :size] = circuits
            n_gene[place], use[place] = size, what
            facts = analyse_circuits(circuits)
            label[place] = facts.label
            attractors[0, place] = facts.n_cycle > 0
            attractors[1, place] = facts.is_multistable
            attractors[2, place] = facts.n_fixed_point + facts.n_cycle
            at += n
        is_learn = use == LEARN
        assay = np.eye(len(PHENOTYPES))[label] * is_learn[:, None]
        counts = {
            f"n_learn_{size}_genes": int((is_learn & (n_gene == size)).sum())
            for size in np.unique(n_gene[is_learn])
        }
        recording = Recording(
            time=torch.zeros(n_circuit, 1, dtype=torch.float64),
            state=torch.from_numpy(assay)[:, None],
            names=PHENOTYPES,
            graph={
                "adjacency": torch.from_numpy(adjacency),
                "n_gene": torch.from_numpy(n_gene),
                "use": torch.from_numpy(use),
            },
            units={"time": "1", "state": "1 for the assayed phenotype; 0 throughout: not assayed"},
            provenance={
                "design": f"{int(is_learn.sum())} circuits to learn from, "
                f"{int((~is_learn).sum())} to be judged by; no circuit of one part is isomorphic "
                "to one of the other, also without its unconnected genes",
                "fold": fold,
                **counts,
            },
            is_test=torch.from_numpy(~is_learn),
        )
        parameters = {
            "label": torch.from_numpy(label),
            "has_cycle": torch.from_numpy(attractors[0].copy()),
            "is_bistable": torch.from_numpy(attractors[1].copy()),
            "n_attractor": torch.from_numpy(attractors[2].copy()),
        }
        return recording, Truth(parameters=parameters, facts={"phenotypes": list(PHENOTYPES)})


def core_keys(circuits: Adjacency) -> list[bytes]:
    """A key for each circuit, equal exactly for circuits isomorphic but for unconnected genes.

    >>> two = np.array([[[0, 1], [0, 0]]], np.int8)
    >>> three = np.array([[[0, 0, 0], [0, 0, 0], [0, 1, 0]]], np.int8)
    >>> core_keys(two) == core_keys(three)
    True
    """
    is_edge = circuits != 0
    is_core = is_edge.any(1) | is_edge.any(2)
    n_core = is_core.sum(1)
    keys: list[bytes] = [b""] * len(circuits)
    for size in np.unique(n_core):
        chosen = (n_core == size).nonzero()[0]
        if size == 0:
            continue
        genes = np.argsort(~is_core[chosen], axis=1, kind="stable")[:, :size]
        core = circuits[chosen[:, None, None], genes[:, :, None], genes[:, None, :]]
        for place, key in zip(chosen, canonical_keys(core), strict=True):
            keys[place] = key
    return keys


def hash_share(key: bytes, seed: int, name: str) -> float:
    """A number in [0, 1) from a key: the same for isomorphic circuits."""
    salt = derived_seed(seed, name).to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(key, digest_size=6, salt=salt).digest()) / 2**48


def _first_of_each(keys: list[bytes]) -> NDArray[np.intp]:
    first: dict[bytes, int] = {}
    for at, key in enumerate(keys):
        first.setdefault(key, at)
    return np.fromiter(first.values(), dtype=np.intp, count=len(first))
