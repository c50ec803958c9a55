r"""What a screen says about the parameters of a field.

The data are expression on a few days, so that the sensitivities are those of the predicted
expression on these days, through the flow from the first day, and not those of derivatives. Three
kinds of unknowns:

- the simulated network itself (``identify.at=truth``): $\alpha, \beta, \gamma$ of each gene, K and
  n of each edge;
- ``field=hill``: largest production, decay and bias of each gene, a weight for each regulator;
- the other fields: the decay of each gene. The production is a network whose weights mean nothing
  by themselves; they count among the unknowns all the same, and their freedom is in the errors.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralgraph.core.bounds import Natural, Part, Positive
from neuralgraph.core.errors import ConfigError
from neuralgraph.core.recording import Truth
from neuralgraph.numerics.design import Candidate
from neuralgraph.numerics.information import Equation, Parameters, Problem
from neuralgraph.numerics.nuisance import Nuisance
from neuralgraph.systems.perturb_ode.hill import HillNetwork

if TYPE_CHECKING:
    from neuralgraph.systems.perturb_ode.dataset import ScreenBatch, ScreenData
    from neuralgraph.systems.perturb_ode.model import FieldEnsemble

STEP = 0.1
"""Longest Runge-Kutta step, days."""
SEEN = 1e-6
"""Change of the prediction, relative to that of the strongest direction, from which one counts."""
LARGEST = 60_000_000
"""Entries of the sensitivity to the weights of a network, beyond which they count as known."""
PRODUCTION, DECAY, EDGE = "production", "decay", "regulation"
Rate = Callable[[Tensor, Tensor, "Screened"], Tensor]
"""dx/dt ``(n_condition, n_gene)`` from parameters, states and what is done to the cells."""


@dataclass(frozen=True)
class Screened:
    """Conditions as a flow needs them.

    Args:
        start: ``(n_condition, n_gene)``.
        production: u of each condition, same shape.
        regulation: w, same shape.
        medium: ``(n_condition, n_medium)``.
        added: Constant production by the medium where it is known (the truth), same shape as
            ``start``.
    """

    start: Tensor
    production: Tensor
    regulation: Tensor
    medium: Tensor
    added: Tensor


@dataclass(frozen=True)
class _Point:
    """Parameters and the field they belong to.

    Args:
        name, group, value, unit: Of the parameters.
        rate: Field; takes parameters, then the weights of its network (if any), in one vector.
        weight: Weights of the network at the point, ``(n_weight,)``.
        scale: Standard deviation of each before the data.
        assumed: Sentences.
    """

    name: list[str]
    group: list[str]
    value: Tensor
    unit: list[str]
    rate: Rate
    weight: Tensor
    scale: Tensor
    assumed: tuple[str, ...]


class PerturbOdeIdentifiability:
    """Sensitivities of expression on the measured days.

    Args:
        rtol: Relative singular value below which a direction is free.
        noise_relative: Noise of the expression relative to its root mean square, where no residual
            of a fit is there to show it.
        precise_below: Relative standard error from which a parameter counts as precise.
        n_pulse: Further knock-outs that are tried as candidate designs.
        arm: Arm of the ensemble whose first model is the point of linearisation.
    """

    def __init__(
        self,
        *,
        rtol: Positive,
        noise_relative: Positive,
        precise_below: Part,
        n_pulse: Natural,
        arm: str,
    ) -> None:
        self.rtol = rtol
        self.noise_relative = noise_relative
        self.precise_below = precise_below
        self.n_pulse = n_pulse
        self.arm = arm

    def problem(
        self,
        model: FieldEnsemble,
        data: ScreenData,
        truth: Truth | None,
        *,
        is_fitted: bool,
    ) -> Problem:
        """Parameters and sensitivities; see :class:`neuralgraph.core.contracts.Identifier`.

        Raises:
            ConfigError: a field without parameters that mean something, or no such arm.
        """
        if self.arm not in model.arms:
            raise ConfigError(
                f"identifiability.arm='{self.arm}' is none of the arms {[*model.arms]}"
            )
        if not hasattr(model, "log_gamma"):
            raise ConfigError(
                "these data are projected on components, where a field has no parameter with a "
                "meaning: nothing is to be identified; use a data set whose coordinates are genes"
            )
        number = int(model.of(self.arm)[0])
        fold = int(model.get_buffer("fold")[number])
        batch = data.batch(data.starts(1))
        conditions, rows = _screened(batch, fold, data, truth)
        names = data.spec.names
        if truth is not None:
            point = _true_network(truth, names)
        else:
            point = _of_model(model, number, names)
        time = batch.time.detach().cpu().double()
        weight = batch.weight[rows].detach().cpu().double() > 0
        n_par = point.value.numel()

        def expression(all_values: Tensor, at: Screened) -> Tensor:
            flow = _flow(point.rate, all_values, at, time)
            return flow.flatten(0, 1)

        def equations_at(value: Tensor, at: Screened, seen: Tensor | None) -> list[Equation]:
            def predict(theta: Tensor) -> Tensor:
                return expression(torch.cat([theta, point.weight]), at)

            whole = torch.func.jacfwd(predict)(value).detach()
            return _equations(whole if seen is None else whole * seen[..., None])

        seen = weight.flatten(0, 1).double()
        with torch.no_grad():
            predicted = expression(torch.cat([point.value, point.weight]), conditions)
        target = batch.target[rows].detach().cpu().double().flatten(0, 1)
        nuisance, why = None, []
        if point.weight.numel():
            nuisance, why = _of_weights(expression, point, conditions, seen)
        rest = conditions.start.mean(0)

        def one_more(production: Tensor) -> list[Equation]:
            return equations_at(point.value, _from_rest(rest, production, conditions), None)

        def evaluate(value: Tensor) -> tuple[Tensor, list[Equation]]:
            with torch.no_grad():
                there = expression(torch.cat([value, point.weight]), conditions) * seen
            return there, equations_at(value, conditions, seen)

        size = (target * seen).square().sum(0) / seen.sum(0).clamp_min(1)
        return Problem(
            parameters=Parameters(
                tuple(point.name), tuple(point.group), point.value, tuple(point.unit)
            ),
            design=equations_at(point.value, conditions, seen),
            variable=names,
            size=size.sqrt(),
            point="",
            assumed=(
                "the sensitivities are those of the expression on the measured days, from the "
                "expression on the first day, which counts as exact",
                *point.assumed,
                *why,
            ),
            residual=(target - predicted) * seen if is_fitted else None,
            equations=one_more,
            evaluate=evaluate if n_par and nuisance is None else None,
            nuisance=nuisance,
            quantity="the expression of each gene",
            candidates=lambda: _candidates(conditions, names, self.n_pulse),
        )


def _screened(
    batch: ScreenBatch, fold: int, data: ScreenData, truth: Truth | None
) -> tuple[Screened, Tensor]:
    """Training conditions of a fold, float64 on the CPU, and their rows in the batch."""
    rows = batch.is_train[fold].nonzero()[:, 0].cpu()

    def taken(value: Tensor) -> Tensor:
        return value.detach().cpu().double()[rows]

    start = taken(batch.start[min(fold, batch.start.shape[0] - 1)])
    added = torch.zeros_like(start)
    if truth is not None:
        added = truth.parameters["added"].double()[data.train_index.cpu()][rows]
    one = Screened(
        start, taken(batch.production), taken(batch.regulation), taken(batch.medium), added
    )
    return one, rows


def _from_rest(rest: Tensor, production: Tensor, like: Screened) -> Screened:
    """Other knock-outs in the usual medium, from the mean first day."""
    ones = torch.ones_like(production)
    medium = like.medium.new_zeros(len(production), like.medium.shape[1])
    return Screened(rest.expand_as(production), production, ones, medium, 0 * production)


def _candidates(conditions: Screened, names: Sequence[str], n_most: int) -> list[Candidate]:
    """The same conditions once more, and single knock-outs that were not among them."""
    found = [Candidate("the same knock-outs once more", conditions.production, "more")]
    single = (conditions.production < 1).sum(1) == 1
    done = set(conditions.production[single].argmin(1).tolist())
    open_genes = [g for g in range(len(names)) if g not in done]
    for gene in open_genes[:n_most]:
        production = torch.ones(1, len(names), dtype=torch.float64)
        production[0, gene] = 0.0
        found.append(Candidate(f"knock-out of {names[gene]}", production, "pulse"))
    return found


def _equations(whole: Tensor) -> list[Equation]:
    """One for each gene, ``(n_row, n_gene, n_par)``, on the parameters that act on it."""
    result: list[Equation] = []
    for i in range(whole.shape[1]):
        columns = (whole[:, i] != 0).any(0).nonzero()[:, 0]
        n = columns.numel()
        result.append(
            Equation(
                i,
                columns,
                whole[:, i, columns].contiguous(),
                torch.arange(n),
                torch.ones(n, dtype=torch.float64),
            )
        )
    return result


def _flow(rate: Rate, value: Tensor, at: Screened, time: Tensor) -> Tensor:
    """Expression after the first day, ``(n_condition, n_day, n_gene)``."""
    state, frames = at.start, []
    for begin, end in itertools.pairwise(time.tolist()):
        n_step = max(1, math.ceil((end - begin) / STEP - 1e-9))
        h = (end - begin) / n_step
        for _ in range(n_step):
            k1 = rate(value, state, at)
            k2 = rate(value, state + 0.5 * h * k1, at)
            k3 = rate(value, state + 0.5 * h * k2, at)
            k4 = rate(value, state + h * k3, at)
            state = state + (h / 6) * (k1 + 2 * (k2 + k3) + k4)
        frames.append(state)
    return torch.stack(frames, 1)


def _of_weights(
    expression: Callable[[Tensor, Screened], Tensor],
    point: _Point,
    conditions: Screened,
    seen: Tensor,
) -> tuple[Nuisance | None, list[str]]:
    """Directions of the network's weights in which the prediction moves."""
    if seen.numel() * point.weight.numel() > LARGEST:
        return None, ["the production counts as known (too large a network): errors are too small"]

    def predict(weight: Tensor) -> Tensor:
        return expression(torch.cat([point.value, weight]), conditions)

    whole = torch.func.jacrev(predict, chunk_size=256)(point.weight).detach()
    flat = (whole * point.scale * seen[..., None]).flatten(0, 1)
    left, values, _ = torch.linalg.svd(flat, full_matrices=False)
    keep = values > SEEN * values[0]
    slope = (left[:, keep] * values[keep]).view(*seen.shape, -1)
    return Nuisance(torch.arange(len(seen)), slope), [
        f"the production counts as unknown in {int(keep.sum())} directions of its weights, near "
        "the point of linearisation, each with a normal prior of the size of its layer's weights"
    ]


