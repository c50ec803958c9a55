"""A recovered network as files for others: matrix, confidence, reaction strings, SBML.

Written from the fitted model, its data and what the loop kept; the truth plays no part.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralgraph.core.errors import MissingExtraError
from neuralgraph.core.files import write_text
from neuralgraph.core.product import Product
from neuralgraph.systems.metabolism import metrics
from neuralgraph.systems.metabolism.closed_form import MISFIT
from neuralgraph.systems.metabolism.estimate import (
    gauged_stoichiometry,
    is_stoichiometry_given,
    substrate_amplitude,
)
from neuralgraph.systems.metabolism.joint_solver import correlated_frames
from neuralgraph.systems.metabolism.sbml_export import write_sbml

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.dataset import MetabolismData
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

N_REACTION_SHOWN = 15
"""Reactions in the preview of the report."""
N_DOUBTFUL_SHOWN = 8
"""Least certain coefficients in the preview of the report."""
DECIDED = 0.95
"""Confidence below which ``reactions.txt`` names a coefficient as undecided."""
POWER_ERROR = 0.01
"""Relative error up to which the learned substrate function counts as a power law."""
NEAR_INTEGER = 1e-3
"""Distance up to which a kinetic order is written as the integer it is near."""
CERTAIN = 1e6
"""Largest log evidence written: beyond, rounding of the data is all that speaks against it."""


@dataclass(frozen=True)
class Reaction:
    """One recovered reaction, ready to be written.

    Args:
        name: Its name.
        left: Coefficient of each metabolite on the left, by index; a catalyst stands on both sides.
        right: The same on the right.
        order: Kinetic order of each substrate, empty where the law is no power law.
        k: Rate constant of the power law, or ``None``.
        is_integer: Whether integers fit the column.
        confidence: Lowest confidence of its coefficients in (0, 1), ``None`` where S is given.
        modifiers: Metabolites that act on the rate and are not among its reactants or products.
        is_reversible: Whether the rate may be negative.
    """

    name: str
    left: Mapping[int, float]
    right: Mapping[int, float]
    order: Mapping[int, float]
    k: float | None
    is_integer: bool
    confidence: float | None
    modifiers: tuple[int, ...] = ()
    is_reversible: bool = False

    def text(self, names: Sequence[str]) -> str:
        """``A + 2 B -> C``.

        >>> Reaction("r", {0: 1.0, 1: 2.0}, {2: 1.0}, {}, None, True, None).text(["A", "B", "C"])
        'A + 2 B -> C'
        """
        if not self.left and not self.right:
            return "no metabolite changes"
        arrow = "<->" if self.is_reversible else "->"
        line = f"{_side(self.left, names)} {arrow} {_side(self.right, names)}".strip()
        acting = ", ".join(names[i] for i in self.modifiers)
        return f"{line}   [rate depends on {acting}]" if acting else line


def _side(side: Mapping[int, float], names: Sequence[str]) -> str:
    parts = [names[i] if s == 1 else f"{s:.6g} {names[i]}" for i, s in sorted(side.items())]
    return " + ".join(parts)


@dataclass(frozen=True)
class RecoveredNetwork:
    """What a run says about a reaction network, gauge fixed and rounded.

    Args:
        metabolite_names: ``n_met`` names.
        reactions: ``n_rxn`` reactions.
        met, rxn: Edges with a net coefficient, ``(n_edge,)`` long.
        coefficient: Net coefficients: integers where integers fit the column, ``(n_edge,)``.
        estimate: The same before rounding.
        standard_error: Of ``estimate``, given the rates of the model; ``inf``: not determined.
        evidence: Log evidence of each integer against the next best one, in nats.
        is_given: Whether S was part of the prior.
        notes: What the files leave out, in words.
    """

    metabolite_names: tuple[str, ...]
    reactions: tuple[Reaction, ...]
    met: Tensor
    rxn: Tensor
    coefficient: Tensor
    estimate: Tensor
    standard_error: Tensor
    evidence: Tensor
    is_given: bool
    notes: tuple[str, ...]

    @property
    def confidence(self) -> Tensor:
        """Probability of each coefficient against the next best one, ``(n_edge,)`` in (0, 1)."""
        return torch.sigmoid(self.evidence)


def coefficient_evidence(
    rate: Tensor,
    target: Tensor,
    met: Tensor,
    rxn: Tensor,
    integer: Tensor,
    sign: Tensor,
    *,
    max_coefficient: int,
    is_support_given: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""How clearly the data prefer each integer to every other, given the rates.

    Each row of $\dot c = S v$ is a regression on the rates of its candidate reactions. With $w$ and
    $\sigma$ the estimate and standard error of one coefficient (the others of the row free), the
    log evidence of $n$ against $n'$ is $((w - n')^2 - (w - n)^2) / 2\sigma^2$; the least over
    all $n'$ that the prior allows is returned. 0: the rates alone do not decide (reactions with
    proportional rates, too few frames). Standard errors count correlated residuals as fewer frames.

    Args:
        rate: Velocities in the gauge of ``integer``, ``(n_frame, n_rxn)``.
        target: What the reactions must explain, ``(n_frame, n_met)``.
        met: Metabolite of each candidate edge, ``(n_edge,)``.
        rxn: Reaction of each candidate edge.
        integer: The recovered coefficients, signed.
        sign: Known signs, 0 where unknown.
        max_coefficient: Largest coefficient considered.
        is_support_given: Whether 0 is excluded.

    Returns:
        Evidence in nats and standard errors, ``(n_edge,)`` each, and the relative residual of each
        metabolite, ``(n_met,)``.

    Source:
        own.
    """
    n_frame, n_met = target.shape
    evidence = torch.zeros(met.numel(), dtype=torch.float64)
    error = torch.full((met.numel(),), float("inf"), dtype=torch.float64)
    residual = torch.zeros(n_met, dtype=torch.float64)
    size = torch.arange(-max_coefficient, max_coefficient + 1, dtype=torch.float64)
    norm = rate.norm(dim=0).clamp_min(1e-300)
    order = torch.argsort(met, stable=True)
    for edges in order.split(torch.bincount(met, minlength=n_met).tolist()):
        if not edges.numel():
            continue
        i = int(met[edges[0]])
        y = target[:, i]
        total = float(y.norm())
        if total == 0 or edges.numel() >= n_frame:
            continue
        columns = rate[:, rxn[edges]] / norm[rxn[edges]]
        q, r = torch.linalg.qr(columns)
        inverse = torch.linalg.pinv(r, rtol=1e-8)
        scaled = inverse @ (q.T @ y)
        left = y - columns @ scaled
        residual[i] = float(left.norm()) / total
        # rounding of a noise-free derivative is an error too
        square = float(left.square().sum()) + n_frame * (1e-12 * total) ** 2
        square *= float(correlated_frames(left[:, None])[0]) / (n_frame - edges.numel())
        known = (inverse @ r).diagonal() > 1 - 1e-6
        deviation = square**0.5 * inverse.norm(dim=1) / norm[rxn[edges]]
        estimate = scaled / norm[rxn[edges]]
        far = (estimate[:, None] - size).square()
        here = (estimate - integer[edges]).square()
        barred = size == integer[edges][:, None]
        if is_support_given:
            barred |= size == 0
        barred |= sign[edges][:, None] * size < 0
        gap = torch.where(barred, float("inf"), far - here[:, None]).amin(1)
        value = gap / (2 * deviation.square())
        evidence[edges] = torch.where(known, value, 0.0)
        error[edges] = torch.where(known, deviation, float("inf"))
    return evidence.clamp(-CERTAIN, CERTAIN), error, residual


