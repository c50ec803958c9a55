"""The monotone map from the primary metric to a reward in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

from neuralgraph.core.errors import ConfigError


@dataclass(frozen=True)
class Reward:
    r"""$r = s / (s + d)$ with $d$ the distance to the best possible value, never below 0.

    Strictly monotone up to the best value, 1 there, 0.5 at a distance of ``scale``, and it tells
    bad from worse however negative an R² becomes.

    Args:
        direction: ``maximize`` or ``minimize``.
        best: The best possible value; ``None``: 1 to maximise, 0 to minimise.
        scale: Distance at which the reward is one half, in units of the metric.

    >>> Reward("maximize", None, 1.0)(1.0), Reward("maximize", None, 1.0)(0.0)
    (1.0, 0.5)
    >>> Reward("minimize", None, 2.0)(2.0)
    0.5
    """

    direction: str
    best: float | None
    scale: float

    def __post_init__(self) -> None:
        if self.direction not in ("maximize", "minimize"):
            raise ConfigError(
                f"evaluation.direction is maximize or minimize, got '{self.direction}'"
            )
        if self.scale <= 0:
            raise ConfigError(f"explore.reward_scale must be above 0, got {self.scale:g}")

    @property
    def target(self) -> float:
        """The best possible value."""
        if self.best is not None:
            return self.best
        return 1.0 if self.direction == "maximize" else 0.0

    def __call__(self, metric: float) -> float:
        """Reward of a metric."""
        away = self.target - metric if self.direction == "maximize" else metric - self.target
        return self.scale / (self.scale + max(away, 0.0))

    def is_better(self, a: float, b: float) -> bool:
        """Whether metric ``a`` is better than ``b``."""
        return a > b if self.direction == "maximize" else a < b
