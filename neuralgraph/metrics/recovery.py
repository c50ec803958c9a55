"""Recovery of discrete structure: exactness, signs, supports, and integers up to a scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def exact_fraction(prediction: Tensor, target: Tensor) -> float:
    """Fraction of entries that agree after rounding the prediction to the nearest integer.

    Args:
        prediction: Any shape.
        target: Integers, same shape.
    Returns:
        A fraction in [0, 1]; ``nan`` when there is no entry.
    Source:
        Own.

    >>> import torch
    >>> exact_fraction(torch.tensor([0.9, -1.6, 2.6]), torch.tensor([1.0, -2.0, 2.0])) == 2 / 3
    True
    """
    if not target.numel():
        return float("nan")
    return float((prediction.round() == target).double().mean())


def sign_accuracy(prediction: Tensor, target: Tensor) -> float:
    """Fraction of the non-zero targets whose sign the prediction has.

    Args:
        prediction: Any shape; a zero has no sign and counts as wrong.
        target: Same shape.
    Returns:
        A fraction in [0, 1]; ``nan`` when every target is zero.
    Source:
        Own.
    """
    present = target != 0
    if not bool(present.any()):
        return float("nan")
    return float((prediction.sign() == target.sign())[present].double().mean())


def support_f1(prediction: Tensor, target: Tensor) -> float:
    r"""F1 of a predicted support, $2TP / (2TP + FP + FN)$.

    Args:
        prediction: Any shape; non-zero means present.
        target: Same shape; non-zero means present.
    Returns:
        A fraction in [0, 1]; ``nan`` when both supports are empty.
    Source:
        van Rijsbergen (1979).
    """
    p, t = prediction != 0, target != 0
    hit = int((p & t).sum())
    total = int(p.sum()) + int(t.sum())
    return 2 * hit / total if total else float("nan")


@dataclass(frozen=True)
class IntegerScale:
    """A vector seen as a multiple of a small integer vector.

    Args:
        scale: Positive factor that brings the vector closest to the integers.
        integer: The integers, signed, same length.
        distance: Euclidean distance between the scaled vector and the integers.
    """

    scale: float
    integer: Tensor
    distance: float


def nearest_integer_scale(values: Tensor, *, largest: int, allow_zero: bool) -> IntegerScale:
    r"""Scale that brings a vector closest to a vector of small integers.

    Over all integer patterns $n$ that rounding $\alpha |x|$ can give with $\alpha > 0$ and
    $\max n \le$ ``largest``, the pattern with the least $\min_\alpha \|\alpha |x| - n\|$ is
    taken; $\alpha = n \cdot |x| / |x| \cdot |x|$. The distance is absolute, so that a coarse
    pattern is preferred to a fine one which fits by its density alone. A pattern and its
    multiples fit a vector equally well when the fit is perfect; the smallest is returned.

    Laws: the result depends on the direction of ``values`` only (``scale`` goes as the inverse
    of its length), commutes with permutations and keeps signs.

    Args:
        values: ``(n,)``.
        largest: Largest integer considered, at least 1.
        allow_zero: Whether an entry may round to 0 (its presence is not given).
    Returns:
        Scale, signed integers and distance; scale 1 and zeros for a vector of zeros.
    Source:
        Own.

    >>> import torch
    >>> found = nearest_integer_scale(torch.tensor([-0.7, 0.35]), largest=2, allow_zero=False)
    >>> found.integer.tolist(), round(found.scale, 6)
    ([-2.0, 1.0], 2.857143)
    """
    if largest < 1:
        raise ValueError(f"largest must be at least 1, got {largest}")
    signed = values.detach().double()
    x = signed.abs()
    peak = float(x.max()) if x.numel() else 0.0
    if peak == 0 or not bool(torch.isfinite(x).all()):
        return IntegerScale(1.0, torch.zeros_like(signed), float(signed.norm()))
    x = x / peak
    # Rounding alpha * x changes only where some entry crosses a half: one scale inside every
    # interval between crossings enumerates every pattern on the ray.
    half = torch.arange(0, largest, dtype=torch.float64) + 0.5
    inverse = (1 / x[x > 0.25 / largest]).unique()
    crossing = (half[:, None] * inverse).flatten()
    crossing = crossing[crossing < largest + 0.5].unique()
    last = crossing[-1:] * (1 + 1e-9)
    alpha = torch.cat([(crossing[:-1] + crossing[1:]) / 2, last])
    pattern = (alpha[:, None] * x).round()
    if not allow_zero:
        pattern = pattern.clamp_min(1)
    keep = (pattern.amax(1) <= largest) & (pattern.amax(1) >= 1)
    pattern = pattern[keep].unique(dim=0)
    dot = pattern @ x
    square = x @ x
    distance = (pattern.square().sum(1) - dot.square() / square).clamp_min(0)
    best = float(distance.min())
    close = (distance <= best + 1e-12).nonzero().flatten()
    choice = int(close[pattern[close].sum(1).argmin()])
    scale = float(dot[choice] / square) / peak
    return IntegerScale(scale, pattern[choice] * signed.sign(), float(distance[choice].sqrt()))
