"""Cells of a screen, cut into two disjoint halves, as one graph with targets on its genes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural, Positive
from neuralgraph.core.errors import DataError
from neuralgraph.core.recording import Recording
from neuralgraph.nn.hyperbolic import row_normalised
from neuralgraph.systems.hyperbolic_response.gene_graph import (
    GraphSource,
    make_graph,
)
from neuralgraph.systems.hyperbolic_response.labels import (
    refuse_other_recordings,
    refuse_unequal_weights,
)
from neuralgraph.systems.hyperbolic_response.policy_value.rewards import (
    Reward,
    easy_first,
    policy_of,
    rewards,
    value_of,
)
from neuralgraph.systems.hyperbolic_response.prepare import log_normalise, variable_genes
from neuralgraph.systems.hyperbolic_response.splits import halves

FEATURES = ("mean", "spread", "detection", "measured")
"""Columns of the node features: over the control cells of the training half."""


@dataclass(frozen=True)
class PolicyValueSpec:
    """Sizes and given facts of the graph; K cell types, N nodes, G genes, P perturbations.

    Args:
        gene_names: Response genes.
        node_names: Genes of the graph: response genes, perturbed genes that are none, bridges.
        perturbations: Conditions of the screen but the control.
        contexts: Cell types.
        gene_node: Node of each response gene, ``(G,)`` long.
        targets: Perturbed genes of each perturbation, ``(P, N)``.
        edge_index: Both directions and self loops, ``(2, n_edge)`` long.
        edge_weight: Row-normalised, ``(n_edge,)``.
        node_features: :data:`FEATURES`, standardised over measured nodes, ``(K, N, F)``.
    """

    gene_names: tuple[str, ...]
    node_names: tuple[str, ...]
    perturbations: tuple[str, ...]
    contexts: tuple[str, ...]
    gene_node: Tensor
    targets: Tensor
    edge_index: Tensor
    edge_weight: Tensor
    node_features: Tensor

    @property
    def n_node(self) -> int:
        """Nodes of the graph."""
        return len(self.node_names)

    @property
    def n_gene(self) -> int:
        """Response genes."""
        return len(self.gene_names)

    @property
    def n_perturbation(self) -> int:
        """Perturbations."""
        return len(self.perturbations)

    @property
    def n_context(self) -> int:
        """Cell types."""
        return len(self.contexts)


@dataclass(frozen=True)
class PolicyValueBatch:
    """Targets of some cell types; B of them.

    Args:
        context: ``(B,)`` long.
        reward: ``(B, P, G)``.
        signed: Mean log fold change, ``(B, P, G)``.
        is_open: Perturbations that take part: measured in this cell type, and open in the
            curriculum, ``(B, P)`` bool.
    """

    context: Tensor
    reward: Tensor
    signed: Tensor
    is_open: Tensor

    @property
    def policy(self) -> Tensor:
        """For each gene a distribution over the open perturbations, ``(B, G, P)``."""
        return policy_of(self.reward, self.is_open)

    @property
    def value(self) -> Tensor:
        """Sensitivity of each gene, ``(B, G)``."""
        return value_of(self.reward, self.is_open)

    def restricted(self, is_open: Tensor) -> PolicyValueBatch:
        """The same with fewer perturbations, ``(P,)`` bool."""
        return replace(self, is_open=self.is_open & is_open)


class PolicyValueData:
    """One graph, whose targets are measured twice: to learn from, and to be judged by.

    Cells of each perturbation and the controls are cut into halves, stratified by cell type and
    batch; genes, node features, control means and targets of the training half come from its
    cells alone. The held-out half measures the same perturbations again with other cells and other
    controls: a table learned by heart predicts it as well as the data repeat themselves.

    Args:
        recording: Cells with their labels.
        given: What the learner is told (the simulator's graph, or nothing).
        reward: Where the magnitude of the log fold change is taken.
        reference: Controls a cell is compared with: of its ``cell_type``, or of that and its
            ``batch``.
        condition_on_cell_type: Targets and features for each cell type, or over all cells.
        seed_of_split: Of the halves.
        n_top_genes: Most variable genes of the training half, ``null`` for all.
        min_cells_per_gene: Training cells that must express a gene.
        target_sum: Counts a cell is normalised to.
        max_order: Largest number of genes perturbed at once, ``null`` for any.
        graph: Source of the gene graph.
        graph_path: Its file (``string``, ``trrust``).
        graph_names_path: Table from STRING identifiers to symbols.
        graph_threshold: Least score (``string``) or absolute correlation (``correlation``).
        graph_bridges: Largest number of genes outside the screen that join the graph to connect
            its genes (``string``, ``trrust``).
    """

    def __init__(
        self,
        recording: Recording,
        given: Mapping[str, Tensor],
        *,
        reward: Reward,
        reference: Literal["cell_type", "batch"],
        condition_on_cell_type: bool,
        seed_of_split: int,
        n_top_genes: Count | None,
        min_cells_per_gene: Natural,
        target_sum: Positive,
        max_order: Count | None,
        graph: GraphSource,
        graph_path: str | None,
        graph_names_path: str | None,
        graph_threshold: Positive | None,
        graph_bridges: Natural,
    ) -> None:
        refuse_other_recordings(recording)
        facts = recording.provenance
        values = recording.state[:, 0]
        if facts["expression"] == "counts":
            values = log_normalise(values, target_sum)
        values = values.double()
        label = recording.graph["condition"]
        cell_type, batch = recording.graph["cell_type"], recording.graph["batch"]
        fine = cell_type * len(facts["batches"]) + batch
        refuse_unequal_weights(facts)
        targets = [tuple(genes) for genes in facts["targets"]]
        chosen = [
            i
            for i, genes in enumerate(targets)
            if i > 0 and (max_order is None or len(genes) <= max_order)
        ]
        if len(chosen) < 2:
            raise DataError(
                f"{len(chosen)} perturbation(s) of at most {max_order} genes: a policy needs 2 or "
                "more to choose from"
            )
        place = torch.full((len(targets),), -1)
        place[chosen] = torch.arange(len(chosen))
        stratum = label * (int(fine.max()) + 1) + fine
        is_train = halves(stratum, seed=seed_of_split, name="halves of the cells")
        is_control = label == 0
        fitted = is_train & (is_control | (place[label] >= 0))
        genes = variable_genes(values[fitted].float(), n_top_genes, min_cells_per_gene)
        names = tuple(recording.names[i] for i in genes.tolist())
        perturbed = sorted({gene for i in chosen for gene in targets[i]} - set(names))
        nodes = (*names, *perturbed)
        control = values[is_train & is_control]
        made = make_graph(
            graph, nodes, given, measured=recording.names, control=control, path=graph_path,
            names_path=graph_names_path, threshold=graph_threshold, n_bridge=graph_bridges,
        )  # fmt: skip
        nodes = made.names  # the genes of the screen, then bridges
        contexts = tuple(facts["cell_types"]) if condition_on_cell_type else ("all",)
        context = cell_type if condition_on_cell_type else torch.zeros_like(cell_type)
        of = fine if reference == "batch" else cell_type
        self.train = self._targets(
            values[:, genes], place[label], is_control, is_train, context, of, len(chosen),
            len(contexts), reward,
        )  # fmt: skip
        self.held_out = self._targets(
            values[:, genes], place[label], is_control, ~is_train, context, of, len(chosen),
            len(contexts), reward,
        )  # fmt: skip
        both = self.train.is_open & self.held_out.is_open
        if not bool((both.sum(1) >= 2).all()):
            raise DataError(
                "a cell type has fewer than 2 perturbations with cells in both halves: leave it "
                "out with simulator.keep, or set dataset.condition_on_cell_type=false"
            )
        self.train = replace(self.train, is_open=both)
        self.held_out = replace(self.held_out, is_open=both)
        self.order = easy_first(self.train.signed, self.train.reward)
        features = torch.stack(
            [
                _features(values[is_train & is_control & (context == k)][:, genes], len(nodes))
                for k in range(len(contexts))
            ]
        )
        hot = torch.zeros(len(chosen), len(nodes), dtype=torch.float64)
        at = {name: i for i, name in enumerate(nodes)}
        for row, i in enumerate(chosen):
            hot[row, [at[gene] for gene in targets[i]]] = 1.0
        index, weight = made.normalised()
        self.graph = made
        self.spec = PolicyValueSpec(
            gene_names=names,
            node_names=nodes,
            perturbations=tuple(facts["conditions"][i] for i in chosen),
            contexts=contexts,
            gene_node=torch.arange(len(names)),
            targets=hot,
            edge_index=index,
            edge_weight=row_normalised(index, weight.double(), len(nodes)),
            node_features=features,
        )

    @staticmethod
    def _targets(
        values: Tensor,
        label: Tensor,
        is_control: Tensor,
        is_half: Tensor,
        context: Tensor,
        stratum: Tensor,
        n_perturbation: int,
        n_context: int,
        kind: Reward,
    ) -> PolicyValueBatch:
        """Rewards and mean changes of one half of the cells, against its own controls."""
        change = values.clone()
        for s in stratum[is_half].unique():
            here = is_half & (stratum == s)
            own = values[here & is_control]
            if len(own) == 0:
                raise DataError(
                    "a half of a batch has no control cells: use dataset.reference=cell_type"
                )
            change[here] -= own.mean(0)
        reward, signed, is_open = [], [], []
        for k in range(n_context):
            rows = is_half & (label >= 0) & (context == k)
            part = change[rows], label[rows]
            reward.append(rewards(*part, n_perturbation, kind))
            total = torch.zeros_like(reward[-1]).index_add(0, part[1], part[0])
            count = torch.bincount(part[1], minlength=n_perturbation)
            signed.append(total / count.clamp_min(1)[:, None])
            is_open.append(count > 0)
        return PolicyValueBatch(
            torch.arange(n_context), torch.stack(reward), torch.stack(signed), torch.stack(is_open)
        )

    def starts(self, horizon: int) -> Tensor:
        """One index for each cell type."""
        return torch.arange(self.spec.n_context)

    def batch(self, index: Tensor, horizon: int = 1) -> PolicyValueBatch:
        """Targets of the training half, by cell type."""
        index = index.to(self.train.context.device)
        return PolicyValueBatch(
            **{f.name: getattr(self.train, f.name)[index] for f in fields(PolicyValueBatch)}
        )

    def validation(self) -> None:
        """None: the held-out half is for the judge."""
        return

    def to(self, device: torch.device | str) -> PolicyValueData:
        """A copy on a device."""
        return self._converted(device, None)

    def astype(self, dtype: torch.dtype) -> PolicyValueData:
        """A copy in another float type."""
        return self._converted(None, dtype)

    def _converted(self, device: Any, dtype: torch.dtype | None) -> PolicyValueData:
        copy = object.__new__(PolicyValueData)
        copy.__dict__.update(self.__dict__)
        for name in ("spec", "train", "held_out"):
            part = getattr(self, name)
            tensors = {
                f.name: getattr(part, f.name)
                for f in fields(part)
                if isinstance(getattr(part, f.name), Tensor)
            }
            moved = {
                key: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
                for key, value in tensors.items()
            }
            setattr(copy, name, replace(part, **moved))
        copy.order = self.order.to(device=device)
        return copy


def _features(control: Tensor, n_node: int) -> Tensor:
    """:data:`FEATURES` of each node from control cells ``(n_cell, G)``; ``(n_node, F)``."""
    if len(control) < 2:
        raise DataError(
            f"a cell type has {len(control)} control cell(s) in the training half, 2 or more are "
            "needed: set dataset.condition_on_cell_type=false"
        )
    columns = torch.stack([control.mean(0), control.std(0), (control > 0).double().mean(0)], 1)
    scaled = (columns - columns.mean(0)) / columns.std(0).clamp_min(1e-9)
    found = torch.zeros(n_node, len(FEATURES), dtype=torch.float64)
    found[: len(scaled), :3] = scaled
    found[: len(scaled), 3] = 1.0
    return found