@torch.no_grad()
def recovered_network(
    model: Metabolism_Propagation,
    data: MetabolismData,
    *,
    max_coefficient: int,
    store: Mapping[str, Any],
) -> RecoveredNetwork:
    """The network a fitted model stands for.

    Args:
        model: The fitted model.
        data: Its data.
        max_coefficient: Largest coefficient of the gauge.
        store: What the loop kept; ``confidence`` is the log evidence of each edge of the model.
    """
    spec = data.spec
    is_given = is_stoichiometry_given(data)
    gauged = gauged_stoichiometry(model, data, max_coefficient=max_coefficient)
    value, integer, scale = gauged.value, gauged.integer, gauged.scale.clone()
    whole = torch.ones(spec.n_rxn, dtype=torch.bool)
    if is_given:
        evidence, error = torch.full_like(value, CERTAIN), torch.zeros_like(value)
    else:
        evidence, error, residual = _judged(model, data, gauged, max_coefficient)
        kept = store.get("confidence")
        is_explained = float(residual.median()) < MISFIT if residual.numel() else False
        if kept is not None and tuple(kept.shape) == tuple(value.shape):
            evidence = kept.detach().cpu().double().clamp(-CERTAIN, CERTAIN)
        elif is_explained:
            off = (value - integer).abs() > (5 * error).clamp_min(0.1)
            whole[gauged.rxn[off]] = False
    coefficient = torch.where(whole[gauged.rxn], integer, value)
    for j in (~whole).nonzero().flatten().tolist():  # the smallest coefficient is 1
        here = (gauged.rxn == j) & (value != 0)
        factor = 1 / float(value[here].abs().min())
        coefficient[here] *= factor
        scale[j] *= factor
    present = coefficient != 0
    met, rxn = gauged.met[present], gauged.rxn[present]
    network = RecoveredNetwork(
        metabolite_names=tuple(spec.metabolite_names),
        reactions=(),
        met=met,
        rxn=rxn,
        coefficient=coefficient[present],
        estimate=torch.where(whole[gauged.rxn], value, coefficient)[present],
        standard_error=error[present],
        evidence=evidence[present],
        is_given=is_given,
        notes=(),
    )
    power = _power(model, data)
    notes = list(_left_out(model, power))
    reactions = _reactions(model, data, network, whole, scale, power)
    return replace(network, reactions=tuple(reactions), notes=tuple(notes))


