"""Accuracy, recall by class and calibration of a classifier of phenotypes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def confusion_matrix(label: Tensor, predicted: Tensor, n_class: int) -> Tensor:
    """Counts, ``(n_class, n_class)``: row true, column predicted.

    >>> confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return torch.bincount(label * n_class + predicted, minlength=n_class**2).view(n_class, n_class)


def recalls(confusion: Tensor) -> dict[int, float]:
    """Share of each class that is found, for the classes present."""
    total = confusion.sum(1)
    return {c: int(confusion[c, c]) / int(total[c]) for c in range(len(total)) if total[c] > 0}


def balanced_accuracy(confusion: Tensor) -> float:
    """Mean recall over the classes present."""
    found = recalls(confusion)
    return sum(found.values()) / len(found) if found else float("nan")


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in bins of equal width.

    Args:
        confidence: Mean highest probability of each bin with circuits in it.
        accuracy: Share of them that is right.
        count: How many.
        error: Expected calibration error: mean gap, weighted by the counts.
    """

    confidence: list[float]
    accuracy: list[float]
    count: list[int]
    error: float


def calibration(probability: Tensor, label: Tensor, n_bin: int = 10) -> Calibration:
    """Whether a circuit called with probability p is right in a share p of the cases.

    Args:
        probability: ``(n_batch, n_class)``.
        label: ``(n_batch,)``.
        n_bin: Bins of the highest probability.
    """
    highest, predicted = probability.max(1)
    right = (predicted == label).to(probability.dtype)
    which = (highest * n_bin).long().clamp_max(n_bin - 1)
    confidence, accuracy, count = [], [], []
    for k in which.unique().tolist():
        inside = which == k
        confidence.append(float(highest[inside].mean()))
        accuracy.append(float(right[inside].mean()))
        count.append(int(inside.sum()))
    gaps = [abs(a - b) * n for a, b, n in zip(confidence, accuracy, count, strict=True)]
    return Calibration(confidence, accuracy, count, sum(gaps) / max(1, sum(count)))
