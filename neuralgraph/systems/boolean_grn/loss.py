"""What is asked of the classifiers."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

from neuralgraph.core.bounds import NotNegative, Part, Positive
from neuralgraph.core.errors import ConfigError
from neuralgraph.core.terms import Terms
from neuralgraph.systems.boolean_grn.constraints import constraint_loss
from neuralgraph.systems.boolean_grn.dataset import Features, GRNBatch
from neuralgraph.systems.boolean_grn.model import GRNOutput, GRNRows

PARTS = ("contrastive", "constraint", "dynamics", "auxiliary")


class GRNObjective:
    """Cross entropy of the phenotype, and four further terms that can be switched off.

    Args:
        label_smoothing: Share of the target spread evenly over the classes.
        coeff_contrastive: Supervised contrastive loss of the circuit embedding.
        contrastive_temperature: Its temperature.
        coeff_constraint: Probability given to phenotypes whose necessary condition is violated.
        coeff_dynamics: Error of foretelling the soft dynamics from the network's own states.
        coeff_auxiliary: Cycle, bistability and number of attractors (needs prior.attractors).
    """

    def __init__(
        self,
        *,
        label_smoothing: Part,
        coeff_contrastive: NotNegative,
        contrastive_temperature: Positive,
        coeff_constraint: NotNegative,
        coeff_dynamics: NotNegative,
        coeff_auxiliary: NotNegative,
    ) -> None:
        self.label_smoothing = label_smoothing
        self.temperature = contrastive_temperature
        self.coefficients: dict[str, float] = {
            "contrastive": coeff_contrastive,
            "constraint": coeff_constraint,
            "dynamics": coeff_dynamics,
            "auxiliary": coeff_auxiliary,
        }

    def scaled(self, factors: Mapping[str, float]) -> GRNObjective:
        """A copy with coefficients times factors, for the stages of a curriculum.

        Raises:
            ConfigError: a term that does not exist.
        """
        for name in factors:
            if name not in PARTS:
                raise ConfigError(f"there is no loss term '{name}': known are {', '.join(PARTS)}")
        result = copy.copy(self)
        result.coefficients = {k: v * factors.get(k, 1.0) for k, v in self.coefficients.items()}
        return result

    def __call__(self, model: nn.Module, batch: GRNBatch) -> Terms:
        """Terms of the rows that are trained; ``loss`` is the sum of their cross entropies."""
        assert isinstance(model, GRNRows) and batch.label is not None
        outputs = {name: model.row(name)(batch) for name in model.trained()}
        terms = Terms(sum_of([
            cross_entropy(out.logits, batch.label, label_smoothing=self.label_smoothing)
            for out in outputs.values()
        ]))  # fmt: skip
        c = self.coefficients
        if c["contrastive"]:
            value = [
                contrastive(o.embedding, batch.label, self.temperature) for o in outputs.values()
            ]
            terms.add("coeff_contrastive", sum_of(value), c["contrastive"])
        if c["constraint"]:
            value = [
                constraint_loss(batch.adjacency, o.logits.softmax(-1)) for o in outputs.values()
            ]
            terms.add("coeff_constraint", sum_of(value), c["constraint"])
        if c["dynamics"]:
            shown = model.row(next(iter(outputs))).foretellable(batch)
            value = [foretelling(o.foretold, shown, batch.is_gene) for o in outputs.values()]
            terms.add("coeff_dynamics", sum_of(value), c["dynamics"])
        if c["auxiliary"] and batch.attractors is not None:
            value = [auxiliary(o, batch.attractors) for o in outputs.values()]
            terms.add("coeff_auxiliary", sum_of(value), c["auxiliary"])
        return terms


def contrastive(embedding: Tensor, label: Tensor, temperature: float) -> Tensor:
    r"""Supervised contrastive loss over all positives of each anchor.

    $-\frac{1}{|P(i)|}\sum_{p \in P(i)}\log\frac{e^{z_i z_p/T}}{\sum_{k \ne i} e^{z_i z_k/T}}$,
    averaged over anchors that have a positive. (The document's formula has one positive $z_j$.)
    Batches beyond 1,024 are cut, since it grows with their square.

    Args:
        embedding: On the unit sphere, ``(n_batch, n_embedding)``.
        label: ``(n_batch,)``.
        temperature: T.

    Source:
        Khosla et al. (NeurIPS 2020), loss "out".
    """
    embedding, label = embedding[:1024], label[:1024]
    eye = torch.eye(len(label), dtype=torch.bool, device=label.device)
    score = (embedding @ embedding.T / temperature).masked_fill(eye, -1e9)
    log_p = score - score.logsumexp(1, keepdim=True)
    positive = ((label[:, None] == label) & ~eye).to(score.dtype)
    n_positive = positive.sum(1)
    mean = -(log_p * positive).sum(1) / n_positive.clamp_min(1)
    return mean.sum() / (n_positive > 0).sum().clamp_min(1)


def foretelling(foretold: Features, shown: Features, is_gene: Tensor) -> Tensor:
    """Huber error of foretelling the soft dynamics' statistics; gradients reach the network only.

    It pulls the states of genes, pairs and circuits towards what the circuit does.
    """
    node = smooth_l1_loss(foretold.node, shown.node, reduction="none", beta=0.2).mean(-1)
    pair = smooth_l1_loss(foretold.pair, shown.pair, reduction="none", beta=0.2).mean(-1)
    graph = smooth_l1_loss(foretold.graph, shown.graph, beta=0.2)
    both = is_gene[:, :, None] & is_gene[:, None]
    return (node * is_gene).sum() / is_gene.sum() + (pair * both).sum() / both.sum() + graph


def auxiliary(output: GRNOutput, attractors: Tensor) -> Tensor:
    """Cycle and bistability (cross entropy on logits, once) and log(1 + attractors) (Huber)."""
    binary = binary_cross_entropy_with_logits(output.attractors[:, :2], attractors[:, :2])
    return binary + smooth_l1_loss(output.attractors[:, 2], attractors[:, 2].log1p())


def sum_of(values: list[Tensor]) -> Tensor:
    """Sum of scalars."""
    return torch.stack(values).sum()
