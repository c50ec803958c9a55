"""Budget: how much work a run may do, so that the same experiment has a full and a smoke form."""

from __future__ import annotations

from dataclasses import dataclass

from neuralgraph.core.bounds import Count, Share


@dataclass(frozen=True)
class Budget:
    """Upper bounds on the work of a run; they count, they never look at a clock.

    Args:
        max_epochs: Epochs of each phase, ``None`` for no bound.
        max_steps: Optimiser steps of each epoch, ``None`` for no bound.
        search: Share in (0, 1] of the rounds a closed-form search may take.
    """

    max_epochs: Count | None = None
    max_steps: Count | None = None
    search: Share = 1.0

    def epochs(self, n: int) -> int:
        """The number of epochs asked for, bounded.

        >>> Budget(max_epochs=2).epochs(10), Budget().epochs(10)
        (2, 10)
        """
        return n if self.max_epochs is None else min(n, self.max_epochs)

    def steps(self, n: int) -> int:
        """The number of steps asked for, bounded."""
        return n if self.max_steps is None else min(n, self.max_steps)

    def rounds(self, n: int) -> int:
        """The number of search rounds asked for, bounded, at least one."""
        return max(1, round(n * self.search))