# -- the simulated network --------------------------------------------------------------------


def _true_network(truth: Truth, names: Sequence[str]) -> _Point:
    p = truth.parameters
    sign = p["sign"].double()
    n = sign.shape[0]
    gene, regulator = sign.nonzero().T
    edges = [
        f"{names[j]} on {names[i]}" for i, j in zip(gene.tolist(), regulator.tolist(), strict=True)
    ]
    n_edge = len(edges)
    name = [f"{what}({g})" for what in ("alpha", "beta", "gamma") for g in names]
    name += [f"{what}({e})" for what in ("K", "n") for e in edges]
    group = [PRODUCTION] * (2 * n) + [DECAY] * n + [EDGE] * (2 * n_edge)
    unit = ["expression units/day"] * n + [""] * n + ["1/day"] * n
    unit += ["expression units"] * n_edge + [""] * n_edge
    value = torch.cat(
        [p["alpha"], p["beta"], p["gamma"], p["threshold"][gene, regulator],
         p["exponent"][gene, regulator]]
    ).double()  # fmt: skip

    def rate(theta: Tensor, state: Tensor, at: Screened) -> Tensor:
        alpha, beta, gamma = theta[: 3 * n].view(3, n)
        # entries without an edge stay at the truth: they act on nothing
        threshold = p["threshold"].double().index_put((gene, regulator), theta[3 * n :][:n_edge])
        exponent = p["exponent"].double().index_put((gene, regulator), theta[3 * n + n_edge :])
        network = HillNetwork(sign, alpha, beta, gamma, threshold.clamp_min(1e-9), exponent)
        return network.rate(state.clamp_min(1e-12), at.production, at.regulation, at.added)

    said = "signs, and what each medium adds, count as known"
    none = torch.zeros(0, dtype=torch.float64)
    return _Point(name, group, value, unit, rate, none, none, (said,))


