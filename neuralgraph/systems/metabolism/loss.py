"""MetabolismObjective: how far dc/dt is off, and the documents' regularisers under their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuralgraph.core.errors import ConfigError, TrainingError
from neuralgraph.core.terms import Terms
from neuralgraph.nn.mlp import PowerLawMLP

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.dataset import MetabolismBatch
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

LOSSES = ("mse", "l2_norm")
WEIGHTS = ("none", "inverse_participation", "inverse_variance")
INTEGER_FORMS = ("nearest", "sin2")
N_GRID = 100
"""Concentrations at which the monotonicity of ``MLP_sub`` is checked."""


class MetabolismObjective:
    r"""Loss terms of one batch: the data term ``loss``, then every regulariser that is on.

    The data term is the mean squared error of dc/dt,
    $\frac{1}{B\,n} \sum_{b,i} w_i (\hat{\dot c}_{bi} - \dot c_{bi})^2$. When a batch carries
    ``future`` states, it is that of an Euler rollout over its $T$ steps instead,
    $\frac{1}{B\,T\,n} \sum_{b,t,i} w_i (\hat c_{bti} - c_{bti})^2 / (T\,dt)^2$, so that both are
    squared derivatives. A term whose coefficient is 0 is not evaluated, and terms of what is given
    (S, log_k) are left out.

    ``first_coeff_L1`` replaces ``coeff_S_L1`` while the loop says that it is in its first phase
    (:meth:`set_first_phase`; ``n_epochs_init`` is the loop's). ``inverse_variance`` weights are
    taken from the training frames by :meth:`prepare`, once, before the first batch.

    Args:
        loss: ``mse``, or ``l2_norm``: mean over frames of the un-squared Euclidean norm over
            metabolites.
        metabolite_weights: ``none``; ``inverse_participation``: 1 / number of reactions that
            change the metabolite; ``inverse_variance``: 1 / variance of its dc/dt. All have mean 1.
        coeff_S_L1: Of $\sum |S|$ over edges.
        coeff_S_L2: Of $\|S\|_2$ over edges.
        coeff_S_integer: Of the mean over edges of the squared distance to the nearest integer
            (``integer_form='nearest'``) or $\sin^2(\pi S)$ (``'sin2'``).
        integer_form: See ``coeff_S_integer``.
        coeff_mass_conservation: Of $\sum_j (\sum_i S_{ij})^2$; right only for balanced reactions.
        coeff_MLP_sub_diff: Of $\|\mathrm{relu}(|f(c)| - |f(c + \Delta c)|)\|_2$ on a grid of
            concentrations, for every |s| that is in use.
        coeff_MLP_node_L1: Of the mean |MLP_node| over the batch.
        coeff_MLP_sub_norm: Of $(|f(1, 1)| - 1)^2$; 0 by construction for ``power_law``.
        coeff_k_floor: Of $\sum_j \mathrm{relu}(\theta - \texttt{log\_k}_j)^2$.
        k_floor_threshold: $\theta$, log10.
        first_coeff_L1: Of sum |S| in the first phase, in place of ``coeff_S_L1``.

    Raises:
        ConfigError: an unknown option or a negative coefficient.

    Source:
        Document 001, "Training Loss", and document 002, "MLP Regularization".
    """

    def __init__(
        self,
        *,
        loss: str = "mse",
        metabolite_weights: str = "none",
        coeff_S_L1: float = 0.0,
        coeff_S_L2: float = 0.0,
        coeff_S_integer: float = 0.0,
        integer_form: str = "nearest",
        coeff_mass_conservation: float = 0.0,
        coeff_MLP_sub_diff: float = 0.0,
        coeff_MLP_node_L1: float = 0.0,
        coeff_MLP_sub_norm: float = 0.0,
        coeff_k_floor: float = 0.0,
        k_floor_threshold: float = -3.0,
        first_coeff_L1: float = 0.0,
    ) -> None:
        for name, value, known in (
            ("loss", loss, LOSSES),
            ("metabolite_weights", metabolite_weights, WEIGHTS),
            ("integer_form", integer_form, INTEGER_FORMS),
        ):
            if value not in known:
                raise ConfigError(f"loss.{name} must be one of {', '.join(known)}; got '{value}'")
        self.coefficients = {
            "coeff_S_L1": coeff_S_L1,
            "coeff_S_L2": coeff_S_L2,
            "coeff_S_integer": coeff_S_integer,
            "coeff_mass_conservation": coeff_mass_conservation,
            "coeff_MLP_sub_diff": coeff_MLP_sub_diff,
            "coeff_MLP_node_L1": coeff_MLP_node_L1,
            "coeff_MLP_sub_norm": coeff_MLP_sub_norm,
            "coeff_k_floor": coeff_k_floor,
            "first_coeff_L1": first_coeff_L1,
        }
        for name, value in self.coefficients.items():
            if not value >= 0:
                raise ConfigError(f"loss.{name} must be 0 or positive, got {value}")
        self.kind = loss
        self.metabolite_weights = metabolite_weights
        self.integer_form = integer_form
        self.k_floor_threshold = float(k_floor_threshold)
        self.is_first_phase = False
        self._variance: Tensor | None = None
        self._weight: Tensor | None = None

    # -- what the loop may set ------------------------------------------------------------------

    def set_first_phase(self, is_first: bool) -> None:
        """Say whether training is in the first of two phases; it is not until a loop says so."""
        self.is_first_phase = bool(is_first)

    def prepare(self, data: Any) -> None:
        """Take what the weights need from the training frames (``data.train.dx_dt``).

        A penalty that the data are known to contradict is warned of, and kept in ``data.notes``.
        """
        if self.metabolite_weights == "inverse_variance":
            self._variance = data.train.dx_dt.detach().double().var(dim=0)
            self._weight = None
        weight = self.coefficients["coeff_mass_conservation"]
        if weight > 0 and data.spec.mass_balanced is False and data.spec.sto_all is None:
            data.note(
                f"loss.coeff_mass_conservation={weight:g} pulls every column of S to the sum 0, "
                "and the reactions of these data are not mass balanced: the penalty is biased; "
                "set it to 0, or use simulator.mass_balanced=true"
            )

    def coefficient(self, name: str) -> float:
        """Coefficient in force in the present phase."""
        if name == "coeff_S_L1" and self.is_first_phase:
            name = "first_coeff_L1"
        return self.coefficients[name]

    # -- the terms ------------------------------------------------------------------------------

    def __call__(self, model: Metabolism_Propagation, batch: MetabolismBatch) -> Terms:
        """Terms of one batch.

        Args:
            model: The model under training.
            batch: Frames with their derivatives, or with ``future`` states.

        Raises:
            ConfigError: a term that this model has no part for.
            TrainingError: a batch without derivatives and without future states.
        """
        if batch.future is not None:
            error, homeostasis = self._rollout_error(model, batch)
            loss = self._reduce(error, model)
        else:
            loss, homeostasis = self._derivative_loss(model, batch)
        terms = Terms(loss)
        self._add_stoichiometry(terms, model)
        self._add_functions(terms, model, homeostasis)
        weight = self.coefficient("coeff_k_floor")
        if weight > 0 and model.log_k.requires_grad:
            short = (self.k_floor_threshold - model.log_k).relu()
            terms.add("coeff_k_floor", short.square().sum(), weight)
        return terms

    def _derivative_loss(
        self, model: Metabolism_Propagation, batch: MetabolismBatch
    ) -> tuple[Tensor, Tensor | None]:
        if batch.dx_dt is None:
            raise TrainingError(
                "the batch has neither dx_dt nor future states: estimate derivatives in the "
                "dataset, or train on rollouts (recurrent_training=true, time_step > 1)"
            )
        reaction, homeostasis = model.parts(batch.concentration, batch.inputs)
        if self.kind == "mse" and self.metabolite_weights == "none":
            loss = _MeanSquare.apply(batch.dx_dt, reaction, homeostasis)
            return cast(Tensor, loss), homeostasis
        error = reaction - batch.dx_dt
        error = error if homeostasis is None else error + homeostasis
        return self._reduce(error, model), homeostasis

    def _rollout_error(
        self, model: Metabolism_Propagation, batch: MetabolismBatch
    ) -> tuple[Tensor, Tensor | None]:
        """Errors ``(n_batch, T, n_met)`` divided by T dt."""
        future = batch.future
        assert future is not None
        n_step = future.shape[1]
        state, states, first = batch.concentration, [], None
        for step in range(n_step):
            external = batch.inputs
            if step > 0 and batch.future_inputs is not None:
                external = batch.future_inputs[:, step - 1]
            reaction, homeostasis = model.parts(state, external)
            change = reaction if homeostasis is None else reaction + homeostasis
            state = torch.add(state, change, alpha=batch.dt)
            states.append(state)
            first = homeostasis if step == 0 else first
        return (torch.stack(states, dim=1) - future) / (batch.dt * n_step), first

    def _reduce(self, error: Tensor, model: Metabolism_Propagation) -> Tensor:
        weight = self._metabolite_weight(model, error)
        if self.kind == "mse":
            square = error.square()
            return (square if weight is None else square * weight).mean()
        if weight is not None:
            error = error * weight.sqrt()
        return torch.linalg.vector_norm(error, dim=-1).mean()

    def _metabolite_weight(self, model: Metabolism_Propagation, like: Tensor) -> Tensor | None:
        if self.metabolite_weights == "none":
            return None
        if self._weight is None:
            if self.metabolite_weights == "inverse_participation":
                count = torch.bincount(model.met_all, minlength=model.n_met).double()
                weight = 1 / count.clamp_min(1)
            else:
                if self._variance is None:
                    raise TrainingError(
                        "metabolite_weights=inverse_variance needs objective.prepare(data) before "
                        "the first batch"
                    )
                floor = 1e-6 * self._variance.mean()
                weight = 1 / self._variance.clamp_min(floor)
            self._weight = weight / weight.mean()
        self._weight = self._weight.to(device=like.device, dtype=like.dtype)
        return self._weight

    def _add_stoichiometry(self, terms: Terms, model: Metabolism_Propagation) -> None:
        names = ("coeff_S_L1", "coeff_S_L2", "coeff_S_integer", "coeff_mass_conservation")
        wanted = {name: weight for name in names if (weight := self.coefficient(name)) > 0}
        if not wanted or model.is_stoichiometry_given:
            return
        sto_all = model.sto_all
        for name, weight in wanted.items():
            if name == "coeff_S_L1":
                value = sto_all.abs().sum()
            elif name == "coeff_S_L2":
                value = torch.linalg.vector_norm(sto_all)
            elif name == "coeff_mass_conservation":
                column = sto_all.new_zeros(model.n_rxn).index_add(0, model.rxn_all, sto_all)
                value = column.square().sum()
            elif self.integer_form == "nearest":
                value = (sto_all - sto_all.detach().round()).square().mean()
            else:
                value = torch.sin(torch.pi * sto_all).square().mean()
            terms.add(name, value, weight)

    def _add_functions(
        self, terms: Terms, model: Metabolism_Propagation, homeostasis: Tensor | None
    ) -> None:
        weight = self.coefficient("coeff_MLP_node_L1")
        if weight > 0:
            if homeostasis is None:
                raise ConfigError(
                    "loss.coeff_MLP_node_L1 needs MLP_node: set model.homeostasis=true, or the "
                    "coefficient to 0"
                )
            terms.add("coeff_MLP_node_L1", homeostasis.abs().mean(), weight)
        diff = self.coefficient("coeff_MLP_sub_diff")
        norm = self.coefficient("coeff_MLP_sub_norm")
        if not (diff > 0 or norm > 0):
            return
        if model.kinetics != "mass_action":
            raise ConfigError(
                "loss.coeff_MLP_sub_diff and coeff_MLP_sub_norm need MLP_sub: set "
                "model=metabolism_mass_action, or the coefficients to 0"
            )
        if diff > 0:
            value = model.MLP_sub(self._grid(model)).squeeze(2).abs()
            drop = (value[:, :-1] - value[:, 1:]).relu()
            terms.add("coeff_MLP_sub_diff", torch.linalg.vector_norm(drop), diff)
        if norm > 0 and not isinstance(model.MLP_sub, PowerLawMLP):
            at_one = model.MLP_sub(model.log_k.new_ones(1, 2))
            terms.add("coeff_MLP_sub_norm", (at_one.abs() - 1).square().sum(), norm)

    def _grid(self, model: Metabolism_Propagation) -> Tensor:
        """Features [c, |s|] for every |s| in use, ``(n_level, N_GRID, 2)``."""
        level = model.order_levels
        c = torch.linspace(
            0.1, 3.0 * model.concentration_scale, N_GRID, dtype=level.dtype, device=level.device
        )
        n_level = level.numel()
        return torch.stack(
            [c.expand(n_level, N_GRID), level.unsqueeze(1).expand(n_level, N_GRID)], dim=2
        )


class _MeanSquare(torch.autograd.Function):
    """Mean square of (reaction + homeostasis - target) as one node."""

    @staticmethod
    def forward(ctx: Any, target: Tensor, reaction: Tensor, homeostasis: Tensor | None) -> Tensor:
        error = reaction - target
        if homeostasis is not None:
            error += homeostasis
        ctx.save_for_backward(error)
        ctx.has_homeostasis = homeostasis is not None
        flat = error.reshape(-1)
        return torch.dot(flat, flat).div_(flat.numel())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor | None]:
        (error,) = ctx.saved_tensors
        g = error * (grads[0] * (2 / error.numel()))
        return None, g, g if ctx.has_homeostasis else None
