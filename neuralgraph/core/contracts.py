"""The nouns of a run, as Protocols: what each part promises to the others.

``Simulator -> Recording -> Dataset -> model -> Objective -> Loop in a Session -> Evaluator``; the
Truth goes from the simulator to the evaluator and touches nothing in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.core.terms import Terms


@runtime_checkable
class Simulator(Protocol):
    """An experiment one can repeat. Same seed, same bytes."""

    def simulate(self, seed: int) -> tuple[Recording, Truth | None]:
        """Run the experiment; measured data return ``None`` for the truth."""
        ...

    def reveal(
        self, recording: Recording, truth: Truth | None, /, **prior: bool
    ) -> dict[str, Tensor]:
        """What the learner is told, under named switches (``prior.*``): the only way from the
        truth towards training, recorded and printed. Concrete simulators name their switches.
        """
        ...


class Dataset(Protocol):
    """A Recording cut for learning.

    ``spec`` holds every size and every given tensor a model needs, so that no size is typed in a
    config; ``train`` and ``validation`` are frame sets the session draws batches from.
    """

    spec: Any

    def starts(self, horizon: int) -> Tensor:
        """Indices of the training frames followed by so many steps of their own run."""
        ...

    def batch(self, index: Tensor, horizon: int = 1) -> Any:
        """Training frames by index, ``(n_batch,)`` long, as one batch object."""
        ...

    def validation(self) -> Any:
        """Every validation frame as one batch, or ``None``."""
        ...

    def to(self, device: Any) -> Dataset:
        """The same data on a device."""
        ...

    def astype(self, dtype: Any) -> Dataset:
        """The same data in another float type."""
        ...


class Objective(Protocol):
    """What we ask of the model. It receives the model, since rollouts and penalties need it."""

    def __call__(self, model: nn.Module, batch: Any) -> Terms:
        """Loss terms of one batch."""
        ...


class Loop(Protocol):
    """How we ask it: ``loop(session, *, knobs)``.

    A loop may carry a function ``refuse(config)`` that raises ``ConfigError`` for combinations of
    prior, model and knobs it cannot work with; it is called before anything is simulated.
    """

    def __call__(self, session: Any) -> None:
        """Train ``session.model`` in place."""
        ...


class Evaluator(Protocol):
    """How we judge. The only noun that sees the Truth.

    An evaluator may carry ``meanings``, one sentence by metric
    (:func:`neuralgraph.core.glossary.explain`), which stands beside the value in the report.
    """

    primary_metric: str
    direction: str
    every: int

    def __call__(
        self, model: nn.Module, data: Any, truth: Truth | None, *, log: Mapping[str, Any]
    ) -> Scorecard:
        """Scores of the fitted model; ``log`` holds numbers of the training (final loss …)."""
        ...

    def watch(self, model: nn.Module, data: Any, truth: Truth | None) -> dict[str, float]:
        """A few truth metrics, cheap enough to log during training; never fed back."""
        ...


class Identifier(Protocol):
    """What the data determine, and how well: a system's side of ``neuralgraph.identify``.

    Optional: a system without one has no such section in its reports.
    """

    rtol: float
    noise_relative: float
    precise_below: float
    n_pulse: int

    def problem(self, model: nn.Module, data: Any, truth: Truth | None, *, is_fitted: bool) -> Any:
        """Parameters, sensitivities of the derivatives and design, as a
        :class:`neuralgraph.numerics.information.Problem`.

        Args:
            model: The point of linearisation: as drawn, or fitted.
            data: The data, with prior and design.
            truth: Where given, the point of linearisation is the truth instead (asked for by
                ``identify.at=truth``); ``None`` after training.
            is_fitted: Whether the model was fitted, so that its residual shows the noise.
        """
        ...


class Reporter(Protocol):
    """Figures of one system for ``report.html``.

    A reporter may carry ``products(model, data, scorecard, folder, *, store)``, which writes what
    was recovered as files for others and yields a :class:`neuralgraph.core.product.Product` each;
    ``store`` is what the loop kept in ``session.store``. The truth is not among its arguments.
    """

    def figures(
        self, model: nn.Module, data: Any, truth: Truth | None, scorecard: Scorecard, folder: Path
    ) -> Iterator[Any]:
        """Draw into ``folder/figures``; yields a :class:`neuralgraph.viz.figure.Figure` each."""
        ...


__all__ = ["Dataset", "Evaluator", "Identifier", "Loop", "Objective", "Reporter", "Simulator"]
