"""How the classifiers are judged: on circuits whose phenotype nobody told them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural
from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.core.seeding import torch_generator
from neuralgraph.systems.boolean_grn.dataset import GRNData
from neuralgraph.systems.boolean_grn.exploration import asked, training_classes
from neuralgraph.systems.boolean_grn.glossary import MEANINGS
from neuralgraph.systems.boolean_grn.metrics import (
    balanced_accuracy,
    calibration,
    confusion_matrix,
    recalls,
)
from neuralgraph.systems.boolean_grn.model import GRNRows
from neuralgraph.systems.boolean_grn.policy import CircuitPolicy
from neuralgraph.systems.boolean_grn.simulator import NATURAL

SUFFIX = {"informed": "", "structure": "_structure_only"}
EXPLORED = ("success", "distinct", "novelty")
SIZE_EXPLORED = 4
"""Smallest circuits a policy is judged on: smaller ones are all known."""


class GRNEvaluator:
    """Accuracy by size, phenotype and row.

    Metrics, for each size N: ``accuracy_N`` (unstratified circuits), ``balanced_accuracy_N`` (mean
    recall over the phenotypes present, stratified circuits added), ``recall_N_<phenotype>``,
    ``majority_N`` (always the commonest phenotype), ``calibration_error_N`` (unstratified), and
    ``accuracy_structure_only_N``, ``balanced_accuracy_structure_only_N`` for the row that does not
    simulate. For 3 genes the circuits are the isomorphism classes held out, each once.

    Args:
        every: Epochs between two looks at the truth while training, 0 for none.
        primary_metric: The number searches look at.
        direction: ``maximize`` or ``minimize``.
        sizes: Sizes that are judged.
        batch_size: Circuits at a time.
        n_proposal: Circuits the policy of stage 5 writes for each phenotype and size to be judged
            by: ``explorer_success_N`` (share the oracle confirms, mean over phenotypes),
            ``explorer_distinct_N`` (classes among the confirmed) and ``explorer_novelty_N`` (share
            of these classes that are not in the training data); 0 for none.
    """

    meanings = MEANINGS

    def __init__(
        self,
        *,
        every: Natural,
        primary_metric: str,
        direction: str,
        sizes: list[int],
        batch_size: Count,
        n_proposal: Natural,
    ) -> None:
        self.every = every
        self.primary_metric = primary_metric
        self.direction = direction
        self.sizes = sizes
        self.batch_size = batch_size
        self.n_proposal = n_proposal

    def __call__(
        self,
        model: GRNRows,
        data: GRNData,
        truth: Truth | None,
        *,
        log: Mapping[str, Any],
    ) -> Scorecard:
        """Every score, with the majority beside it."""
        card = Scorecard()
        phenotypes = data.spec.phenotypes
        baselines: dict[str, dict[str, float]] = {}
        tables: dict[str, Any] = {"confusion": {}, "calibration": {}, "n_test": {}}
        for size in self.sizes:
            names = [f"majority_{size}"]
            for suffix in SUFFIX.values():
                names += [f"accuracy{suffix}_{size}", f"balanced_accuracy{suffix}_{size}"]
            names += [f"recall_{size}_{name}" for name in phenotypes]
            names += [f"calibration_error_{size}"]
            reason = None
            if truth is None:
                reason = "no truth: nothing to judge the test circuits by"
            elif data.test_index(size).numel() == 0:
                reason = f"no test circuit has {size} genes"
            for name in names:
                card.skip(name, reason or "this row was not trained")
            if truth is None or reason is not None:
                continue
            index = data.test_index(size)
            label = truth.parameters["label"].to(index.device)[index]
            is_natural = data.use[index] == NATURAL
            counts = torch.bincount(label[is_natural], minlength=len(phenotypes))
            majority = int(counts.max()) / int(counts.sum())
            card.add(f"majority_{size}", majority)
            tables["n_test"][str(size)] = [int(is_natural.sum()), int((~is_natural).sum())]
            for row, logits in predict(model, data, size, self.batch_size).items():
                suffix = SUFFIX[row]
                predicted = logits.argmax(1)
                accuracy = (predicted == label)[is_natural].double().mean()
                confusion = confusion_matrix(label, predicted, len(phenotypes))
                card.add(f"accuracy{suffix}_{size}", float(accuracy))
                card.add(f"balanced_accuracy{suffix}_{size}", balanced_accuracy(confusion))
                baselines[f"accuracy{suffix}_{size}"] = {"commonest phenotype": majority}
                baselines[f"balanced_accuracy{suffix}_{size}"] = {
                    "commonest phenotype": 1 / int((confusion.sum(1) > 0).sum())
                }
                tables["confusion"].setdefault(row, {})[str(size)] = confusion.tolist()
                if row != "informed":
                    continue
                for c, found in recalls(confusion).items():
                    card.add(f"recall_{size}_{phenotypes[c]}", found)
                for c in (confusion.sum(1) == 0).nonzero()[:, 0].tolist():
                    card.skip(
                        f"recall_{size}_{phenotypes[c]}", "no test circuit has this phenotype"
                    )
                reliability = calibration(logits.softmax(-1)[is_natural], label[is_natural])
                card.add(f"calibration_error_{size}", reliability.error)
                tables["calibration"][str(size)] = vars(reliability)
        if self.n_proposal and model.explorer is not None:
            tables["explorer"] = judge_policy(model.explorer, data, self.n_proposal, card)
        card.add("final_loss", log["final_loss"])
        card.facts["baselines"] = baselines
        card.facts["tables"] = tables
        card.facts["note"] = (
            "The network with dynamics runs the circuit's own rule inside, so that it comes close "
            "to computing the answer; the row structure_only learns from the graph alone."
        )
        return card

    def watch(self, model: GRNRows, data: GRNData, truth: Truth | None) -> dict[str, float]:
        """Accuracy on the smallest size, for ``evaluation.jsonl``."""
        result: dict[str, float] = {}
        size = self.sizes[0]
        index = data.test_index(size)
        if truth is None or index.numel() == 0:
            return result
        label = truth.parameters["label"].to(index.device)[index]
        is_natural = data.use[index] == NATURAL
        for row, logits in predict(model, data, size, self.batch_size).items():
            is_right = (logits.argmax(1) == label)[is_natural]
            result[f"accuracy{SUFFIX[row]}_{size}"] = float(is_right.double().mean())
        return result


def judge_policy(
    policy: CircuitPolicy, data: GRNData, n_proposal: int, card: Scorecard
) -> dict[str, Any]:
    """Success, distinct classes and novelty of what a policy writes, by size and phenotype."""
    known = training_classes(data)
    phenotypes = data.spec.phenotypes
    table: dict[str, Any] = {}
    for size in range(SIZE_EXPLORED, policy.n_gene_max + 1):
        shares = torch.zeros(len(phenotypes), 3, dtype=torch.float64)
        for wish in range(len(phenotypes)):
            draws = torch_generator(wish, f"judge/{size}")
            rollouts = policy.sample(torch.full((n_proposal,), wish), size, draws)
            answer = asked(policy.matrices(rollouts), np.full(n_proposal, wish))
            hits = [key for key, is_hit in zip(answer.keys, answer.is_hit, strict=True) if is_hit]
            classes = set(hits)
            shares[wish, 0] = len(hits) / n_proposal
            shares[wish, 1] = len(classes) / max(1, len(hits))
            shares[wish, 2] = len(classes - known) / max(1, len(classes))
        for name, value in zip(EXPLORED, shares.mean(0).tolist(), strict=True):
            card.add(f"explorer_{name}_{size}", value)
        table[str(size)] = dict(zip(phenotypes, shares.tolist(), strict=True))
    return table


@torch.no_grad()
def predict(model: GRNRows, data: GRNData, n_gene: int, batch_size: int) -> dict[str, Tensor]:
    """Class scores of the test circuits of one size, by row, ``(n_test, n_phenotype)``.

    Rows that simulate and rows that do not share the features of a batch.
    """
    was_training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {name: [] for name in model.rows}
    for batch in data.test_batches(n_gene, batch_size):
        for name, output in model(batch).items():
            parts[name].append(output.logits.double())
    model.train(was_training)
    return {name: torch.cat(part) for name, part in parts.items()}
