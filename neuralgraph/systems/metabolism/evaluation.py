"""How a recovered metabolic network is judged: the only part of the system that sees the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError
from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.metrics.regression import mean_pearson, r2_identity
from neuralgraph.numerics.integrate import FIXED, DivergedError
from neuralgraph.systems.metabolism import metrics, structure, verdicts
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.estimate import (
    design_flux,
    gauged_log_k,
    gauged_stoichiometry,
    homeostasis_lines,
    is_stoichiometry_given,
    substrate_amplitude,
)
from neuralgraph.systems.metabolism.glossary import MEANINGS
from neuralgraph.systems.metabolism.held_out import held_out_rollouts, one_step
from neuralgraph.systems.metabolism.kinetics import network_of_truth, true_flux
from neuralgraph.systems.metabolism.network import ReactionNetwork
from neuralgraph.systems.metabolism.oracle import oracle_scores, oracle_stoichiometry
from neuralgraph.systems.metabolism.rate_laws import add_law_scores

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

TRIVIAL = "1.5 × known sign"
NO_CHANGE = "no change"
CONSTANT = "best constant"
CLASS_RULES = ("score", "joint")
N_CURVE = 200
"""Concentrations at which the learned substrate function is compared with its power law."""

STOICHIOMETRY_METRICS = (
    "stoichiometry_R2",
    "stoichiometry_R2_identifiable",
    "stoichiometry_R2_full",
    "stoichiometry_R2_refit",
    "exact_edges",
    "exact_columns",
    "exact_edges_identifiable",
    "exact_columns_identifiable",
)
TRIVIAL_METRICS = ("stoichiometry_R2_trivial", "exact_edges_trivial")
ORACLE_METRICS = ("exact_edges_oracle", "exact_edges_identifiable_oracle")
RENAMED_METRICS = (
    "support_f1_renamed",
    "exact_edges_renamed",
    "exact_edges_identifiable_renamed",
)
FRACTIONS = ("identifiable_fraction_edges", "identifiable_fraction_columns")
RATE_METRICS = (
    "rate_constants_R2",
    "rate_constants_R2_identifiable",
    "trimmed_R2",
    "n_outliers",
    "n_outliers_identifiable",
    "max_abs_dlog10_k_identifiable",
    "slope",
    "rate_constants_group_error",
)


class MetabolismEvaluator:
    """Recovery of stoichiometry and rate constants, and prediction of held-out trajectories.

    The scores are defined in :mod:`neuralgraph.systems.metabolism.metrics`. Held-out rollouts
    start from the first held-out frame; that frame is not scored. ``test_R2`` pools runs, frames
    and metabolites, each metabolite centred on its own mean; ``test_R2_change`` is 1 − SSE over
    the sum of squared displacements from the start (0 for a prediction that nothing changes);
    ``test_pearson`` is the mean over metabolites; ``test_R2_one_step`` is that of the derivative
    at held-out frames, around one mean of all entries. A rollout that diverges is reported as
    not computed, with its time.

    Args:
        every: Epochs between two looks at the truth while training, 0 for none.
        primary_metric: The number searches and summaries look at.
        direction: ``maximize`` or ``minimize``.
        class_metric: The score that decides the class.
        class_rule: ``score``: converged, partial or failed by that score alone; ``joint``
            (document 002): homeostasis and clusters of the embeddings count as well.
        converged_above: Class ``converged`` lies above.
        failed_below: Class ``failed`` lies below.
        trivial_margin: By how much ``converged`` must beat the trivial score of ``class_metric``.
        degeneracy: Pair (prediction, recovery) of metrics whose gap tells compensation, or null.
        max_coefficient: Largest stoichiometric coefficient the gauge considers (public knowledge
            of the family of networks).
        rtol: Relative tolerance of the null space of the sensitivity.
        rollout_method: ``euler``, ``midpoint``, ``heun``, ``rk4`` or ``adams``.
        rollout_n_substep: Steps between two frames.
        cluster_eps: Neighbourhood of DBSCAN on the embeddings.
        cluster_min_samples: Neighbours of a core point of DBSCAN.
    Raises:
        ConfigError: a value that cannot work.
    """

    meanings = MEANINGS

    def __init__(
        self,
        *,
        every: int,
        primary_metric: str,
        direction: str,
        class_metric: str,
        class_rule: str,
        converged_above: float,
        failed_below: float,
        trivial_margin: float,
        degeneracy: list[str] | None,
        max_coefficient: int,
        rtol: float,
        rollout_method: str,
        rollout_n_substep: int,
        cluster_eps: float,
        cluster_min_samples: int,
    ) -> None:
        if direction not in ("maximize", "minimize"):
            raise ConfigError(f"evaluation.direction is maximize or minimize, got '{direction}'")
        if class_rule not in CLASS_RULES:
            raise ConfigError(
                f"evaluation.class_rule is {' or '.join(CLASS_RULES)}, got '{class_rule}'"
            )
        if degeneracy is not None and len(degeneracy) != 2:
            raise ConfigError(
                "evaluation.degeneracy is null or a pair [prediction metric, recovery metric], "
                f"got {degeneracy}"
            )
        if failed_below > converged_above:
            raise ConfigError(
                f"evaluation.failed_below ({failed_below:g}) lies above converged_above "
                f"({converged_above:g}): swap them"
            )
        if max_coefficient < 1 or rollout_n_substep < 1:
            raise ConfigError(
                "evaluation.max_coefficient and rollout_n_substep must be at least 1, got "
                f"{max_coefficient} and {rollout_n_substep}"
            )
        if rollout_method not in FIXED:
            raise ConfigError(
                f"evaluation.rollout_method must be one of {', '.join(FIXED)}, got "
                f"'{rollout_method}'"
            )
        self.every = every
        self.primary_metric = primary_metric
        self.direction = direction
        self.class_metric = class_metric
        self.class_rule = class_rule
        self.converged_above = converged_above
        self.failed_below = failed_below
        self.trivial_margin = trivial_margin
        self.degeneracy = None if degeneracy is None else (degeneracy[0], degeneracy[1])
        self.max_coefficient = max_coefficient
        self.rtol = rtol
        self.rollout_method = rollout_method
        self.rollout_n_substep = rollout_n_substep
        self.cluster_eps = cluster_eps
        self.cluster_min_samples = cluster_min_samples

    # -- the two calls ------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        model: Metabolism_Propagation,
        data: MetabolismData,
        truth: Truth | None,
        *,
        log: Mapping[str, float],
    ) -> Scorecard:
        """Every score, with the trivial one beside it and the reason for each that is missing.

        Args:
            model: The fitted model.
            data: Its data; held-out trajectories are scored.
            truth: The truth, or ``None`` for measured data.
            log: Numbers of the training; ``final_loss`` is the mean squared error of dx/dt.
        """
        card = Scorecard()
        baselines: dict[str, dict[str, float]] = {}
        if truth is None:
            self._skip_truth(card)
        else:
            network = network_of_truth(truth)
            flux = design_flux(data, truth, network)
            found = self._identifiability(data, truth, network, flux)
            self._identifiable_fractions(card, data, truth, network, found, flux)
            gauged = gauged_stoichiometry(model, data, max_coefficient=self.max_coefficient)
            self._stoichiometry(card, baselines, data, truth, network, found, gauged, flux)
            self._rate_constants(card, baselines, model, data, truth, network, found, gauged)
            self._homeostasis(card, model, data, truth)
            add_law_scores(card, model, data, truth, gauged)
            card.facts["identifiability"] = structure.identifiability_table(found, network)
        self._prediction(card, baselines, model, data)
        if "final_loss" in log:
            card.add("final_loss", log["final_loss"], f"({_rate_unit(data)})²")
            baselines["final_loss"] = {NO_CHANGE: float(data.train.dx_dt.double().square().mean())}
        else:
            card.skip("final_loss", "the training logged none")
        self._verdicts(card, baselines)
        notes = [*data.notes, *self._misfits(model, data, truth)]
        if notes:
            card.facts["note"] = "; ".join(notes)
        card.facts["max_coefficient"] = self.max_coefficient
        card.facts["rollout"] = {
            "method": self.rollout_method,
            "n_substep": self.rollout_n_substep,
        }
        card.facts["baselines"] = {
            name: {label: value for label, value in row.items() if math.isfinite(value)}
            for name, row in baselines.items()
        }
        return card

    @torch.no_grad()
    def watch(
        self, model: Metabolism_Propagation, data: MetabolismData, truth: Truth | None
    ) -> dict[str, float]:
        """A few truth metrics for ``evaluation.jsonl``; empty without truth."""
        if truth is None:
            return {}
        network = network_of_truth(truth)
        result: dict[str, float] = {}
        gauged = gauged_stoichiometry(model, data, max_coefficient=self.max_coefficient)
        if not is_stoichiometry_given(data):
            column, _ = structure.column_identifiability(network, _order(truth))
            scores = metrics.stoichiometry_scores(gauged, network, is_identifiable=column)
            for name in ("stoichiometry_R2", "exact_edges", "exact_edges_identifiable"):
                result[name] = scores[name]
        pair = gauged_log_k(model, data, truth, network, gauged)
        if not isinstance(pair, str):
            result["rate_constants_R2"] = r2_identity(pair[0], pair[1], per_variable=False)
        if model.has_homeostasis:
            card = Scorecard()
            self._homeostasis(card, model, data, truth)
            for name in ("avg_slope_ratio", "embedding_cluster_acc", "embedding_n_clusters"):
                result[name] = card.metrics.get(name, math.nan)
        return {name: value for name, value in result.items() if math.isfinite(value)}

    # -- parts --------------------------------------------------------------------------------

    def _misfits(
        self, model: Metabolism_Propagation, data: MetabolismData, truth: Truth | None
    ) -> list[str]:
        """What in the settings cannot fit these data, in words."""
        notes = list(model.notes)
        if truth is not None and not is_stoichiometry_given(data):
            network = network_of_truth(truth)
            counted = metrics.counted_columns(network)[network.rxn_all]
            size = network.sto_all[counted].abs()
            largest = int(size.max()) if size.numel() else 0
            if largest > self.max_coefficient:
                notes.append(
                    f"the true coefficients reach {largest}, the gauge considers up to "
                    f"{self.max_coefficient}: such columns cannot be exact; raise "
                    "evaluation.max_coefficient (and loop.max_coefficient)"
                )
        return notes

    def _skip_truth(self, card: Scorecard) -> None:
        names = (
            *STOICHIOMETRY_METRICS,
            *TRIVIAL_METRICS,
            *ORACLE_METRICS,
            *FRACTIONS,
            *RATE_METRICS,
            "sign_accuracy",
            "support_f1",
            *RENAMED_METRICS,
            "identifiable_fraction_k",
            "rate_constants_R2_ceiling",
        )
        for name in names:
            card.skip(name, "no truth: measured data")

    def _identifiability(
        self, data: MetabolismData, truth: Truth, network: ReactionNetwork, flux: Tensor | None
    ) -> structure.Identifiability:
        is_limited = False
        if truth.facts.get("flux_limit") and flux is not None:
            state = data.train.concentration.cpu().double()
            is_limited = not torch.equal(flux, true_flux(truth, network, state))
        found = structure.identifiability(
            network,
            None if is_limited else flux,
            log_k=truth.parameters.get("log_k"),
            is_stoichiometry_given=is_stoichiometry_given(data),
            rtol=self.rtol,
            order_sub=_order(truth),
            is_law_shared=truth.facts["rate_law"] != "sbml",
        )
        if not is_limited:
            return found
        why = "the limiter makes every rate depend on the others' constants"
        return replace(found, reason_k=(why,) * network.n_rxn)

    def _identifiable_fractions(
        self,
        card: Scorecard,
        data: MetabolismData,
        truth: Truth,
        network: ReactionNetwork,
        found: structure.Identifiability,
        flux: Tensor | None,
    ) -> None:
        if is_stoichiometry_given(data):
            for name in (*FRACTIONS, "identifiable_fraction_edges_design"):
                card.skip(name, "the stoichiometry is given")
        else:
            has_edge = torch.bincount(network.rxn_all, minlength=network.n_rxn) > 0
            edge = found.column[network.rxn_all].double()
            card.add("identifiable_fraction_edges", float(edge.mean()))
            card.add("identifiable_fraction_columns", float(found.column[has_edge].double().mean()))
            if flux is None:
                card.skip("identifiable_fraction_edges_design", found.reason_k[0])
            else:
                of_design = structure.determined_edges(
                    network, flux, is_support_given=data.spec.has_support, rtol=self.rtol
                )
                card.add("identifiable_fraction_edges_design", float(of_design.double().mean()))
        if data.spec.log_k is not None:
            card.skip("identifiable_fraction_k", "the rate constants are given")
        elif "log_k" not in truth.parameters:
            card.skip("identifiable_fraction_k", "the true rate law has no rate constants k")
        elif found.k is None:
            card.skip("identifiable_fraction_k", found.reason_k[0])
        else:
            card.add("identifiable_fraction_k", float(found.k.double().mean()))

    def _stoichiometry(
        self,
        card: Scorecard,
        baselines: dict[str, dict[str, float]],
        data: MetabolismData,
        truth: Truth,
        network: ReactionNetwork,
        found: structure.Identifiability,
        gauged: metrics.GaugedStoichiometry,
        flux: Tensor | None,
    ) -> None:
        spec = data.spec
        if is_stoichiometry_given(data):
            skipped = (*STOICHIOMETRY_METRICS, *TRIVIAL_METRICS, *ORACLE_METRICS)
            for name in (*skipped, "sign_accuracy", "support_f1", *RENAMED_METRICS):
                card.skip(name, "the stoichiometry is given")
            return
        scores = metrics.stoichiometry_scores(gauged, network, is_identifiable=found.column)
        for name in STOICHIOMETRY_METRICS:
            self._add(card, name, scores[name], "no edge to count")
        if spec.has_roles and spec.has_support:
            card.skip("sign_accuracy", "support and roles are given, and with them every sign")
        else:
            self._add(card, "sign_accuracy", scores["sign_accuracy"], "no edge to count")
        if spec.has_support:
            for name in ("support_f1", *RENAMED_METRICS):
                card.skip(name, "the support is given")
        else:
            for name in ("support_f1", *RENAMED_METRICS):
                self._add(card, name, scores[name], "no edge to count")
            every_pair = torch.ones(network.n_met, network.n_rxn)
            baselines["support_f1"] = {
                "every pair": metrics.support_f1(every_pair, network.matrix())
            }
        sign = None
        if spec.sign_all is not None:
            sign = (spec.met_all, spec.rxn_all, spec.sign_all)
        known = metrics.known_signs(
            network,
            sign=sign,
            substrate=(spec.met_sub, spec.rxn_sub) if spec.has_roles and sign is None else None,
        )
        trivial = metrics.trivial_stoichiometry_scores(network, known, is_identifiable=found.column)
        for name, value in trivial.items():
            baselines[name] = {TRIVIAL: value}
        for name in TRIVIAL_METRICS:
            self._add(card, name, trivial[name.removesuffix("_trivial")], "no edge to count")
        self._oracle(card, data, truth, network, found, known, flux)
        errors = metrics.stoichiometry_errors(gauged, network)
        card.facts["diagnosis"] = str(errors)
        card.facts["gauge"] = (
            "per reaction the scale that brings the estimated column closest to integers up to "
            f"{self.max_coefficient}, from the estimate and the prior alone"
        )

    def _oracle(
        self,
        card: Scorecard,
        data: MetabolismData,
        truth: Truth,
        network: ReactionNetwork,
        found: structure.Identifiability,
        known_sign: Tensor,
        flux: Tensor | None,
    ) -> None:
        """What least squares with the true rates reads from the same data."""
        why = ""
        if flux is None:
            why = "the true rate law is not known here"
        elif "homeostasis_lambda" in truth.parameters:
            why = "the oracle knows reactions only, and the truth has homeostasis"
        elif data.spec.input_mode == "additive":
            why = "the oracle knows reactions only, and the data have an additive input"
        if why or flux is None:
            for name in ORACLE_METRICS:
                card.skip(name, why)
            return
        estimate = oracle_stoichiometry(
            network,
            flux,
            data.train.dx_dt,
            is_support_given=data.spec.has_support,
            known_sign=known_sign,
            max_coefficient=self.max_coefficient,
        )
        scores = oracle_scores(estimate, network, is_identifiable=found.column)
        for name, value in scores.items():
            self._add(card, name, value, "no edge to count")
        card.facts["oracle"] = (
            "least squares of each row with the true rates, rounded to integers the prior allows"
        )

    def _rate_constants(
        self,
        card: Scorecard,
        baselines: dict[str, dict[str, float]],
        model: Metabolism_Propagation,
        data: MetabolismData,
        truth: Truth,
        network: ReactionNetwork,
        found: structure.Identifiability,
        gauged: metrics.GaugedStoichiometry,
    ) -> None:
        pair = gauged_log_k(model, data, truth, network, gauged)
        if isinstance(pair, str):
            for name in (*RATE_METRICS, "rate_constants_R2_ceiling"):
                card.skip(name, pair)
            return
        log_k, true_log_k = pair
        scores = metrics.rate_constant_scores(
            log_k,
            true_log_k,
            is_identifiable=torch.zeros_like(found.column) if found.k is None else found.k,
            group=found.group,
        )
        for name in RATE_METRICS:
            why = "no undetermined sum of rate constants"
            if name.endswith("_identifiable"):
                why = "no rate constant is determined" if found.k is not None else found.reason_k[0]
            self._add(card, name, scores[name], why)
        constant = metrics.rate_constant_scores(
            torch.full_like(true_log_k, float(true_log_k.mean())),
            true_log_k,
            is_identifiable=torch.zeros_like(found.column) if found.k is None else found.k,
        )
        for name in (
            "trimmed_R2",
            "n_outliers",
            "n_outliers_identifiable",
            "max_abs_dlog10_k_identifiable",
        ):
            baselines[name] = {CONSTANT: constant[name]}
        baselines["slope"] = {CONSTANT: 0.0}
        # of each set its own mean
        baselines["rate_constants_R2"] = {CONSTANT: 0.0}
        baselines["rate_constants_R2_identifiable"] = {CONSTANT: 0.0}
        self._ceiling(card, baselines, truth, true_log_k, found)
        if model.kinetics == "mass_action" and data.spec.has_roles:
            self._substrate_function(card, model, data, truth)

    def _ceiling(
        self,
        card: Scorecard,
        baselines: dict[str, dict[str, float]],
        truth: Truth,
        true_log_k: Tensor,
        found: structure.Identifiability,
    ) -> None:
        """What no predictor can be expected to exceed, given what the data leave open."""
        name = "rate_constants_R2_ceiling"
        prior = truth.facts.get("log_k_range")
        if found.k is None or prior is None:
            why = (
                found.reason_k[0] if found.k is None else "no prior of the rate constants is known"
            )
            card.skip(name, why)
            return
        value = metrics.rate_constants_ceiling(
            true_log_k,
            is_determined=found.k,
            group=found.group,
            prior=(float(prior[0]), float(prior[1])),
        )
        if value is None:
            in_group = {j for one in found.group for j in one.members}
            alone = set((~found.k).nonzero().flatten().tolist()) - in_group
            card.skip(
                name,
                "some rate constants are open because their columns of S are"
                if alone
                else "a group of reactions has several determined combinations",
            )
            return
        card.add(name, value)
        baselines[name] = {CONSTANT: 0.0}

    def _substrate_function(
        self,
        card: Scorecard,
        model: Metabolism_Propagation,
        data: MetabolismData,
        truth: Truth,
    ) -> None:
        """Amplitude and curves of ``MLP_sub``; a curve without an edge is not determined."""
        alpha = substrate_amplitude(model)
        card.add("alpha", alpha)
        values = data.train.concentration.double().cpu().flatten()
        values = values[:: max(1, values.numel() // 500_000)]
        c = torch.linspace(0.0, float(values.quantile(0.999)), N_CURVE + 1).double()[1:]
        is_power = truth.facts["rate_law"] == "mass_action"
        levels = set(model.order_levels.double().cpu().round(decimals=6).tolist())
        for order in sorted({1.0, 2.0, *levels}):
            name = f"MLP_sub_curve_error_{order:g}"
            if not is_power:
                card.skip(name, "the true rate law is no power law")
            elif model.order_input is not None and order not in levels:
                card.skip(name, f"not determined: no substrate has |s| = {order:g}")
            elif alpha > 0:
                pairs = torch.stack([c, torch.full_like(c, order)], dim=1)
                pairs = pairs.to(model.log_k.device, model.log_k.dtype)
                learned = model.MLP_sub(pairs).detach().double().cpu().flatten().abs() / alpha
                card.add(name, metrics.substrate_curve_error(learned, c, order))

    def _homeostasis(
        self, card: Scorecard, model: Metabolism_Propagation, data: MetabolismData, truth: Truth
    ) -> None:
        """Slope of the learned homeostasis per type, clusters of the embeddings."""
        types = truth.parameters.get("metabolite_type")
        if not model.has_homeostasis:
            return
        if types is None:
            card.skip("avg_slope_ratio", "the truth has no homeostasis")
            return
        from neuralgraph.metrics.clustering import cluster_scores

        types = types.long()
        slope, offset = homeostasis_lines(model, data)
        rate = truth.parameters["homeostasis_lambda"].double()
        baseline = truth.parameters["homeostasis_baseline"].double()
        ratios: dict[int, float] = {}
        for t in types.unique().tolist():
            here = types == t
            true_slope = -float(rate[here].mean())
            learned = float(slope[here].median())
            card.add(f"MLP_node_slope_{t}", learned, f"1/{data.time_unit}")
            card.add(f"MLP_node_gt_slope_{t}", true_slope, f"1/{data.time_unit}")
            at_zero, true_offset = (
                float(offset[here].median()),
                float((rate * baseline)[here].mean()),
            )
            card.add(f"MLP_node_offset_{t}", at_zero, _rate_unit(data))
            card.add(f"MLP_node_gt_offset_{t}", true_offset, _rate_unit(data))
            if true_slope != 0:
                ratios[t] = learned / true_slope
                card.add(f"MLP_node_slope_ratio_{t}", ratios[t])
            if true_offset != 0:
                card.add(f"MLP_node_offset_ratio_{t}", at_zero / true_offset)
        if ratios:
            card.add("avg_slope_ratio", sum(ratios.values()) / len(ratios))
            card.facts["homeostasis"] = "; ".join(
                f"type {t}: {verdicts.homeostasis_diagnosis(ratio)}" for t, ratio in ratios.items()
            )
        else:
            card.skip("avg_slope_ratio", "every true slope is 0")
        scores = cluster_scores(
            model.a.detach().cpu().double(),
            types,
            eps=self.cluster_eps,
            min_samples=self.cluster_min_samples,
        )
        for name, value in scores.items():
            self._add(card, f"embedding_{name}", value, "fewer than two clusters were found")

    def _prediction(
        self,
        card: Scorecard,
        baselines: dict[str, dict[str, float]],
        model: Metabolism_Propagation,
        data: MetabolismData,
    ) -> None:
        names = ("test_R2", "test_R2_change", "test_pearson")
        card.facts["held_out"] = data.test_description
        try:
            runs = held_out_rollouts(
                model, data, method=self.rollout_method, n_substep=self.rollout_n_substep
            )
        except DivergedError as error:
            for name in names:
                card.skip(
                    name,
                    f"the rollout from held-out data diverged at t = {error.time:g} "
                    f"{data.time_unit} "
                    f"({error.variable})",
                )
            runs = []
        else:
            if not runs:
                for name in names:
                    card.skip(name, "no trajectory was held out")
        if runs:
            seen = torch.cat([run.seen[1:] for run in runs])
            predicted = torch.cat([run.predicted[1:] for run in runs])
            still = torch.cat([run.seen[:1].expand_as(run.seen[1:]) for run in runs])
            if seen.numel():
                self._scores_of_rollout(card, baselines, seen, predicted, still)
            else:
                for name in names:
                    card.skip(name, "held-out trajectories have one frame only")
        pairs = one_step(model, data)
        if pairs is None:
            card.skip("test_R2_one_step", "no derivative of held-out frames")
        else:
            predicted, seen = pairs
            score = r2_identity(predicted, seen, per_variable=False)
            self._add(card, "test_R2_one_step", score, "the derivative is constant, or not finite")
            mean = data.train.dx_dt.cpu().double().mean(0).expand_as(seen)
            baselines["test_R2_one_step"] = {
                NO_CHANGE: r2_identity(torch.zeros_like(seen), seen, per_variable=False),
                "mean of training": r2_identity(mean, seen, per_variable=False),
            }

    def _scores_of_rollout(
        self,
        card: Scorecard,
        baselines: dict[str, dict[str, float]],
        seen: Tensor,
        predicted: Tensor,
        still: Tensor,
    ) -> None:
        why = "the held-out data do not vary"
        self._add(card, "test_R2", r2_identity(predicted, seen, per_variable=True), why)
        moved = float((seen - still).square().sum())
        change = 1 - float((seen - predicted).square().sum()) / moved if moved > 0 else math.nan
        self._add(card, "test_R2_change", change, why)
        self._add(card, "test_pearson", mean_pearson(predicted, seen), why)
        baselines["test_R2"] = {NO_CHANGE: r2_identity(still, seen, per_variable=True)}
        baselines["test_R2_change"] = {NO_CHANGE: 0.0}
        baselines["test_pearson"] = {NO_CHANGE: mean_pearson(still, seen)}

    def _verdicts(self, card: Scorecard, baselines: dict[str, dict[str, float]]) -> None:
        if self.degeneracy is not None:
            prediction, recovery = (card.metrics.get(name) for name in self.degeneracy)
            if prediction is None or recovery is None:
                absent = next(n for n in self.degeneracy if n not in card.metrics)
                card.skip("degeneracy_gap", f"{absent} was not computed")
            else:
                card.add("degeneracy_gap", prediction - recovery)
                card.facts["degeneracy"] = verdicts.degeneracy_diagnosis(prediction, recovery)
        else:
            card.skip("degeneracy_gap", "no pair of metrics is configured")
        score = card.metrics.get(self.class_metric)
        if score is None:
            why = card.not_computed.get(self.class_metric, "there is no such metric")
            card.facts["class"] = f"none: {self.class_metric} was not computed ({why})"
            return
        if self.class_rule == "joint":
            self._class_joint(card, score)
            return
        finite = [v for v in baselines.get(self.class_metric, {}).values() if math.isfinite(v)]
        trivial = max(finite) if finite else None
        bounds = {"converged_above": self.converged_above, "failed_below": self.failed_below}
        card.facts["class"] = verdicts.classify(
            score, **bounds, trivial=trivial, trivial_margin=self.trivial_margin
        )
        card.facts["class_document"] = verdicts.classify(
            score, **bounds, trivial=None, trivial_margin=0.0
        )
        rule = (
            f"converged above {self.converged_above:g}, failed below {self.failed_below:g} of "
            f"{self.class_metric}"
        )
        if trivial is not None:
            rule += (
                f"; converged also asks for {self.trivial_margin:g} above the trivial "
                f"{trivial:.3g}, which the document's class does not"
            )
        card.facts["class_rule"] = rule

    def _class_joint(self, card: Scorecard, score: float) -> None:
        bounds = {"converged_above": self.converged_above, "failed_below": self.failed_below}
        each = [v for name, v in card.metrics.items() if name.startswith("MLP_node_slope_ratio_")]
        mean = [card.metrics["avg_slope_ratio"]] if "avg_slope_ratio" in card.metrics else []
        accuracy = card.metrics.get("embedding_cluster_acc")
        card.facts["class"] = verdicts.classify_joint(score, each, accuracy, **bounds)
        whole = card.metrics.get("rate_constants_R2", score)
        card.facts["class_document"] = verdicts.classify_joint(whole, mean, accuracy, **bounds)
        card.facts["class_rule"] = (
            f"converged: {self.class_metric} (the document: rate_constants_R2) above "
            f"{self.converged_above:g}, the slope ratio of every type in [0.5, 2] (the document: "
            "their mean) and embedding_cluster_acc 1; "
            f"partial-k: the first alone; failed: below {self.failed_below:g}, or a slope ratio "
            "below 0.1; else partial-homeo"
        )

    @staticmethod
    def _add(card: Scorecard, name: str, value: float, why_not: str) -> None:
        if math.isfinite(value):
            card.add(name, value)
        else:
            card.skip(name, why_not)


def _rate_unit(data: MetabolismData) -> str:
    return f"{data.concentration_unit}/{data.time_unit}"


def _order(truth: Truth) -> Tensor | None:
    return truth.parameters.get("order_sub") if truth.facts["rate_law"] == "mass_action" else None


__all__ = ["MetabolismEvaluator"]
