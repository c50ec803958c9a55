r"""What concentrations say about rate constants, stoichiometry and homeostasis.

$\dot c_i = \sum_j S_{ij} k_j g_j(c) + \beta_i c_i + \alpha_i$ with known shapes $g_j$ of the rates.
Given S, the rate constants enter linearly with columns $S_{ij} g_j$. Where S and k are both hidden,
only the products $k_j S_{ij}$ enter, one for each candidate edge; integers then fix the scale of a
column. Homeostasis is a line for each metabolite: slope $\beta = -\lambda$ and offset
$\alpha = \lambda c_0$, its value at c = 0. Where the law itself was learned, its exponent p in
$g_j = \prod c^{p\,s}$ may be counted among the unknowns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from neuralgraph.core.bounds import Natural, Part, Positive
from neuralgraph.core.errors import ConfigError
from neuralgraph.core.recording import Truth
from neuralgraph.numerics.information import Analysis, Problem, Row
from neuralgraph.numerics.nuisance import Nuisance
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.estimate import is_stoichiometry_given
from neuralgraph.systems.metabolism.integer_scale import through_products
from neuralgraph.systems.metabolism.law_directions import is_power_law, law_directions, why_not
from neuralgraph.systems.metabolism.linearisation import Point, at_model, at_truth, chunks
from neuralgraph.systems.metabolism.sensitivity import Columns

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

LAWS = ("known", "power", "learned")


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
                point = at_truth(model, data, truth)
            else:
                point = at_model(model, data, self.max_coefficient, is_drawn=not is_fitted)
            return self._problem(point, model, data, is_fitted=is_fitted)

    def _problem(
        self,
        point: Point,
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
        columns = Columns(point, spec, given_s=given_s, given_k=given_k, has_power=has_power)
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

        def interpret(analysis: Analysis) -> list[Row]:
            return through_products(analysis, columns, spec, integer=integer)

        inputs = data.train.inputs
        base = columns.base(state, None if inputs is None else inputs.cpu().double())
        residual = None
        if is_fitted:
            predicted = [
                model(
                    c.to(model.log_k.dtype),
                    None if u is None else u.to(model.log_k.dtype),
                ).detach()
                for c, u in chunks(data)
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
            interpret=None if given_s or given_k else interpret,
            run=run,
            nuisance=nuisance,
        )


def _law_nuisance(
    point: Point,
    model: Metabolism_Propagation,
    data: MetabolismData,
    columns: Columns,
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
