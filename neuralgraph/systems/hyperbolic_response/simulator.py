"""A perturbation screen on a known tree of regulators, with planted epistasis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural, NotNegative, Part, Positive, Share
from neuralgraph.core.errors import ConfigError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import numpy_generator

if TYPE_CHECKING:
    import numpy as np

CONTROL = "control"
"""Label of the unperturbed cells."""


@dataclass(frozen=True)
class RegulatorTree:
    """A rooted hierarchy of genes; a parent regulates its children.

    Args:
        parent: Parent of each gene, ``(n_gene,)`` int, -1 for the root.
        strength: Strength of the edge from the parent, ``(n_gene,)``, in (0, 1); 0 for the root.
        sign: +1 activation, -1 repression, ``(n_gene,)``.
    """

    parent: np.ndarray
    strength: np.ndarray
    sign: np.ndarray

    @property
    def n_gene(self) -> int:
        """Number of genes."""
        return len(self.parent)

    def depth(self) -> np.ndarray:
        """Edges from the root, ``(n_gene,)`` int."""
        import numpy as np

        depth = np.zeros(self.n_gene, dtype=int)
        for gene in range(self.n_gene):
            node = gene
            while self.parent[node] >= 0:
                node, depth[gene] = int(self.parent[node]), depth[gene] + 1
        return depth

    def path(self) -> np.ndarray:
        """What gene g does to gene h: product of signed strengths on the way down, else 0.

        Returns:
            ``(n_gene, n_gene)`` with 1 on the diagonal.
        """
        import numpy as np

        effect = np.eye(self.n_gene)
        for gene in np.argsort(self.depth(), kind="stable"):
            above = int(self.parent[gene])
            if above >= 0:  # the column of the parent is complete
                effect[:, gene] += effect[:, above] * self.sign[gene] * self.strength[gene]
        return effect

    def common_ancestor(self, first: int, second: int) -> tuple[int, int]:
        """Lowest common ancestor of two genes (one of them, where it lies above the other), and
        the number of edges between the two.
        """
        above = [first]
        while self.parent[above[-1]] >= 0:
            above.append(int(self.parent[above[-1]]))
        node, steps = second, 0
        while node not in above:
            node, steps = int(self.parent[node]), steps + 1
        return node, steps + above.index(node)


class SimulatedScreen:
    r"""Counts of single cells after knock-downs of one or two genes of a tree of regulators.

    A knock-down of gene $g$ by $a_g$ (log units) changes the log rate of gene $h$ below it by
    $a_g P_{gh}$, $P$ the product of signed edge strengths along the way. Two knock-downs add up,
    and then interact by the tree alone, in two ways:

    * *redundancy*: $\eta_l\, \varepsilon\, e^{-(d_{AB} - 1)/\ell} P_{lh}$ for the genes $h$ below
      the lowest common ancestor $l$ of A and B, $d_{AB}$ edges apart: near regulators stand in for
      each other, and with both gone the whole branch responds. The sign $\eta_l$ belongs to $l$;
    * *masking*: where A lies above B, its effect no longer passes through B: $-\kappa a_A P_{Ah}$
      for $h$ below B and B itself.

    So an interaction can be learned from other pairs of the same branch. Rates are normalised
    over genes (a cell has no absolute scale), scaled by a log-normal library size, shifted by
    batch, and counted with negative-binomial noise, $\mathrm{var} = \mu + \varphi\mu^2$.

    Args:
        n_gene: Genes, all measured.
        n_single: Genes knocked down alone; regulators, the root excepted.
        n_only_combined: Further genes that are knocked down in pairs only.
        n_double: Pairs.
        near_fraction: Share of the pairs drawn from those at most ``near_distance`` edges apart.
        near_distance: In edges.
        n_cell: Cells of each perturbation in each cell type.
        n_control: Unperturbed cells of each cell type.
        n_cell_type: Cell types; they differ in baseline and, branch by branch, in effect size.
        cell_type_spread: Standard deviation of the log effect size over cell types.
        n_batch: Batches, each cell in one at random.
        batch_spread: Standard deviation of the batch shift of a gene, log units.
        branching: Mean number of children of a regulator.
        decay: Mean strength of an edge.
        repression: Share of edges that repress.
        knockdown: Mean of $-a_g$, log units; each gene has 0.7 to 1.3 of it.
        epistasis: $\varepsilon$, log units.
        epistasis_length: $\ell$, edges.
        masking: $\kappa$, 0 to 1.
        library_size: Median counts of a cell.
        library_spread: Standard deviation of its logarithm.
        dispersion: $\varphi$.
        missing_edges: Share of the edges that the revealed graph lacks.
        false_edges: Edges of the revealed graph that do not exist, over those that do.

    Source:
        own; negative-binomial counts as in Grün et al. (2014).
    """

    def __init__(
        self,
        *,
        n_gene: Count,
        n_single: Count,
        n_only_combined: Natural,
        n_double: Natural,
        near_fraction: NotNegative,
        near_distance: Count,
        n_cell: Count,
        n_control: Count,
        n_cell_type: Count,
        cell_type_spread: NotNegative,
        n_batch: Count,
        batch_spread: NotNegative,
        branching: Positive,
        decay: Share,
        repression: NotNegative,
        knockdown: Positive,
        epistasis: NotNegative,
        epistasis_length: Positive,
        masking: NotNegative,
        library_size: Positive,
        library_spread: NotNegative,
        dispersion: NotNegative,
        missing_edges: Part,
        false_edges: NotNegative,
    ) -> None:
        for name, value in (
            ("near_fraction", near_fraction),
            ("repression", repression),
            ("masking", masking),
        ):
            if value > 1:
                raise ConfigError(f"simulator.{name} is a share of at most 1, got {value:g}")
        if n_single < 2:
            raise ConfigError(f"simulator.n_single must be at least 2, got {n_single}")
        if branching < 2:
            raise ConfigError(f"simulator.branching must be at least 2, got {branching:g}")
        n_perturbed = n_single + n_only_combined
        if n_double > n_perturbed * (n_perturbed - 1) // 2:
            raise ConfigError(
                f"{n_perturbed} genes make {n_perturbed * (n_perturbed - 1) // 2} pairs, fewer "
                f"than simulator.n_double={n_double}"
            )
        if n_only_combined > 2 * n_double:
            raise ConfigError(
                f"simulator.n_only_combined={n_only_combined} genes do not fit into "
                f"n_double={n_double} pairs"
            )
        if n_cell < 4 or n_control < 4:
            raise ConfigError(
                "simulator.n_cell and n_control must be at least 4 (two in each half), got "
                f"{n_cell} and {n_control}"
            )
        self.n_gene, self.n_single, self.n_only_combined = n_gene, n_single, n_only_combined
        self.n_double, self.near_fraction = n_double, near_fraction
        self.near_distance, self.n_cell, self.n_control = near_distance, n_cell, n_control
        self.n_cell_type, self.cell_type_spread = n_cell_type, cell_type_spread
        self.n_batch, self.batch_spread, self.branching = n_batch, batch_spread, branching
        self.decay, self.repression, self.knockdown = decay, repression, knockdown
        self.epistasis, self.epistasis_length = epistasis, epistasis_length
        self.masking, self.library_size = masking, library_size
        self.library_spread, self.dispersion = library_spread, dispersion
        self.missing_edges, self.false_edges = missing_edges, false_edges

    def simulate(self, seed: int) -> tuple[Recording, Truth]:
        """Draw tree, effects and cells; the same seed gives the same bytes."""
        import numpy as np

        tree = self.draw_tree(numpy_generator(seed, "tree"))
        singles, only, pairs = self._draw_perturbations(tree, numpy_generator(seed, "pairs"))
        random = numpy_generator(seed, "effects")
        size = -self.knockdown * random.uniform(0.7, 1.3, self.n_gene)
        redundancy_sign = random.choice([-1.0, 1.0], self.n_gene)
        groups: list[tuple[int, ...]] = [(), *((gene,) for gene in singles), *pairs]
        additive, epistasis = self.effects(tree, groups, size, redundancy_sign)
        effect = additive + epistasis  # (n_condition, n_gene), log units

        random = numpy_generator(seed, "cell types")
        baseline = random.normal(0.0, 1.0, self.n_gene)
        shift = random.normal(0.0, 0.5, (self.n_cell_type, self.n_gene))
        shift[0] = 0.0
        scale = np.exp(random.normal(0.0, self.cell_type_spread, (self.n_cell_type, self.n_gene)))
        scale = scale[:, self._branch(tree)]  # one factor for a branch below the root
        if self.n_cell_type == 1:
            scale[:] = 1.0
        random = numpy_generator(seed, "batches")
        batch_shift = random.normal(0.0, self.batch_spread, (self.n_batch, self.n_gene))
        batch_shift[0] = 0.0

        labels, types = [], []
        for kind in range(self.n_cell_type):
            for condition in range(len(groups)):
                n = self.n_control if condition == 0 else self.n_cell
                labels += [condition] * n
                types += [kind] * n
        label, cell_type = np.array(labels), np.array(types)
        random = numpy_generator(seed, "cells")
        batch = random.integers(0, self.n_batch, len(label))
        log_rate = baseline + shift[cell_type] + batch_shift[batch]
        log_rate += effect[label] * scale[cell_type]
        rate = np.exp(log_rate)
        rate /= rate.sum(1, keepdims=True)
        library = self.library_size * np.exp(
            self.library_spread * random.standard_normal((len(label), 1))
        )
        mean = rate * library
        if self.dispersion > 0:
            mean = random.gamma(1 / self.dispersion, self.dispersion * mean)
        counts = random.poisson(mean)
        counts[counts.sum(1) == 0, 0] = 1  # an empty cell cannot be normalised

        width = len(str(self.n_gene - 1))
        names = tuple(f"G{i:0{width}d}" for i in range(self.n_gene))
        targets = [sorted(names[g] for g in group) for group in groups]
        conditions = [CONTROL, *("+".join(genes) for genes in targets[1:])]
        index, weight, sign = self._known_graph(tree, numpy_generator(seed, "known graph"))
        types_named = [f"type{i}" for i in range(self.n_cell_type)]
        recording = Recording(
            time=torch.zeros(len(label), 1),
            state=torch.from_numpy(counts.astype(np.float32))[:, None],
            names=names,
            graph={
                "condition": torch.from_numpy(label),
                "cell_type": torch.from_numpy(cell_type),
                "batch": torch.from_numpy(batch),
            },
            units={"time": "1", "state": "counts"},
            provenance={
                "design": f"{len(label)} cells, {len(singles)} single and {len(pairs)} double "
                f"knock-downs, {self.n_cell_type} cell type(s), {self.n_batch} batch(es), "
                f"{self.n_gene} genes",
                "conditions": conditions,
                "targets": targets,
                "target_weights": [[1.0] * len(genes) for genes in targets],
                "cell_types": types_named,
                "batches": [f"batch{i}" for i in range(self.n_batch)],
                "expression": "counts",
                "notes": [],
                "source": "simulated",
            },
        )
        truth = Truth(
            parameters={
                "parent": torch.from_numpy(tree.parent),
                "edge_index": torch.from_numpy(index),
                "edge_weight": torch.from_numpy(weight),
                "edge_sign": torch.from_numpy(sign),
                "path": torch.from_numpy(tree.path()),
                "effect": torch.from_numpy(effect),
                "additive": torch.from_numpy(additive),
                "epistasis": torch.from_numpy(epistasis),
                "baseline": torch.from_numpy(baseline),
                "cell_type_shift": torch.from_numpy(shift),
                "cell_type_scale": torch.from_numpy(np.ascontiguousarray(scale)),
                "batch_shift": torch.from_numpy(batch_shift),
            },
            facts={
                "conditions": conditions,
                "only_combined": [names[g] for g in only],
                "max_depth": int(tree.depth().max()),
            },
        )
        return recording, truth

    def reveal(
        self, recording: Recording, truth: Truth | None, /, *, graph: bool
    ) -> dict[str, Tensor]:
        """With ``graph``: the edges of the tree, their strengths and signs, less those missing
        and with those that are false.
        """
        if not graph:
            return {}
        if truth is None:
            raise ConfigError("prior.graph=true needs a simulated screen: set it to false")
        keys = ("edge_index", "edge_weight", "edge_sign")
        return {key: truth.parameters[key] for key in keys}

    def draw_tree(self, random: np.random.Generator) -> RegulatorTree:
        """A tree whose regulators have ``branching`` ± 1 children; genes in random order."""
        import numpy as np

        parent, queue = [-1], [0]
        while queue and len(parent) < self.n_gene:
            node = queue.pop(0)
            low = int(self.branching) - 1 if len(parent) > 1 else int(self.branching)
            n_child = int(random.integers(max(low, 1), int(self.branching) + 2))
            for _ in range(min(n_child, self.n_gene - len(parent))):
                queue.append(len(parent))
                parent.append(node)
        order = random.permutation(self.n_gene)  # a gene's number tells nothing of its place
        shuffled = np.full(self.n_gene, -1)
        for node, above in enumerate(parent):
            shuffled[order[node]] = -1 if above < 0 else order[above]
        strength = np.clip(self.decay + random.uniform(-0.1, 0.1, self.n_gene), 0.05, 1.0)
        sign = np.where(random.random(self.n_gene) < self.repression, -1.0, 1.0)
        root = shuffled < 0
        return RegulatorTree(shuffled, np.where(root, 0.0, strength), np.where(root, 1.0, sign))

    def effects(
        self,
        tree: RegulatorTree,
        groups: list[tuple[int, ...]],
        size: np.ndarray,
        redundancy_sign: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Additive part and interaction of each condition, ``(n_condition, n_gene)`` each.

        Args:
            tree: Of regulators.
            groups: Knocked-down genes of each condition.
            size: ``a_g``, ``(n_gene,)``.
            redundancy_sign: ``η``, ``(n_gene,)``.
        """
        import numpy as np

        path = tree.path()
        additive = np.zeros((len(groups), self.n_gene))
        interaction = np.zeros_like(additive)
        for row, group in enumerate(groups):
            for gene in group:
                additive[row] += size[gene] * path[gene]
            if len(group) < 2:
                continue
            first, second = group
            ancestor, distance = tree.common_ancestor(first, second)
            reach = np.exp(-(distance - 1) / self.epistasis_length)
            interaction[row] += redundancy_sign[ancestor] * self.epistasis * reach * path[ancestor]
            if ancestor in group:  # one lies above the other
                below = second if ancestor == first else first
                is_below = path[below] != 0
                interaction[row] -= self.masking * size[ancestor] * path[ancestor] * is_below
        return additive, interaction

    def _draw_perturbations(
        self, tree: RegulatorTree, random: np.random.Generator
    ) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        import numpy as np

        regulators = np.setdiff1d(np.unique(tree.parent), [-1])
        regulators = regulators[tree.parent[regulators] >= 0]
        n = self.n_single + self.n_only_combined
        if len(regulators) < n:
            raise ConfigError(
                f"this tree of {self.n_gene} genes has {len(regulators)} regulators besides its "
                f"root, fewer than the {n} to knock down: raise simulator.n_gene, or lower "
                "n_single or branching"
            )
        chosen = random.permutation(regulators)[:n].tolist()
        singles, only = chosen[: self.n_single], chosen[self.n_single :]
        every = [(a, b) for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
        every = [every[i] for i in random.permutation(len(every))]
        picked: dict[tuple[int, int], None] = {}
        for gene in only:  # each at least once
            if not any(gene in pair for pair in picked):
                picked[next(pair for pair in every if gene in pair)] = None
        near = [p for p in every if tree.common_ancestor(*p)[1] <= self.near_distance]
        for pair in near[: round(self.near_fraction * self.n_double)]:
            picked[pair] = None
        for pair in every:
            if len(picked) >= self.n_double:
                break
            picked[pair] = None
        return singles, only, list(picked)[: self.n_double]

    def _known_graph(
        self, tree: RegulatorTree, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is known of the tree: index, strength and sign of its edges."""
        import numpy as np

        child = np.flatnonzero(tree.parent >= 0)
        is_kept = np.ones(len(child), dtype=bool)
        is_kept[random.permutation(len(child))[: round(self.missing_edges * len(child))]] = False
        kept = child[is_kept]
        index = np.stack([tree.parent[kept], kept])
        true = {(int(a), int(b)) for a, b in zip(tree.parent[child], child, strict=True)}
        true |= {(b, a) for a, b in true}
        false: dict[tuple[int, int], None] = {}
        regulators = np.unique(tree.parent[child])
        n_false = round(self.false_edges * len(child))
        if n_false > self.n_gene * len(regulators) // 4:
            raise ConfigError(
                f"simulator.false_edges={self.false_edges:g} asks for {n_false} edges, too many "
                f"among {self.n_gene} genes: lower it"
            )
        while len(false) < n_false:
            pair = (int(random.choice(regulators)), int(random.integers(self.n_gene)))
            if pair[0] != pair[1] and pair not in true:
                false[pair] = None
        n = len(false)
        extra = np.array(list(false), dtype=index.dtype).reshape(n, 2).T
        return (
            np.concatenate([index, extra], 1),
            np.concatenate([tree.strength[kept], self.decay * np.ones(n)]),
            np.concatenate([tree.sign[kept], random.choice([-1.0, 1.0], n)]),
        )

    def _branch(self, tree: RegulatorTree) -> np.ndarray:
        """For each gene its ancestor just below the root."""
        import numpy as np

        branch = np.arange(self.n_gene)
        for gene in range(self.n_gene):
            node = gene
            while tree.parent[node] >= 0 and tree.parent[tree.parent[node]] >= 0:
                node = int(tree.parent[node])
            branch[gene] = node
        return branch
