r"""What concentrations say about rate constants, stoichiometry and homeostasis.

$\dot c_i = \sum_j S_{ij} k_j g_j(c) + \beta_i c_i + \alpha_i$ with known shapes $g_j$ of the rates.
Given S, the rate constants enter linearly with columns $S_{ij} g_j$. Where S and k are both hidden,
only the products $k_j S_{ij}$ enter, one for each candidate edge; integers then fix the scale of a
column. Homeostasis is a line for each metabolite: slope $\beta = -\lambda$ and offset
$\alpha = \lambda c_0$, its value at c = 0. Where the law itself was learned, its exponent p in
$g_j = \prod c^{p\,s}$ may be counted among the unknowns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralgraph.core.bounds import Natural, Part, Positive
from neuralgraph.core.errors import ConfigError
from neuralgraph.core.recording import Truth
from neuralgraph.numerics.information import (
    COMBINATION,
    DETERMINED,
    UNDETERMINED,
    Analysis,
    Equation,
    Parameters,
    Problem,
    Row,
    relative,
    several,
)
from neuralgraph.numerics.nuisance import Nuisance
from neuralgraph.systems.metabolism import metrics
from neuralgraph.systems.metabolism.dataset import MetabolismData, MetabolismSpec
from neuralgraph.systems.metabolism.estimate import (
    gauged_stoichiometry,
    homeostasis_lines,
    is_stoichiometry_given,
    substrate_amplitude,
)
from neuralgraph.systems.metabolism.kinetics import (
    ReactionSystem,
    law_of_truth,
    network_of_truth,
)
from neuralgraph.systems.metabolism.law_directions import is_power_law, law_directions, why_not

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

LAWS = ("known", "power", "learned")
SMALLEST_CONCENTRATION = 1e-8
"""Floor under the concentration where its logarithm is taken, mM."""
N_FRAME_AT_ONCE = 512
"""Frames a model evaluates together."""
K, S, PRODUCT = "rate constant", "stoichiometry", "k·S"
SLOPE, OFFSET, LAW = "homeostasis slope", "homeostasis offset", "rate law"

Rates = Callable[[Tensor], Tensor]


class MetabolismIdentifiability:
    """Sensitivities of a metabolic network, for any prior.

    Args:
        rtol: Relative singular value below which a direction is free.
        noise_relative: Noise of the derivatives relative to their root mean square, where no
            residual of a fit is there to show it.
        precise_below: Relative standard error from which a parameter counts as precise.
        n_pulse: Metabolites whose pulse is tried as a candidate design.
        integer: Whether coefficients are known to be integers without a common factor, which
            fixes the scale between a column of S and its rate constant.
        max_coefficient: Largest integer the gauge considers.
        law: ``known``: the shape of the rates counts as known. ``power``: the exponent p of a
            power law is one more unknown (mass action, S given); after training a law that is no
            power law counts as ``learned``. ``learned``: the weights of the law count among the
            unknowns wherever the model has learned it
            (:mod:`neuralgraph.systems.metabolism.law_directions`).
    Raises:
        ConfigError: an unknown law.
    """

    def __init__(
        self,
        *,
        rtol: Positive,
        noise_relative: Positive,
        precise_below: Part,
        n_pulse: Natural,
        integer: bool,
        max_coefficient: Natural,
        law: str,
    ) -> None:
        if law not in LAWS:
            raise ConfigError(f"identifiability.law must be {', '.join(LAWS)}, got '{law}'")
        self.rtol = rtol
        self.noise_relative = noise_relative
        self.precise_below = precise_below
        self.n_pulse = n_pulse
        self.integer = integer
        self.max_coefficient = max_coefficient
        self.law = law

    def problem(
        self,
        model: Metabolism_Propagation,
        data: MetabolismData,
        truth: Truth | None,
        *,
        is_fitted: bool,
    ) -> Problem:
        """Parameters and sensitivities; see :class:`neuralgraph.core.contracts.Identifier`.

        Raises:
            ConfigError: ``truth`` is asked for and its law is not one that can be evaluated, or
                ``law=power`` where it has no meaning.
        """
        with torch.no_grad():
            if truth is not None:
                point = _at_truth(model, data, truth)
            else:
                point = _at_model(model, data, self.max_coefficient, is_drawn=not is_fitted)
            return self._problem(point, model, data, is_fitted=is_fitted)

    def _problem(
        self,
        point: _Point,
        model: Metabolism_Propagation,
        data: MetabolismData,
        *,
        is_fitted: bool,
    ) -> Problem:
        spec = data.spec
        given_s, given_k = is_stoichiometry_given(data), spec.log_k is not None
        has_power = self.law == "power"
        if is_fitted and has_power and given_s and model.kinetics == "mass_action":
            # where training has found another law, its weights take the place of p
            has_power = is_power_law(model, data.train.concentration.detach().cpu().double())
        elif has_power and not (given_s and model.kinetics == "mass_action"):
            raise ConfigError(
                "identifiability.law=power is for mass action with the stoichiometry given: set "
                "identifiability.law=known"
            )
        columns = _Columns(point, spec, given_s=given_s, given_k=given_k, has_power=has_power)
        state = data.train.concentration.detach().cpu().double()
        dx_dt = data.train.dx_dt.detach().cpu().double()
        assumed = list(point.assumed)
        if columns.has_lines:
            assumed.append("homeostasis is a line in c for each metabolite")
        nuisance = None
        if self.law == "learned" or (is_fitted and not has_power and self.law == "power"):
            nuisance, why = _law_nuisance(point, model, data, columns, is_fitted=is_fitted)
            assumed += why
        if not has_power and nuisance is None:
            assumed.append(f"the shape of the rates is that of {point.law}")
        if not given_s and not given_k:
            assumed.append(
                "coefficients are integers without a common factor: they fix the scale between a "
                "column of S and its rate constant"
                if self.integer
                else "nothing fixes the scale between a column of S and its rate constant"
            )
        if model.flux_limit:
            assumed.append(
                "how much the limiter slows each reaction counts as known, as it follows from "
                "concentrations and rates"
            )
        run = data.train.run.cpu()
        first = torch.ones(run.numel(), dtype=torch.bool)
        first[1:] = run[1:] != run[:-1]
        length = int((run == run[0]).sum())
        time = data.train.time.cpu().double()[:length]
        integer = self.integer

        def through_products(analysis: Analysis) -> list[Row]:
            return _through_products(analysis, columns, spec, integer=integer)

        inputs = data.train.inputs
        base = columns.base(state, None if inputs is None else inputs.cpu().double())
        residual = None
        if is_fitted:
            predicted = [
                model(
                    c.to(model.log_k.dtype),
                    None if u is None else u.to(model.log_k.dtype),
                ).detach()
                for c, u in _chunks(data)
            ]
            residual = dx_dt - torch.cat(predicted).cpu().double()
        return Problem(
            parameters=columns.parameters,
            design=columns.equations(base),
            variable=spec.metabolite_names,
            size=dx_dt.square().mean(0).sqrt(),
            point="",
            assumed=tuple(assumed),
            residual=residual,
            state=state,
            time=time,
            start=state[first],
            lowest=0.0,
            equations=lambda c: columns.equations(columns.base(c, None)),
            rhs=columns.flow,
            evaluate=columns.evaluator(state, base) if has_power else None,
            interpret=None if given_s or given_k else through_products,
            run=run,
            nuisance=nuisance,
        )


def _law_nuisance(
    point: _Point,
    model: Metabolism_Propagation,
    data: MetabolismData,
    columns: _Columns,
    *,
    is_fitted: bool,
) -> tuple[Nuisance | None, list[str]]:
    """Directions of the learned law as they act on dc/dt, and what there is to say of them."""
    if point.network is None:
        return None, []
    lower = "so that the standard errors leave out what the law can still move: lower bounds"
    n_frame = len(data.train)
    largest = max((e.numel() for e in columns.edges_of), default=0) + 2 * columns.has_lines
    why = why_not(point.network, n_frame, largest)
    if why:
        return None, [f"the law was learned and counts as known ({why}), {lower}"]
    found = law_directions(point.network, data)
    if found is None:
        return None, []
    frames, slope = found
    inputs = data.train.inputs
    u = None if inputs is None else inputs.detach().cpu().double()[frames]
    state = data.train.concentration.detach().cpu().double()[frames]
    flux = point.rates(state, u) * point.k
    dense = torch.zeros(columns.n_met, columns.n_rxn, dtype=torch.float64)
    dense.index_put_((columns.met, columns.rxn), point.sto_all, accumulate=True)
    change = torch.stack([(dense * v) @ along for v, along in zip(flux, slope, strict=True)])
    where = "the fit" if is_fitted else "their values at this point"
    return Nuisance(frames, change, columns.tie()), [
        f"the law counts as unknown in {slope.shape[2]} directions of its weights, near {where}, "
        "each with a normal prior of the size of its layer's weights",
        "further experiments are scored with the law as it is",
    ]


# -- the point of linearisation -------------------------------------------------------------------


@dataclass(frozen=True)
class _Point:
    """Values and rates around which everything is linear.

    Args:
        rates: ``(n_frame, n_met)`` and inputs -> rates at k = 1, ``(n_frame, n_rxn)``.
        exponent: Sum of order * log c over a reaction's substrates, ``(n_frame, n_rxn)``.
        k: ``(n_rxn,)``.
        sto_all: On the edges of the spec, ``(n_all_edge,)``.
        slope, offset: Homeostatic lines ``(n_met,)``, or ``None`` where there is no such term.
        law: The rate law in words.
        additive: Mean external input added to dc/dt, or ``None``.
        assumed: Sentences.
        network: The model whose networks the law is, or ``None`` where it is a formula.
    """

    rates: Callable[[Tensor, Tensor | None], Tensor]
    exponent: Rates
    k: Tensor
    sto_all: Tensor
    slope: Tensor | None
    offset: Tensor | None
    law: str
    additive: Tensor | None
    assumed: tuple[str, ...]
    network: Metabolism_Propagation | None = None


def _mean_inputs(data: MetabolismData) -> Tensor | None:
    inputs = data.train.inputs
    return None if inputs is None else inputs.detach().cpu().double().mean(0)


def _at_model(
    model: Metabolism_Propagation, data: MetabolismData, max_coefficient: int, *, is_drawn: bool
) -> _Point:
    spec = data.spec
    gauged = gauged_stoichiometry(model, data, max_coefficient=max_coefficient)
    log_k = model.log_k.detach().cpu().double()
    order = _orders(model, spec)
    exponent = _exponent(spec, order)
    is_power = is_drawn and model.kinetics == "mass_action" and spec.has_roles
    mean = _mean_inputs(data)
    if is_power:
        law = "mass action with the kinetic orders given"
        value = 10**log_k

        def rates(c: Tensor, inputs: Tensor | None) -> Tensor:
            return exponent(c).exp() * _factor(model, c, inputs, mean)

    else:
        law = "the model as drawn" if is_drawn else "the fitted model"
        shift = torch.zeros_like(log_k)
        if model.kinetics == "mass_action" and spec.has_roles:
            alpha = substrate_amplitude(model)
            if alpha > 0:
                shift = metrics.log_k_shift_mass_action(alpha, spec.rxn_sub.cpu(), spec.n_rxn)
        scale = gauged.scale if spec.sto_all is None else torch.ones_like(log_k)
        value = 10 ** (log_k + shift) / scale
        rescale = 1 / value

        def rates(c: Tensor, inputs: Tensor | None) -> Tensor:
            u = mean.expand(c.shape[0], -1) if inputs is None and mean is not None else inputs
            return _model_flux(model, c, u) * rescale

    sto_all = gauged.value
    slope = offset = None
    if model.has_homeostasis:
        slope, offset = homeostasis_lines(model, data)
    return _Point(
        rates=rates,
        exponent=exponent,
        k=10 ** spec.log_k.cpu().double() if spec.log_k is not None else value,
        sto_all=sto_all,
        slope=slope,
        offset=offset,
        law=law,
        additive=mean if spec.input_mode == "additive" else None,
        assumed=(),
        network=None if is_power else model,
    )


def _at_truth(model: Metabolism_Propagation, data: MetabolismData, truth: Truth) -> _Point:
    spec = data.spec
    family = truth.facts["rate_law"]
    if "log_k" not in truth.parameters or family not in ("mass_action", "learned_rate"):
        raise ConfigError(
            f"identify.at=truth: the true rate law ('{family}') has no rate constants that could "
            "serve as the point of linearisation; use identify.at=prior"
        )
    network = network_of_truth(truth)
    k = 10 ** truth.parameters["log_k"].double()
    zero = torch.zeros(network.n_met, dtype=torch.float64).numpy()
    system = ReactionSystem(
        network,
        law_of_truth(truth, network),
        flux_limit_step=truth.facts["dt"] if truth.facts["flux_limit"] else None,
        homeostasis_lambda=zero,
        homeostasis_baseline=zero,
    )
    mean = _mean_inputs(data)

    def rates(c: Tensor, inputs: Tensor | None) -> Tensor:
        v = torch.from_numpy(system.flux(0.0, c.contiguous().numpy()).copy())
        return v / k * _factor(model, c, inputs, mean)

    order = truth.parameters.get("order_sub", network.sto_sub).double()
    dense = network.matrix()
    slope = offset = None
    assumed: list[str] = []
    if model.has_homeostasis:
        slope = offset = torch.zeros(spec.n_met, dtype=torch.float64)
        if "homeostasis_lambda" in truth.parameters:
            slope = -truth.parameters["homeostasis_lambda"].double()
            offset = -slope * truth.parameters["homeostasis_baseline"].double()
    if truth.facts.get("circadian_amplitude"):
        assumed.append("the circadian swing of the baseline is left out")
    return _Point(
        rates=rates,
        exponent=_power_exponent(network.met_sub, network.rxn_sub, order, network.n_rxn),
        k=k,
        sto_all=dense[spec.met_all.cpu(), spec.rxn_all.cpu()],
        slope=slope,
        offset=offset,
        law="the simulator",
        additive=mean if spec.input_mode == "additive" else None,
        assumed=tuple(assumed),
        network=_with_true_weights(model, truth),
    )


def _with_true_weights(
    model: Metabolism_Propagation, truth: Truth
) -> Metabolism_Propagation | None:
    """The model with the networks of the truth, where theirs have the same shapes."""
    if model.kinetics != "learned_rate" or truth.facts["rate_law"] != "learned_rate":
        return None
    result = copy.deepcopy(model)
    for name in ("msg_mlp", "rate_mlp"):
        net = getattr(result, name)
        for key, value in net.named_parameters():
            true = truth.parameters.get(f"{name}.{key}")
            if true is None or true.shape != value.shape:
                return None
            value.copy_(true)
        net[0].weight.div_(net.input_scale.to(net[0].weight))
    network = network_of_truth(truth)
    for part in ("sub", "all"):
        moved = result._parameters.get(f"sto_{part}")
        if moved is not None:
            dense = torch.zeros(result.n_met, result.n_rxn, dtype=moved.dtype)
            at = getattr(network, f"met_{part}"), getattr(network, f"rxn_{part}")
            dense[at] = getattr(network, f"sto_{part}").to(moved.dtype)
            edges = getattr(result, f"met_{part}").cpu(), getattr(result, f"rxn_{part}").cpu()
            moved.copy_(dense[edges])
    return result


def _orders(model: Metabolism_Propagation, spec: MetabolismSpec) -> Tensor:
    for known in (spec.order_sub, spec.sto_sub):
        if known is not None:
            return known.detach().cpu().double().abs()
    return model.sto_sub.detach().cpu().double().abs()


def _exponent(spec: MetabolismSpec, order: Tensor) -> Rates:
    return _power_exponent(spec.met_sub.cpu(), spec.rxn_sub.cpu(), order, spec.n_rxn)


def _power_exponent(met: Tensor, rxn: Tensor, order: Tensor, n_rxn: int) -> Rates:
    """Logarithm of the product of c^order over the substrates of each reaction."""

    def exponent(c: Tensor) -> Tensor:
        log_c = c.clamp_min(SMALLEST_CONCENTRATION).log()
        total = c.new_zeros(n_rxn, c.shape[0])
        return total.index_add_(0, rxn, (log_c.T[met] * order[:, None])).T

    return exponent


def _model_flux(model: Metabolism_Propagation, c: Tensor, inputs: Tensor | None) -> Tensor:
    dtype, device = model.log_k.dtype, model.log_k.device
    parts = []
    for first in range(0, c.shape[0], N_FRAME_AT_ONCE):
        chosen = slice(first, first + N_FRAME_AT_ONCE)
        u = None if inputs is None else inputs[chosen].to(device, dtype)
        parts.append(model.flux(c[chosen].to(device, dtype), u).detach().cpu().double())
    return torch.cat(parts)


def _factor(
    model: Metabolism_Propagation, c: Tensor, inputs: Tensor | None, mean: Tensor | None
) -> Tensor | float:
    """Known factor of the rates from multiplicative inputs: the same in every model."""
    if not model.input_mode.startswith("multiplicative"):
        return 1.0
    assert mean is not None
    u = mean.expand(c.shape[0], -1) if inputs is None else inputs
    dtype, device = model.log_k.dtype, model.log_k.device
    factor = model._mean_input(u.to(device, dtype).t().contiguous())
    return factor.t().cpu().double()


def _chunks(data: MetabolismData) -> list[tuple[Tensor, Tensor | None]]:
    train = data.train
    inputs = train.inputs
    return [
        (
            train.concentration[first : first + N_FRAME_AT_ONCE],
            None if inputs is None else inputs[first : first + N_FRAME_AT_ONCE],
        )
        for first in range(0, len(train), N_FRAME_AT_ONCE)
    ]


# -- columns of the sensitivity -------------------------------------------------------------------


class _Columns:
    """Which parameters there are, and which regressors they stand on.

    Order: rate constants (or coefficients, or products k·S), slopes and offsets of homeostasis, p.
    """

    def __init__(
        self,
        point: _Point,
        spec: MetabolismSpec,
        *,
        given_s: bool,
        given_k: bool,
        has_power: bool,
    ) -> None:
        self.point, self.n_met, self.n_rxn = point, spec.n_met, spec.n_rxn
        self.has_lines = point.slope is not None
        self.met, self.rxn = spec.met_all.cpu(), spec.rxn_all.cpu()
        mets, rxns = spec.metabolite_names, spec.reaction_names
        edges = list(zip(self.met.tolist(), self.rxn.tolist(), strict=True))
        names: list[str] = []
        group: list[str] = []
        values: list[Tensor] = []
        self.edge_scale = torch.ones(self.met.numel(), dtype=torch.float64)
        self.edge_column: Tensor | None = None
        if given_s and not given_k:
            names += [f"k({name})" for name in rxns]
            group += [K] * self.n_rxn
            values.append(point.k)
            self.edge_scale, self.edge_column = point.sto_all, self.rxn
        elif not given_s:
            self.edge_column = torch.arange(self.met.numel())
            if given_k:
                self.edge_scale = point.k[self.rxn]
                names += [f"S({mets[i]},{rxns[j]})" for i, j in edges]
                group += [S] * len(edges)
                values.append(point.sto_all)
            else:
                names += [f"k({rxns[j]})·S({mets[i]},{rxns[j]})" for i, j in edges]
                group += [PRODUCT] * len(edges)
                values.append(point.sto_all * point.k[self.rxn])
        self.first_line = len(names)
        if self.has_lines:
            assert point.slope is not None and point.offset is not None
            names += [f"slope({name})" for name in mets] + [f"offset({name})" for name in mets]
            group += [SLOPE] * self.n_met + [OFFSET] * self.n_met
            values += [point.slope, point.offset]
        self.has_power = has_power
        if has_power:
            names.append("p")
            group.append(LAW)
            values.append(torch.ones(1, dtype=torch.float64))
        value = torch.cat(values) if values else torch.zeros(0, dtype=torch.float64)
        self.parameters = Parameters(tuple(names), tuple(group), value.double())
        order = torch.argsort(self.met, stable=True)
        count = torch.bincount(self.met, minlength=self.n_met)
        self.edges_of = order.split(count.tolist())

    def tie(self) -> Tensor | None:
        """What moves freely beside the law where integers hold the columns of S: k and lines."""
        if self.edge_column is None or self.parameters.group[:1] != (PRODUCT,):
            return None
        n_edge = self.met.numel()
        n_line = len(self.parameters) - n_edge
        tie = torch.zeros(n_edge + n_line, self.n_rxn + n_line, dtype=torch.float64)
        tie[torch.arange(n_edge), self.rxn] = self.point.sto_all
        tie[n_edge:, self.n_rxn :] = torch.eye(n_line, dtype=torch.float64)
        return tie

    def base(self, c: Tensor, inputs: Tensor | None) -> Tensor:
        """Regressors: rates at k = 1, ones, concentrations, slopes along p."""
        g = self.point.rates(c, inputs)
        parts = [g]
        if self.has_lines:
            parts += [torch.ones(c.shape[0], 1, dtype=torch.float64), c]
        if self.has_power:
            parts.append(self._change(g * self.point.k * self.point.exponent(c)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def equations(self, base: Tensor) -> list[Equation]:
        """One equation for each metabolite."""
        result: list[Equation] = []
        n = self.n_rxn
        one = torch.ones(1, dtype=torch.float64)
        last = len(self.parameters) - 1
        for i in range(self.n_met):
            edges = self.edges_of[i]
            columns, at, scale = [], [], []
            if self.edge_column is not None:
                columns.append(self.edge_column[edges])
                at.append(self.rxn[edges])
                scale.append(self.edge_scale[edges])
            if self.has_lines:
                first = self.first_line
                columns.append(torch.tensor([first + i, first + self.n_met + i]))
                at.append(torch.tensor([n + 1 + i, n]))
                scale += [one, one]
            if self.has_power:
                columns.append(torch.tensor([last]))
                at.append(torch.tensor([base.shape[1] - self.n_met + i]))
                scale.append(one)
            if not columns:
                continue
            result.append(
                Equation(i, torch.cat(columns), base, torch.cat(at), torch.cat(scale).double())
            )
        return result

    def flow(self, c: Tensor) -> Tensor:
        """dc/dt at the point of linearisation."""
        c = c.clamp_min(0)
        result = self._change(self.point.rates(c, None) * self.point.k)
        if self.has_lines:
            assert self.point.slope is not None and self.point.offset is not None
            result = result + self.point.slope * c + self.point.offset
        return result if self.point.additive is None else result + self.point.additive

    def evaluator(
        self, state: Tensor, base: Tensor
    ) -> Callable[[Tensor], tuple[Tensor, list[Equation]]]:
        """Prediction and sensitivities at other parameters, where p is one of them."""
        exponent = self.point.exponent(state)
        n, m = self.n_rxn, self.n_met
        has_k = self.edge_column is not None

        def evaluate(value: Tensor) -> tuple[Tensor, list[Equation]]:
            k = value[:n] if has_k else self.point.k
            moved = base.clone()
            moved[:, :n] = base[:, :n] * ((value[-1] - 1) * exponent).exp()
            flux = moved[:, :n] * k
            moved[:, moved.shape[1] - m :] = self._change(flux * exponent)
            result = self._change(flux)
            if self.has_lines:
                line = value[self.first_line : self.first_line + 2 * m].view(2, m)
                result = result + line[0] * state + line[1]
            return result, self.equations(moved)

        return evaluate

    def _change(self, flux: Tensor) -> Tensor:
        """S times fluxes, ``(n_frame, n_rxn) -> (n_frame, n_met)``."""
        each = flux.T[self.rxn] * self.point.sto_all[:, None]
        total = flux.new_zeros(self.n_met, flux.shape[0])
        return total.index_add_(0, self.met, each).T


# -- from products to S and k ---------------------------------------------------------------------


def integer_confidence(standard_error: float) -> float:
    r"""Probability that rounding a coefficient with this normal error gives the right integer.

    $P(|e| < 1/2) = \mathrm{erf}(1 / (2 \sqrt 2 \sigma))$.

    >>> integer_confidence(0.0), round(integer_confidence(0.5), 3)
    (1.0, 0.683)
    """
    if standard_error <= 0:
        return 1.0
    return math.erf(0.5 / (math.sqrt(2.0) * standard_error))


def _through_products(
    analysis: Analysis, columns: _Columns, spec: MetabolismSpec, *, integer: bool
) -> list[Row]:
    """Rows for S and k where the data speak of their products only.

    With ``integer`` a column whose products are all determined gives S up to an integer scale, the
    smallest one, and k from all of its edges: their errors are independent, since different
    metabolites have different noise.
    """
    p, of = analysis.problem.parameters, analysis.combinations_of()
    mets, rxns = spec.metabolite_names, spec.reaction_names
    sto = columns.point.sto_all
    k = columns.point.k
    edges_of_rxn: list[list[int]] = [[] for _ in range(spec.n_rxn)]
    for e, j in enumerate(columns.rxn.tolist()):
        edges_of_rxn[j].append(e)
    law = analysis.learned
    rows: list[Row] = []
    rate_rows: list[Row] = []
    for j, edges in enumerate(edges_of_rxn):
        acting = [e for e in edges if analysis.status[e] != UNDETERMINED]
        all_known = bool(edges) and all(analysis.status[e] == DETERMINED for e in edges)
        nonzero = [e for e in edges if float(sto[e]) != 0]
        scale_known = integer and all_known and bool(nonzero)
        # k from each non-zero edge: variance (k * relative error)^2
        weight = 0.0
        if scale_known:
            for e in nonzero:
                error = float(analysis.held_error[e])
                weight += (float(sto[e]) / error) ** 2 if error > 0 else math.inf
        k_error = math.sqrt(1 / weight) if weight > 0 else None
        if k_error is not None and law is not None:
            own = min(k_error, float(law.free_error[j]))
            k_error = math.hypot(own, float(law.free_root[j].norm()))
        texts = [p.name[e] for e in nonzero if analysis.status[e] == DETERMINED]
        texts += [c.text for e in nonzero for c in of.get(e, [])]
        for e in edges:
            status = analysis.status[e]
            name = f"S({mets[int(columns.met[e])]},{rxns[j]})"
            value = float(sto[e])
            if status == UNDETERMINED:
                rows.append(_nothing(name, S, "its rate does not act on the data"))
            elif status == COMBINATION:
                rows.append(
                    Row(name, S, COMBINATION, several([c.text for c in of[e]]), value, None, None,
                        "its rate is a combination of other rates here"
                        + ("; integers may still tell them apart" if integer else ""))
                )  # fmt: skip
            elif scale_known:
                error = float(analysis.held_error[e])
                if law is not None:  # what the law does to k is in every edge of the column
                    moved = law.root[e] - value * law.free_root[j]
                    error = math.hypot(error, float(moved.norm()))
                error = error / float(k[j])
                sure = integer_confidence(error)
                note = f"up to the integer scale of its column; right integer with {sure:.4f}"
                rows.append(
                    Row(name, S, DETERMINED, "", value, error, relative(error, value), note)
                )
            elif integer and not all_known:
                rows.append(
                    Row(name, S, COMBINATION, p.name[e], value, None, None,
                        "other entries of its column are open, and with them its scale")
                )  # fmt: skip
            else:
                rows.append(
                    Row(name, S, COMBINATION, p.name[e], value, None, None,
                        "scale of its column: S·a, k/a")
                )  # fmt: skip
        name = f"k({rxns[j]})"
        if scale_known:
            value = float(k[j])
            rate_rows.append(
                Row(name, K, DETERMINED, "", value, k_error, relative(k_error, value),
                    f"given the integers of {'its column' if law is None else 'all columns'}")
            )  # fmt: skip
        elif acting and nonzero:
            note = "scale of its column: S·a, k/a" if all_known else "its column of S is open"
            rate_rows.append(
                Row(name, K, COMBINATION, several(list(dict.fromkeys(texts))), float(k[j]), None,
                    None, note)
            )  # fmt: skip
        else:
            rate_rows.append(_nothing(name, K, "does not act on the data"))
    generic = Analysis.rows
    rest = generic(_without_interpretation(analysis))[columns.first_line :]
    return rate_rows + rows + rest


def _without_interpretation(analysis: Analysis) -> Analysis:
    from dataclasses import replace

    return replace(analysis, problem=replace(analysis.problem, interpret=None))


def _nothing(name: str, group: str, note: str) -> Row:
    return Row(name, group, UNDETERMINED, "", None, None, None, note)


__all__ = ["MetabolismIdentifiability", "integer_confidence"]
