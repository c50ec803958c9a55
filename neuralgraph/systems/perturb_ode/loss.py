"""What is asked of each arm: the data, and that cells come to rest."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError
from neuralgraph.core.terms import Terms
from neuralgraph.systems.perturb_ode.dataset import ScreenBatch, ScreenData
from neuralgraph.systems.perturb_ode.model import FieldEnsemble


class ScreenObjective:
    r"""Squared error on the measured days, plus what each arm adds.

    - ``steady_control``: $|f(\bar x_0)|^2$ at unperturbed cells, mean over days;
    - ``steady_perturbed``: $|f(\bar x_p)|^2$ at perturbed cells on the last day;
    - ``steady_first_day``: the same on the first day after the start, a wrong claim on purpose;
    - ``kinetic``: $|f|^2$ on every day after the start, no claim of rest;
    - ``weight_l2``: sum of squared weights.

    Each is a mean over the conditions a model may learn from and over coordinates. A term of rest
    is never alone: $f = 0$ would satisfy it. Models are summed, so that none feels another.

    Source:
        data and steady terms read from Kovačević et al. (2025), whose equations were not at hand;
        the other three are matched controls of our own.
    """

    def prepare(self, data: ScreenData) -> None:
        """Remember whether there are unperturbed cells."""
        self.has_control = bool(data.batch(data.starts(1)).is_control.any())

    def __call__(self, model: FieldEnsemble, batch: ScreenBatch) -> Terms:
        """Loss terms of a batch, summed over models."""
        self.refuse(model)
        terms = Terms(self.data_error(model, batch).sum())
        for name, value in self.arm_terms(model, batch).items():
            terms.add(name, value.sum(), 1.0)
        return terms

    def refuse(self, model: FieldEnsemble) -> None:
        """An arm that rests unperturbed cells needs some."""
        if not self.has_control and bool(model.weight_of("steady_control").any()):
            named = [arm for arm, terms in model.arms.items() if terms.get("steady_control")]
            raise ConfigError(
                f"the arms {named} ask unperturbed cells to rest, and no training condition is "
                "unperturbed: leave them out, or add control cells"
            )

    @staticmethod
    def data_error(model: FieldEnsemble, batch: ScreenBatch) -> Tensor:
        """Weighted mean squared error of each model, ``(n_model,)``."""
        error = (model.predict(batch) - batch.target) ** 2 * batch.weight
        return _mean(error.mean((-1, -2)), batch.is_train[model.get_buffer("fold")])

    def arm_terms(self, model: FieldEnsemble, batch: ScreenBatch) -> dict[str, Tensor]:
        """Weighted value of each added term, ``(n_model,)``, without those that no arm uses."""
        found: dict[str, Tensor] = {}
        perturbed = batch.is_train & ~batch.is_control
        settings = {
            "steady_control": (slice(None), batch.is_train & batch.is_control),
            "steady_perturbed": (slice(-1, None), perturbed),
            "steady_first_day": (slice(0, 1), perturbed),
            "kinetic": (slice(None), batch.is_train),
        }
        for name, (days, wanted) in settings.items():
            weight = model.weight_of(name)
            if bool(weight.any()) and bool(wanted.any()):
                found[name] = weight * self._speed(model, batch, days, wanted)
        weight = model.weight_of("weight_l2")
        if bool(weight.any()):
            found["weight_l2"] = weight * model.weight_l2()
        return found

    @staticmethod
    def _speed(model: FieldEnsemble, batch: ScreenBatch, days: slice, wanted: Tensor) -> Tensor:
        """Mean squared field at measured states of the wanted conditions, ``(n_model,)``."""
        fold = model.get_buffer("fold")
        seen = batch.encoded[:, :, days].unbind(2)
        total = torch.stack([model.rate(x[fold], batch).square().mean(-1) for x in seen])
        return _mean(total.mean(0), wanted[fold])


def _mean(values: Tensor, wanted: Tensor) -> Tensor:
    """Mean over conditions ``(n_model, n_condition)``, of those that are wanted."""
    share = wanted.to(values.dtype)
    return (values * share).sum(-1) / share.sum(-1).clamp_min(1)
