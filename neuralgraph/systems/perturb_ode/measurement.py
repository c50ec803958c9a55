"""From what is in a cell to what a sequencer counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuralgraph.core.bounds import NotNegative, Part, Positive
from neuralgraph.core.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    import numpy as np

DROPOUTS = ("none", "constant", "logistic")


@dataclass(frozen=True)
class Counted:
    """Counts of cells and how they came about.

    Args:
        count: Transcripts counted, ``(n_cell, n_gene)`` int.
        reference: Counted transcripts of the reference, ``(n_cell,)`` int.
        expected: λ, what is counted on average where nothing drops out, ``(n_cell, n_gene)``.
        dropped: Probability π that a gene of a cell is lost, ``(n_cell, n_gene)``.
        depth: Library size l of each cell, ``(n_cell,)``.
    """

    count: np.ndarray
    reference: np.ndarray
    expected: np.ndarray
    dropped: np.ndarray
    depth: np.ndarray


@dataclass(frozen=True)
class Measurement:
    r"""The measurement operator: library size, batch, dropout, counts.

    .. math::
        \lambda_{cg} = l_c \frac{r_{bg}\, x_{cg}}{\rho + \sum_h r_{bh}\, x_{ch}}, \qquad
        y_{cg} \sim k_{cg}\,\mathrm{NB}(\lambda_{cg}, \varphi), \qquad P(k_{cg} = 0) = \pi_{cg}

    with library sizes :math:`l_c` log-normal around ``depth``, and batch factors
    :math:`r = \exp(\text{batch} + \text{batch × condition})` with normal exponents. Given
    :math:`\lambda` and :math:`\pi`, the mean is :math:`(1 - \pi)\lambda` and the squared
    coefficient of variation :math:`(1/\lambda + \varphi + \pi) / (1 - \pi)`. Without a reference
    (ρ = 0) only relative abundance can be told: doubling every gene changes nothing.

    Args:
        depth: Median library size, counts of a cell.
        depth_spread: Standard deviation of its logarithm.
        batch_spread: Standard deviation of the logarithm of a batch's factor on a gene.
        batch_condition_spread: The same for a condition within a batch.
        dispersion: φ of the negative binomial; 0 counts by Poisson.
        dropout: ``none``; ``constant`` with probability ``dropout_rate``; ``logistic``, where
            the probability to be kept is 1 / (1 + exp(-k (log(1 + λ) - m))).
        dropout_rate: π of constant dropout.
        dropout_steepness: k of logistic dropout.
        dropout_percentile: m is this percentile of log(1 + λ) over the cells measured together.
        reference: ρ, transcripts of a reference of the same amount in every cell (spiked in, or
            genes that never change), expression units.

    Source:
        logistic dropout as in SERGIO (Dibaeinia & Sinha 2020); the rest is common.
    """

    depth: Positive
    depth_spread: NotNegative
    batch_spread: NotNegative
    batch_condition_spread: NotNegative
    dispersion: NotNegative
    dropout: str
    dropout_rate: Part
    dropout_steepness: Positive
    dropout_percentile: NotNegative
    reference: NotNegative

    def __post_init__(self) -> None:
        if self.dropout not in DROPOUTS:
            raise ConfigError(
                f"unknown dropout '{self.dropout}': {nearest(self.dropout, DROPOUTS)}"
            )
        if self.dropout_percentile > 100:
            raise ConfigError(
                f"dropout_percentile lies between 0 and 100, got {self.dropout_percentile}"
            )

    def factors(
        self, batch: np.ndarray, condition: np.ndarray, n_gene: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Factors r of every cell, ``(n_cell, n_gene)``, shared by a batch and condition."""
        import numpy as np

        n_batch, n_condition = int(batch.max()) + 1, int(condition.max()) + 1
        of_batch = self.batch_spread * generator.standard_normal((n_batch, n_gene))
        of_pair = self.batch_condition_spread * generator.standard_normal(
            (n_batch, n_condition, n_gene)
        )
        return np.exp(of_batch[batch] + of_pair[batch, condition])

    def __call__(
        self,
        abundance: np.ndarray,
        batch: np.ndarray,
        condition: np.ndarray,
        generator: np.random.Generator,
    ) -> Counted:
        """Count cells.

        Args:
            abundance: x, ``(n_cell, n_gene)``, expression units, 0 or above.
            batch: Batch of each cell, ``(n_cell,)`` int from 0.
            condition: Condition of each cell, ``(n_cell,)`` int from 0.
            generator: Source of every draw.

        Raises:
            DataError: abundance below 0, or a cell without any.
        """
        import numpy as np

        if not np.isfinite(abundance).all() or abundance.min() < 0:
            raise DataError("abundance must be finite and 0 or above to be counted")
        n_cell, n_gene = abundance.shape
        present = self.factors(batch, condition, n_gene, generator) * abundance
        total = self.reference + present.sum(1, keepdims=True)
        if not (total > 0).all():
            raise DataError(
                f"cell {int((total[:, 0] <= 0).argmax())} holds no transcript and there is no "
                "reference: nothing can be counted"
            )
        depth = self.depth * np.exp(self.depth_spread * generator.standard_normal(n_cell))
        expected = depth[:, None] * present / total
        dropped = self.drop_probability(expected)
        rate = expected
        if self.dispersion > 0:
            rate = expected * generator.gamma(
                1 / self.dispersion, self.dispersion, size=expected.shape
            )
        count = generator.poisson(rate) * (generator.random(expected.shape) >= dropped)
        reference = generator.poisson(depth * self.reference / total[:, 0])
        return Counted(count, reference, expected, dropped, depth)

    def drop_probability(self, expected: np.ndarray) -> np.ndarray:
        """π of every entry of λ, same shape."""
        import numpy as np

        if self.dropout == "none":
            return np.zeros_like(expected)
        if self.dropout == "constant":
            return np.full_like(expected, self.dropout_rate)
        size = np.log1p(expected)
        middle = np.percentile(size, self.dropout_percentile)
        return 1 - 1 / (1 + np.exp(-self.dropout_steepness * (size - middle)))

    def moments(
        self, expected: np.ndarray, dropped: np.ndarray | float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean and squared coefficient of variation of a count, given λ and π."""
        return (1 - dropped) * expected, (1 / expected + self.dispersion + dropped) / (1 - dropped)
