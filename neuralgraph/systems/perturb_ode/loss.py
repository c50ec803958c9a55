"""What is asked of each arm: the data, and that cells come to rest."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralgraph.core.bounds import NotNegative, Positive
from neuralgraph.core.errors import ConfigError, DataError, nearest
from neuralgraph.core.terms import Terms
from neuralgraph.systems.perturb_ode.dataset import ScreenBatch, ScreenData
from neuralgraph.systems.perturb_ode.folds import FoldedSeries
from neuralgraph.systems.perturb_ode.model import FieldEnsemble

DATA_LOSSES = ("squared", "negative_binomial")


class ScreenObjective:
    r"""Error on the measured days, plus what each arm adds.

    - ``steady_control``: $|f(\bar x_0)|^2$ at unperturbed cells, mean over days;
    - ``steady_perturbed``: $|f(\bar x_p)|^2$ at perturbed cells on the last day;
    - ``steady_decay``: the same in units of decay, $|f / \gamma|^2$: how far a state is from the
      one at which production and decay balance;
    - ``steady_split``: $f(\bar x_p') \cdot f(\bar x_p'')$ at the means of two halves of the cells
      or replicates. At noisy states $|f|^2$ is too large by $\mathrm{tr}(J \Sigma J^\top)$ and
      rewards a small Jacobian; to first order this term does not. The product has no lower
      bound, a steep field of opposite signs at the two halves would be rewarded without end: each
      condition counts from 0 up;
    - ``steady_gated``: ``steady_perturbed`` at conditions that count as settled (``gate``);
    - ``steady_rollout``: $|f|^2$ at the field's own states on the last day and ``rollout_day``;
    - ``steady_first_day``: the same on the first day after the start, a wrong claim on purpose;
    - ``kinetic``: $|f|^2$ on every day after the start, no claim of rest;
    - ``weight_l2``: sum of squared weights.

    Each is a mean over the conditions a model may learn from and over coordinates. A term of rest
    is never alone: $f = 0$ would satisfy it. Models are summed, so that none feels another.

    Args:
        data_loss: ``squared`` error, weighted by the data; or ``negative_binomial``, minus the
            log likelihood of counted libraries.
        dispersion: φ of the negative binomial; 0 for Poisson.
        rollout_day: Latest day of ``steady_rollout``.

    Source:
        data and steady terms read from Kovačević et al. (2025), whose equations were not at hand;
        the other terms are of our own.
    """

    def __init__(self, *, data_loss: str, dispersion: NotNegative, rollout_day: Positive) -> None:
        if data_loss == "none":
            raise ConfigError(
                "a steady-state loss alone is degenerate: f = 0 fits any state at rest. Keep a "
                "data loss (data_loss=squared or negative_binomial)"
            )
        if data_loss not in DATA_LOSSES:
            raise ConfigError(f"unknown data_loss '{data_loss}': {nearest(data_loss, DATA_LOSSES)}")
        self.data_loss, self.dispersion = data_loss, dispersion
        self.rollout_day = rollout_day

    def prepare(self, data: ScreenData | FoldedSeries) -> None:
        """Remember what there is, and refuse counts that are none."""
        batch = data.everything()
        seen = batch.is_train.any(0) & batch.is_control
        self.has_control = bool(seen.any())
        self.has_halves = batch.halves is not None
        self.has_settled = bool(settled_conditions(batch).any())
        if self.data_loss == "negative_binomial":
            check_counts(batch.count)

    def __call__(self, model: FieldEnsemble, batch: ScreenBatch) -> Terms:
        """Loss terms of a batch, summed over models."""
        self.refuse(model)
        terms = Terms(self.data_error(model, batch).sum())
        for name, value in self.arm_terms(model, batch).items():
            terms.add(name, value.sum(), 1.0)
        return terms

    def refuse(self, model: FieldEnsemble) -> None:
        """An arm whose term would act on nothing: it would be a copy of ``standard``.

        Raises:
            ConfigError: no unperturbed cells to rest, no halves to compare, none that is settled.
        """
        needs = {
            "steady_control": (
                self.has_control,
                "ask unperturbed cells to rest, and no training condition is unperturbed: leave "
                "them out, or add control cells",
            ),
            "steady_split": (
                self.has_halves,
                "compare two halves of the measurements, and there is a single one: raise "
                "simulator.n_replicate, or leave them out",
            ),
            "steady_gated": (
                self.has_settled,
                "ask settled conditions to rest, and no perturbed training condition is settled: "
                "raise dataset.gate_margin, measure more days or cells, or leave them out",
            ),
        }
        for term, (is_there, words) in needs.items():
            if not is_there and bool(model.weight_of(term).any()):
                named = [arm for arm, terms in model.arms.items() if terms.get(term)]
                raise ConfigError(f"the arms {named} {words}")

    def data_error(self, model: FieldEnsemble, batch: ScreenBatch) -> Tensor:
        """Data loss of each model, ``(n_model,)``."""
        predicted = model.predict(batch)
        if self.data_loss == "squared":
            error = (predicted - batch.target) ** 2 * batch.weight
        else:
            assert batch.count is not None and batch.exposure is not None
            floor = 1e-3 * model.get_buffer("scale")[..., None]
            mean = predicted.maximum(floor)[..., None, :] * batch.exposure
            surprise = negative_binomial(batch.count, mean, self.dispersion)
            error = surprise.mean(-2) * (batch.weight > 0)
        return _mean(error.mean((-1, -2)), batch.is_train[model.get_buffer("fold")])

    def arm_terms(self, model: FieldEnsemble, batch: ScreenBatch) -> dict[str, Tensor]:
        """Weighted value of each added term, ``(n_model,)``, without those that no arm uses."""
        found: dict[str, Tensor] = {}
        perturbed = batch.is_train & ~batch.is_control
        settings = {
            "steady_control": (slice(None), batch.is_train & batch.is_control),
            "steady_perturbed": (slice(-1, None), perturbed),
            "steady_decay": (slice(-1, None), perturbed),
            "steady_gated": (slice(-1, None), perturbed & batch.gate),
            "steady_first_day": (slice(0, 1), perturbed),
            "kinetic": (slice(None), batch.is_train),
        }
        for name, (days, wanted) in settings.items():
            weight = model.weight_of(name)
            if bool(weight.any()) and bool(wanted.any()):
                is_in_decay = name == "steady_decay"
                found[name] = weight * self._speed(model, batch, days, wanted, is_in_decay)
        weight = model.weight_of("steady_split")
        if bool(weight.any()) and batch.halves is not None:
            a, b = (
                model.rate(half[model.get_buffer("fold")], batch)
                for half in batch.halves[:, :, -1].unbind(2)
            )
            # a negative product is noise, or a field that has learned the two halves apart
            product = (a * b).mean(-1).clamp_min(0)
            value = _mean(product, perturbed[model.get_buffer("fold")])
            found["steady_split"] = weight * value
        weight = model.weight_of("steady_rollout")
        if bool(weight.any()):
            last = float(batch.time[-1])
            time = torch.tensor([float(batch.time[0]), last, max(self.rollout_day, last + 1e-3)])
            states = model.flow(batch, time)
            speed = torch.stack([model.rate(x, batch).square().mean(-1) for x in states.unbind(2)])
            value = _mean(speed.mean(0), perturbed[model.get_buffer("fold")])
            found["steady_rollout"] = weight * value
        weight = model.weight_of("weight_l2")
        if bool(weight.any()):
            found["weight_l2"] = weight * model.weight_l2()
        return found

    @staticmethod
    def _speed(
        model: FieldEnsemble, batch: ScreenBatch, days: slice, wanted: Tensor, is_in_decay: bool
    ) -> Tensor:
        """Mean squared field at measured states of the wanted conditions, ``(n_model,)``."""
        fold = model.get_buffer("fold")
        seen = batch.encoded[:, :, days].unbind(2)
        unit = model.log_gamma.exp()[:, None] if is_in_decay else 1.0
        total = torch.stack([(model.rate(x[fold], batch) / unit).square().mean(-1) for x in seen])
        return _mean(total.mean(0), wanted[fold])


def settled_conditions(batch: ScreenBatch) -> Tensor:
    """Perturbed training conditions on which ``steady_gated`` acts, by fold, ``(n_fold,)``."""
    return (batch.is_train & ~batch.is_control & batch.gate).sum(1)


def negative_binomial(count: Tensor, mean: Tensor, dispersion: float) -> Tensor:
    r"""Minus the log likelihood of counts, variance $\mu + \varphi \mu^2$; Poisson at φ = 0."""
    if dispersion == 0:
        return mean - count * mean.log() + torch.lgamma(count + 1)
    size = 1 / dispersion
    return (
        torch.lgamma(count + 1)
        + torch.lgamma(torch.full_like(count, size))
        - torch.lgamma(count + size)
        + (count + size) * (1 + dispersion * mean).log()
        - count * (dispersion * mean).log()
    )


def check_counts(
    count: Tensor | None, *, instead: str = "normalised values need data_loss=squared"
) -> None:
    """Refuse what a likelihood of counts cannot judge.

    Args:
        count: Counts of any shape.
        instead: What to do about values that are no counts.

    Raises:
        DataError: no counts, a negative or a broken number among them.
    """
    if count is None:
        raise DataError(
            "data_loss=negative_binomial needs counts, and these data have none: simulate with "
            "simulator.measurement, or use data_loss=squared"
        )
    if bool((count < 0).any()):
        raise DataError(f"counts must be 0 or above, got {float(count.min()):g}")
    if bool((count != count.round()).any()):
        broken = float(count[count != count.round()][0])
        raise DataError(f"counts must be whole numbers, got {broken:g}: {instead}")


def _mean(values: Tensor, wanted: Tensor) -> Tensor:
    """Mean over conditions ``(n_model, n_condition)``, of those that are wanted."""
    share = wanted.to(values.dtype)
    return (values * share).sum(-1) / share.sum(-1).clamp_min(1)