# -- the model --------------------------------------------------------------------------------


def _of_model(model: FieldEnsemble, number: int, names: Sequence[str]) -> _Point:
    """The field of one model of the ensemble as a function of its parameters."""
    one = copy.deepcopy(model).to("cpu").double()
    for key in ("arm", "seed", "fold", "scale"):
        one.register_buffer(key, one.get_buffer(key)[number : number + 1])
    held = {key: value.detach()[number : number + 1] for key, value in one.named_parameters()}
    n = len(names)
    name = [f"gamma({g})" for g in names]
    group, unit = [DECAY] * n, ["1/day"] * n
    value = [held["log_gamma"][0].exp()]
    parts: list[tuple[str, Tensor | None]] = [("log_gamma", None)]
    is_hill = model.field == "hill"
    if is_hill:
        mask = one.get_buffer("mask") > 0
        regulator, gene = mask.nonzero().T
        name += [f"top({g})" for g in names] + [f"bias({g})" for g in names]
        name += [
            f"weight({names[j]} on {names[i]})"
            for j, i in zip(regulator.tolist(), gene.tolist(), strict=True)
        ]
        group += [PRODUCTION] * (2 * n) + [EDGE] * len(gene)
        unit += ["expression units/day"] * n + [""] * (n + len(gene))
        value += [held["log_top"][0].exp(), held["biases.0"][0], held["weights.0"][0][mask]]
        parts += [("log_top", None), ("biases.0", None), ("weights.0", mask)]
    if "of_medium" in held:
        n_medium = held["of_medium"].shape[1]
        name += [f"medium {m + 1}({g})" for m in range(n_medium) for g in names]
        group += ["medium"] * (n_medium * n)
        unit += [""] * (n_medium * n)
        value.append(held["of_medium"].flatten())
        parts.append(("of_medium", None))
    free = [key for key in held if key not in {key for key, _ in parts}]
    weight = [held[key].flatten() for key in free]
    scale = [
        torch.full_like(w, max(float(w.square().mean().sqrt()), 1e-3) * math.sqrt(2))
        for w in weight
    ]

    def rate(theta: Tensor, state: Tensor, at: Screened) -> Tensor:
        state_dict, start = {}, 0
        for key, chosen in parts:
            template = held[key]
            count = template.numel() if chosen is None else int(chosen.sum())
            taken = theta[start : start + count]
            start += count
            if chosen is not None:
                edges = tuple(chosen.nonzero().T)
                taken = torch.zeros_like(template[0]).index_put(edges, taken)
            if key.startswith("log_"):
                taken = taken.clamp_min(1e-12).log()
            state_dict[key] = taken.view_as(template)
        for key in free:
            template = held[key]
            state_dict[key] = theta[start : start + template.numel()].view_as(template)
            start += template.numel()
        medium = at.medium if at.medium.shape[1] else None
        arguments = (state[None], at.production, at.regulation, medium)
        return torch.func.functional_call(one, state_dict, arguments)[0]

    said = f"a field '{model.field}', first model of its arm"
    if model.field == "hill":
        said += "; scale of the states as in training"
    empty = torch.zeros(0, dtype=torch.float64)
    return _Point(
        name,
        group,
        torch.cat(value).double(),
        unit,
        rate,
        torch.cat(weight) if weight else empty,
        torch.cat(scale) if scale else empty,
        (said,),
    )


__all__ = ["PerturbOdeIdentifiability", "Screened"]