def _judged(
    model: Metabolism_Propagation,
    data: MetabolismData,
    gauged: metrics.GaugedStoichiometry,
    max_coefficient: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Evidence, standard errors, and the relative residual of the metabolites that react."""
    spec = data.spec
    flux, target = _rates_and_target(model, data)
    sign = torch.zeros(gauged.met.numel()) if spec.sign_all is None else spec.sign_all.cpu()
    evidence, error, residual = coefficient_evidence(
        flux / gauged.scale,
        target,
        gauged.met,
        gauged.rxn,
        gauged.integer,
        sign.double(),
        max_coefficient=max_coefficient,
        is_support_given=spec.has_support,
    )
    return evidence, error, residual[residual > 0]


def _rates_and_target(model: Metabolism_Propagation, data: MetabolismData) -> tuple[Tensor, Tensor]:
    """Velocities of the model and what they must explain, at every training frame."""
    train, flux, rest = data.train, [], []
    for first in range(0, len(train), 512):
        c = train.concentration[first : first + 512].to(model.log_k)
        inputs = None if train.inputs is None else train.inputs[first : first + 512].to(c)
        flux.append(model.flux(c, inputs).double().cpu())
        other = model.homeostasis(c)
        if inputs is not None and model.input_mode == "additive":
            other = other + inputs
        rest.append(other.double().cpu())
    return torch.cat(flux), train.dx_dt.double().cpu() - torch.cat(rest)


def _power(model: Metabolism_Propagation, data: MetabolismData) -> float | None:
    """Power of the learned substrate function, ``None`` where it is no power law."""
    is_product = model.kinetics == "mass_action" and model.aggregation == "multiply"
    if not is_product or model.is_softplus or not model.has_roles or model.flux_limit:
        return None
    alpha = substrate_amplitude(model)
    if not alpha > 0:
        return None
    values = data.train.concentration.double().cpu().flatten()
    values = values[values > 0]
    values = values[:: max(1, values.numel() // 500_000)]
    ends = values.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64)).log()
    log_c = torch.linspace(float(ends[0]), float(ends[1]), 64, dtype=torch.float64)
    rows, curves = [], []
    for level in model.order_levels.double().cpu().tolist():
        pairs = torch.stack([log_c.exp(), torch.full_like(log_c, level)], 1).to(model.log_k)
        curve = model.MLP_sub(pairs).detach().double().cpu().flatten().abs() / alpha
        rows.append(level * log_c)
        curves.append(curve.clamp_min(1e-300).log())
    x, y = torch.cat(rows), torch.cat(curves)
    power = float((x @ y) / (x @ x).clamp_min(1e-300))
    error = float(((y - power * x).exp() - 1).square().mean().sqrt())
    return power if math.isfinite(error) and error < POWER_ERROR else None


def _left_out(model: Metabolism_Propagation, power: float | None) -> Iterator[str]:
    if model.kinetics == "own_rates":
        yield (
            "each reaction has a learned law of its own, of its change alone: the reactions carry "
            "no kinetic law"
        )
    elif power is None:
        yield (
            "the learned rate law is a neural network, for which SBML has no form: the reactions "
            "carry no kinetic law"
        )
    if model.has_homeostasis:
        yield "the learned homeostasis of the metabolites is no reaction and is left out"
    if model.input_mode != "none":
        yield f"external inputs ({model.input_mode}) are left out"


def _reactions(
    model: Metabolism_Propagation,
    data: MetabolismData,
    network: RecoveredNetwork,
    whole: Tensor,
    scale: Tensor,
    power: float | None,
) -> Iterator[Reaction]:
    spec = data.spec
    net: list[dict[int, float]] = [{} for _ in range(spec.n_rxn)]
    worst = [math.inf] * spec.n_rxn
    edges = zip(
        network.met.tolist(),
        network.rxn.tolist(),
        network.coefficient.tolist(),
        network.confidence.tolist(),
        strict=True,
    )
    for i, j, s, confidence in edges:
        net[j][i] = s
        worst[j] = min(worst[j], confidence)
    inside: list[dict[int, float]] = [{} for _ in range(spec.n_rxn)]
    if spec.has_roles:
        size = model.sto_sub.detach().abs().double().cpu().tolist()
        for i, j, s in zip(model.met_sub.tolist(), model.rxn_sub.tolist(), size, strict=True):
            inside[j][i] = s
    k = model.log_k.detach().double().cpu() - scale.log10()
    if power is not None:
        alpha = substrate_amplitude(model)
        k = k + metrics.log_k_shift_mass_action(alpha, spec.rxn_sub.cpu(), spec.n_rxn)
    is_own = model.kinetics == "own_rates"
    for j, name in enumerate(spec.reaction_names):
        acting = tuple(sorted(i for i in inside[j] if i not in net[j])) if is_own else ()
        if is_own:
            inside[j] = {}
        left = {i: -s for i, s in net[j].items() if s < 0}
        for i, s in inside[j].items():
            if i not in left:  # a catalyst
                left[i] = max(1.0, round(s))
            elif network.is_given:
                left[i] = max(left[i], s)
        right = {i: left.get(i, 0.0) + net[j].get(i, 0.0) for i in {*left, *net[j]}}
        order = {} if power is None else {i: _order(power * s) for i, s in inside[j].items()}
        yield Reaction(
            name=name,
            left=left,
            right={i: s for i, s in right.items() if s > 0},
            order=order,
            k=None if power is None else 10 ** float(k[j]),
            is_integer=bool(whole[j]),
            confidence=None if network.is_given or not net[j] else worst[j],
            modifiers=acting,
            is_reversible=is_own,
        )


def _order(value: float) -> float:
    return float(round(value)) if abs(value - round(value)) < NEAR_INTEGER else value


# -- files -----------------------------------------------------------------------------------------


def write_products(
    network: RecoveredNetwork,
    data: MetabolismData,
    folder: Path,
    *,
    title: str,
) -> Iterator[Product]:
    """Write the files of a recovered network, and say what each holds.

    Args:
        network: What was recovered.
        data: Its data, for units and the initial concentrations of the SBML file.
        folder: Where to.
        title: Name of the SBML model.
    """
    if not network.is_given:
        yield _matrix_file(network, folder / "stoichiometry.csv")
        yield _confidence_file(network, folder / "stoichiometry_confidence.csv")
    yield _reaction_file(network, folder / "reactions.txt")
    path = folder / "network.xml"
    what = "The network as SBML (level 3), for COPASI, libroadrunner, COBRApy and other readers"
    left_out = "".join(f"; {note}" for note in network.notes)
    try:
        write_sbml(
            path,
            title=title,
            metabolite_names=network.metabolite_names,
            reactions=network.reactions,
            initial=data.train.concentration[0].double().cpu(),
            time_unit=data.time_unit,
            concentration_unit=data.concentration_unit,
            notes=network.notes,
        )
    except MissingExtraError as error:
        yield Product(None, "SBML", f"Not written: {error}")
        return
    yield Product(path, "SBML", f"{what}{left_out}.")


def _matrix_file(network: RecoveredNetwork, path: Path) -> Product:
    names = [r.name for r in network.reactions]
    dense = torch.zeros(len(network.metabolite_names), len(names), dtype=torch.float64)
    dense[network.met, network.rxn] = network.coefficient
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["metabolite", *names])
    for name, row in zip(network.metabolite_names, dense.tolist(), strict=True):
        writer.writerow([name, *(_entry(x) for x in row)])
    write_text(path, buffer.getvalue())
    odd = [r.name for r in network.reactions if not r.is_integer]
    caption = (
        f"The recovered matrix S, {dense.shape[0]} metabolites × {dense.shape[1]} reactions, "
        "negative where a reaction consumes. Of each reaction the smallest integers that fit: a "
        "common factor of a column cannot be told from its rate constant."
    )
    if odd:
        caption += (
            f" No integers fit {len(odd)} reaction{'s' * (len(odd) > 1)} ({', '.join(odd[:5])}"
            f"{' …' if len(odd) > 5 else ''}), whose coefficients stay real numbers, the smallest "
            "set to 1."
        )
    return Product(path, "Stoichiometric matrix", caption)


def _confidence_file(network: RecoveredNetwork, path: Path) -> Product:
    confidence = network.confidence
    order = torch.argsort(network.rxn * len(network.metabolite_names) + network.met)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    header = ["metabolite", "reaction", "coefficient", "confidence", "log_evidence"]
    writer.writerow([*header, "estimate", "standard_error"])
    for e in order.tolist():
        i, j = int(network.met[e]), int(network.rxn[e])
        deviation = float(network.standard_error[e])
        writer.writerow(
            [
                network.metabolite_names[i],
                network.reactions[j].name,
                _entry(float(network.coefficient[e])),
                f"{float(confidence[e]):.6g}",
                f"{float(network.evidence[e]):.6g}",
                f"{float(network.estimate[e]):.6g}",
                f"{deviation:.3g}" if math.isfinite(deviation) else "",
            ]
        )
    write_text(path, buffer.getvalue())
    doubtful = torch.argsort(confidence, stable=True)[:N_DOUBTFUL_SHOWN].tolist()
    lines = ["least certain:"] + [
        f"  {network.metabolite_names[int(network.met[e])]} in "
        f"{network.reactions[int(network.rxn[e])].name}: {_entry(float(network.coefficient[e]))}"
        f"  ({float(confidence[e]):.3f})"
        for e in doubtful
    ]
    n_sure = int((confidence >= DECIDED).sum())
    caption = (
        "One line for each coefficient. confidence is the probability of this integer against the "
        "next best one, from log_evidence (nats), given the recovered rates; 0.5 means that the "
        f"data do not decide. {n_sure} of {confidence.numel()} coefficients reach {DECIDED:g}. "
        "standard_error is empty where the rates alone do not determine the coefficient."
    )
    return Product(path, "Confidence of each coefficient", caption, "\n".join(lines))


def _reaction_file(network: RecoveredNetwork, path: Path) -> Product:
    names = network.metabolite_names
    doubtful: dict[int, list[str]] = {}
    if not network.is_given:
        confidence = network.confidence.tolist()
        for i, j, p in zip(network.met.tolist(), network.rxn.tolist(), confidence, strict=True):
            if p < DECIDED:
                doubtful.setdefault(j, []).append(f"{names[i]} {p:.2f}")
    lines = []
    for j, reaction in enumerate(network.reactions):
        line = f"{reaction.name}: {reaction.text(names)}"
        if reaction.k is not None:
            line += f"   k = {reaction.k:.4g}"
        if j in doubtful:
            line += f"   (undecided: {', '.join(doubtful[j])})"
        lines.append(line)
    write_text(path, "\n".join(lines) + "\n")
    shown = lines[:N_REACTION_SHOWN]
    if len(lines) > len(shown):
        shown.append(f"… {len(lines) - len(shown)} more")
    is_known = "given; rate constants recovered" if network.is_given else "recovered"
    caption = (
        f"Each reaction on a line ({is_known}). What stands on both sides is a catalyst, or acts "
        "as one."
    )
    return Product(path, "Reactions", caption, "\n".join(shown))


def _entry(value: float) -> str:
    return str(round(value)) if value == round(value) else f"{value:.6g}"


__all__ = [
    "Reaction",
    "RecoveredNetwork",
    "coefficient_evidence",
    "recovered_network",
    "write_products",
]
