"""Terms: the named parts of a training loss."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


class Terms:
    """Ordered loss terms with their weights; ``total`` is what is minimised.

    The first term is the data term, called ``loss`` everywhere; the others are regularisers and
    sum, weighted, to ``regul_total``. Terms with weight 0 are never evaluated: add them with
    :meth:`add` only where :meth:`wants` says so.

    Args:
        loss: Data term, scalar tensor.
    """

    def __init__(self, loss: Tensor) -> None:
        self.values: dict[str, Tensor] = {"loss": loss}
        self.weights: dict[str, float] = {"loss": 1.0}

    def add(self, name: str, value: Tensor, weight: float) -> Terms:
        """Add ``weight * value`` under ``name``; returns itself so that calls chain."""
        if name in self.values:
            raise ValueError(f"loss term '{name}' is added twice")
        self.values[name] = value
        self.weights[name] = float(weight)
        return self

    @property
    def loss(self) -> Tensor:
        """Data term alone."""
        return self.values["loss"]

    @property
    def total(self) -> Tensor:
        """Weighted sum of every term."""
        result = self.values["loss"]
        for name, value in self.values.items():
            if name != "loss":
                result = result + self.weights[name] * value
        return result

    def weighted(self) -> Iterator[tuple[str, Tensor]]:
        """Pairs of name and weighted, detached value."""
        for name, value in self.values.items():
            yield name, self.weights[name] * value.detach()
