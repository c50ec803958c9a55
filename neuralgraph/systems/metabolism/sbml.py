"""Networks of real models from SBML files, with drawn mass action or their own kinetics."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, DataError, MissingExtraError, SolverError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import torch_generator
from neuralgraph.numerics.differentiate import differentiate
from neuralgraph.systems.metabolism.conditions import (
    Circadian,
    Derivative,
    ExternalInput,
    Homeostasis,
    Noise,
    above,
    at_least,
    one_of,
    whole,
)
from neuralgraph.systems.metabolism.kinetics import MassAction, activity_rank
from neuralgraph.systems.metabolism.network import (
    ReactionNetwork,
    integer_columns,
    is_mass_balanced,
    network_from_edges,
    with_warnings,
)
from neuralgraph.systems.metabolism.prior import RevealsPrior
from neuralgraph.systems.metabolism.simulator import Built, NetworkSimulator, depletion_margin

EXCHANGES = ("bidirectional", "declared")
REVERSE = "_reverse"


@dataclass(frozen=True)
class SBMLReaction:
    """One reaction as written in the file, boundary species left out.

    Args:
        name: Identifier, without the ``R_`` prefix of BiGG.
        reactants: Coefficient by metabolite index.
        products: Coefficient by metabolite index.
        reversible: As declared.
        law: Kinetic law as text, empty where there is none.
        arguments: Metabolites that occur in the law, also through assignment rules.
    """

    name: str
    reactants: dict[int, float]
    products: dict[int, float]
    reversible: bool
    law: str
    arguments: tuple[int, ...]

    @property
    def is_exchange(self) -> bool:
        """Whether it moves one metabolite across the boundary."""
        return len(self.reactants) + len(self.products) == 1


@dataclass(frozen=True)
class SBMLModel:
    """What is read from an SBML file."""

    name: str
    path: Path
    species_ids: tuple[str, ...]
    metabolite_names: tuple[str, ...]
    reactions: tuple[SBMLReaction, ...]
    time_dependent: tuple[str, ...]
    rules: dict[str, str]
    time_unit: str
    warnings: tuple[str, ...]


def read_sbml(path: Path | str) -> SBMLModel:
    """Read ``.xml`` or ``.xml.gz``.

    Species that are constant, on the boundary, or set by an assignment rule are no metabolites:
    they are left out and named in the warnings.

    Raises:
        MissingExtraError: python-libsbml is not installed.
        DataError: a file that is no SBML, or has no species or no reactions.
    """
    try:
        import libsbml
    except ImportError as error:
        raise MissingExtraError("python-libsbml", "sbml", "Reading SBML") from error
    path = Path(path)
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise DataError(f"{path} is a broken gzip file: fetch it again") from error
    document = libsbml.readSBMLFromString(raw.decode("utf-8", errors="replace"))
    model = document.getModel()
    if model is None:
        reason = document.getError(0).getMessage().strip() if document.getNumErrors() else "empty"
        raise DataError(f"{path} cannot be read as SBML: {reason.splitlines()[0]}")

    rules = {r.getVariable(): r for r in model.getListOfRules() if r.isAssignment()}
    driven = {r.getVariable() for r in model.getListOfRules() if r.isRate()}
    kept, left_out = [], []
    for species in model.getListOfSpecies():
        fixed = species.getBoundaryCondition() or species.getConstant()
        (left_out if fixed or species.getId() in rules else kept).append(species.getId())
    warnings = []
    if left_out:
        warnings.append(
            f"{len(left_out)} species that are constant, on the boundary or set by a rule are not "
            f"metabolites here: {', '.join(left_out[:8])}{' …' if len(left_out) > 8 else ''}"
        )
    if driven & set(kept):
        warnings.append(
            "rate rules change these species beside the reactions, so that dx/dt is not S v for "
            f"them: {', '.join(sorted(driven & set(kept)))}"
        )
    if model.getNumEvents():
        warnings.append(f"the model has {model.getNumEvents()} events, which break trajectories")
    index = {name: i for i, name in enumerate(kept)}
    if not model.getNumReactions():
        raise DataError(
            f"{path} holds no reactions ({len(index)} species): a reaction network is needed, "
            "check that this is the right model"
        )
    if not index:
        raise DataError(f"{path} holds no species that may change")

    def names_in(node: Any, seen: frozenset[str]) -> tuple[set[str], bool]:
        """Names below a node, rules opened, and whether the time occurs."""
        if node is None:
            return set(), False
        if node.getType() == libsbml.AST_NAME_TIME:
            return set(), True
        found, timed = set(), False
        if node.isName():
            name = node.getName()
            found.add(name)
            if name in rules and name not in seen:
                more, timed = names_in(rules[name].getMath(), seen | {name})
                found |= more
        for i in range(node.getNumChildren()):
            more, late = names_in(node.getChild(i), seen)
            found |= more
            timed |= late
        return found, timed

    reactions = []
    for r in model.getListOfReactions():
        sides: list[dict[int, float]] = []
        for references in (r.getListOfReactants(), r.getListOfProducts()):
            side: dict[int, float] = {}
            for reference in references:
                at = index.get(reference.getSpecies())
                if at is not None:
                    size = reference.getStoichiometry()
                    size = 1.0 if size != size else float(size)
                    side[at] = side.get(at, 0.0) + size
            sides.append(side)
        law, arguments = "", set()
        if r.isSetKineticLaw():
            math = r.getKineticLaw().getMath()
            law = libsbml.formulaToL3String(math) if math is not None else ""
            arguments = {index[n] for n in names_in(math, frozenset())[0] if n in index}
        reactions.append(
            SBMLReaction(
                _bare(r.getId(), "R_"),
                sides[0],
                sides[1],
                bool(r.getReversible()),
                law,
                tuple(sorted(arguments)),
            )
        )
    timed = [v for v, rule in rules.items() if names_in(rule.getMath(), frozenset({v}))[1]]
    if timed:
        warnings.append(
            "these quantities are explicit functions of time, which no rate law of the "
            f"concentrations alone can express: {', '.join(timed)}"
        )
    declared = model.getUnitDefinition("time")
    unit = "s"
    if declared is not None and declared.getNumUnits():
        seconds = declared.getUnit(0).getMultiplier()
        unit = {60: "min", 3600: "h", 1: "s"}.get(round(seconds), f"{seconds:g} s")
    return SBMLModel(
        name=model.getId() or path.name.split(".")[0],
        path=path,
        species_ids=tuple(kept),
        metabolite_names=tuple(_bare(n, "M_") for n in kept),
        reactions=tuple(reactions),
        time_dependent=tuple(timed),
        rules={v: libsbml.formulaToL3String(rule.getMath()) for v, rule in rules.items()},
        time_unit=unit,
        warnings=tuple(warnings),
    )


def _bare(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)


def directed_network(model: SBMLModel, *, exchange: str) -> tuple[ReactionNetwork, list[str]]:
    """Network of one-way reactions: reversible ones become ``X`` and ``X_reverse``.

    Args:
        model: What :func:`read_sbml` returns.
        exchange: ``bidirectional`` gives every exchange an import (no substrate, so a constant
            flux under mass action) and an export (first order); ``declared`` follows the file.
    Returns:
        The network, and the names of the reactions of the file that were split.
    """
    one_of("exchange", exchange, EXCHANGES)
    names: list[str] = []
    sides: list[tuple[dict[int, float], dict[int, float]]] = []
    split = []
    for r in model.reactions:
        names.append(r.name)
        sides.append((r.reactants, r.products))
        if r.reversible or (r.is_exchange and exchange == "bidirectional"):
            split.append(r.name)
            names.append(r.name + REVERSE)
            sides.append((r.products, r.reactants))
    network = network_from_edges(
        _edges((sub.items() for sub, _ in sides)),
        _edges((_net(sub, prod).items() for sub, prod in sides)),
        model.metabolite_names,
        names,
        model.warnings,
    )
    return with_warnings(network), split


def _net(sub: dict[int, float], prod: dict[int, float]) -> dict[int, float]:
    total = {m: prod.get(m, 0.0) - sub.get(m, 0.0) for m in sorted({*sub, *prod})}
    return {m: s for m, s in total.items() if s != 0}


def _edges(columns: Iterable[Iterable[tuple[int, float]]]) -> tuple[Tensor, Tensor, Tensor]:
    flat = [(m, j, s) for j, column in enumerate(columns) for m, s in column]
    met, rxn, size = zip(*flat, strict=True) if flat else ((), (), ())
    return (
        torch.tensor(met, dtype=torch.long),
        torch.tensor(rxn, dtype=torch.long),
        torch.tensor(size, dtype=torch.float64),
    )


class MetabolismSBML(NetworkSimulator):
    r"""The stoichiometric matrix of a real model, with drawn mass-action kinetics.

    Reversible reactions are split into ``X`` and ``X_reverse``; exchanges are fed by a constant
    import and drained by a first-order export. Each reaction draws
    $\log_{10} f_j$ uniform in [``log_k_min``, ``log_k_max``] and has
    $k_j = f_j / (\bar c^{\,o_j} \max_i(|S_{ij}| w_i))$, where $\bar c$ is the geometric mean of the
    initial concentrations and $o_j$ the total order, so that $f_j$ is the largest change the
    reaction makes at that state. With ``balance_hubs`` $w_i$ is the number of reactions
    that change metabolite i over its mean, so that no metabolite turns over much faster than
    another: water, protons and ATP take part in up to a thousand reactions, and would be used
    up in seconds otherwise; without, $w_i = 1$. The biomass reaction (coefficients up to 60) is
    scaled like every other and has kinetic order 1 in each of its substrates. Columns with
    non-integer coefficients are flagged (``is_integer_column``), to be left out of integer
    scores.

    Args:
        model: SBML file, a path or a name in the data folders, such as ``bigg/textbook.xml.gz``.
        exchange: ``bidirectional`` or ``declared``; see :func:`directed_network`.
        order_rule: ``one`` (kinetic order 1 per substrate) or ``coefficient`` (order |s|).
        balance_hubs: Whether reactions of much-used metabolites are slowed, see above.
        **design: Everything :class:`NetworkSimulator` takes.
    """

    def __init__(
        self,
        *,
        model: str,
        exchange: str,
        order_rule: str,
        balance_hubs: bool,
        n_run: int,
        n_test_run: int,
        n_frame: int,
        dt_min: float,
        integrator: str,
        n_substep: int,
        initial_low_mM: float,
        initial_high_mM: float,
        log_k_min: float,
        log_k_max: float,
        flux_limit: bool,
        depletion: str,
        homeostasis: Homeostasis,
        circadian: Circadian,
        external_input: ExternalInput,
        noise: Noise,
        derivative: Derivative,
    ) -> None:
        super().__init__(
            n_run=n_run,
            n_test_run=n_test_run,
            n_frame=n_frame,
            dt_min=dt_min,
            integrator=integrator,
            n_substep=n_substep,
            initial_low_mM=initial_low_mM,
            initial_high_mM=initial_high_mM,
            log_k_min=log_k_min,
            log_k_max=log_k_max,
            flux_limit=flux_limit,
            depletion=depletion,
            homeostasis=homeostasis,
            circadian=circadian,
            external_input=external_input,
            noise=noise,
            derivative=derivative,
        )
        one_of("exchange", exchange, EXCHANGES)
        one_of("order_rule", order_rule, ("one", "coefficient"))
        self.model, self.exchange, self.order_rule = model, exchange, order_rule
        self.balance_hubs = bool(balance_hubs)

    def _build(self, seed: int) -> Built:
        model = read_sbml(find_data(self.model))
        network, split = directed_network(model, exchange=self.exchange)
        moved = network.sto_all.abs()
        if self.balance_hubs:
            degree = torch.bincount(network.met_all, minlength=network.n_met).double()
            moved = moved * (degree / degree.mean())[network.met_all]
        largest = torch.full((network.n_rxn,), 1e-3, dtype=torch.float64)
        largest.scatter_reduce_(0, network.rxn_all, moved, "amax")
        order = torch.ones_like(network.sto_sub) if self.order_rule == "one" else network.sto_sub
        total = torch.zeros_like(largest).index_add_(0, network.rxn_sub, order)
        typical = _geometric_mean(self.initial_low_mM, self.initial_high_mM)
        log_k = self._draw_log_k(seed, network.n_rxn) - largest.log10() - total * typical
        law = MassAction(network, log_k.numpy(), order.numpy())
        facts = {
            "rate_law": "mass_action",
            "order_rule": self.order_rule,
            "model": f"{model.name} ({model.path.name})",
            "split": (
                f"{len(model.metabolite_names)} metabolites and {len(model.reactions)} reactions "
                f"in the file; {len(split)} reactions split into X and X{REVERSE}, which makes "
                f"{network.n_rxn}"
            ),
            "n_rxn_in_file": len(model.reactions),
        }
        return Built(network, law, {"log_k": log_k, "order_sub": order.clone()}, facts)


def _geometric_mean(low: float, high: float) -> float:
    """log10 of the geometric mean of a uniform variable on [low, high]."""
    if high == low:
        return math.log10(high) if high > 0 else 0.0
    part = (0.0 if low == 0 else low * (math.log(low) - 1), high * (math.log(high) - 1))
    return (part[1] - part[0]) / (high - low) / math.log(10)


class MetabolismSBMLKinetic(RevealsPrior):
    r"""A kinetic SBML model with its own rate laws, simulated by libroadrunner (CVODE).

    Runs start from the model's initial concentrations, each multiplied by a factor drawn
    log-uniform in [1/``initial_fold``, ``initial_fold``]. States, exact rates of change and true
    fluxes are stored at every frame. With ``split_reversible`` every reversible reaction becomes
    ``X`` and ``X_reverse``, whose fluxes are the positive and the negative part of the net flux
    and whose substrates are the two sides of the equation. Without, substrate edges are the
    reactants and every metabolite that occurs in the kinetic law (with |s| = 1), since a
    reversible law also depends on products.
    Quantities that are explicit functions of time are recorded as the known input
    ``time_dependent``. Times are in the unit of the model.

    Args:
        model: SBML file, a path or a name in the data folders.
        n_run: Initial conditions to learn from.
        n_test_run: Further ones, held out.
        n_frame: Frames of each run, the initial state included.
        dt: Frame interval, in the time unit of the model.
        initial_fold: Largest fold change of an initial concentration, >= 1.
        split_reversible: Whether reversible reactions become a forward and a backward one.
        relative_tolerance: Of CVODE.
        noise: Measurement noise; process noise is not available here.
        derivative: Estimation of derivatives, used with measurement noise only.
    """

    def __init__(
        self,
        *,
        model: str,
        n_run: int,
        n_test_run: int,
        n_frame: int,
        dt: float,
        initial_fold: float,
        split_reversible: bool,
        relative_tolerance: float,
        noise: Noise,
        derivative: Derivative,
    ) -> None:
        whole("n_run", n_run, 1)
        whole("n_test_run", n_test_run, 0)
        whole("n_frame", n_frame, 2)
        above("dt", dt, 0)
        at_least("initial_fold", initial_fold, 1)
        above("relative_tolerance", relative_tolerance, 0)
        if noise.process_mM > 0:
            raise ConfigError(
                "simulator.noise.process_mM must be 0 for a kinetic SBML model (its solver takes "
                "adaptive steps): use measurement noise"
            )
        if noise.derivative_relative > 0:
            raise ConfigError(
                "simulator.noise.derivative_relative must be 0 for a kinetic SBML model: use "
                "measurement noise, or simulator=metabolism_sbml"
            )
        self.model, self.n_run, self.n_test_run = model, int(n_run), int(n_test_run)
        self.n_frame, self.dt, self.initial_fold = int(n_frame), float(dt), float(initial_fold)
        self.split_reversible = bool(split_reversible)
        self.relative_tolerance = float(relative_tolerance)
        self.noise, self.derivative = noise, derivative

    def simulate(self, seed: int) -> tuple[Recording, Truth]:
        """Run the experiment; same seed, same bytes.

        Raises:
            DataError: a model without kinetic laws.
            SolverError: CVODE fails; names the time, the fastest reaction and metabolite.
        """
        model = read_sbml(find_data(self.model))
        bare = [r.name for r in model.reactions if not r.law]
        if bare:
            raise DataError(
                f"{model.path.name} has no kinetic law for {len(bare)} of {len(model.reactions)} "
                f"reactions ({', '.join(bare[:5])} …): use simulator=metabolism_sbml, which draws "
                "mass-action kinetics"
            )
        runner = _load_runner(model)
        runner.integrator.relative_tolerance = self.relative_tolerance
        runner.integrator.absolute_tolerance = 1e-12
        species = list(model.species_ids)
        matrix = runner.getFullStoichiometryMatrix()
        ids = list(matrix.colnames)
        volume = np.array([runner[_volume_of(runner, s)] for s in species])
        rows = [list(matrix.rownames).index(s) for s in species]
        S = np.asarray(matrix)[rows] / volume[:, None]

        network, sign = self._network(model, S)
        start = np.array([runner[f"init([{s}])"] for s in species])
        factor = torch.cat(
            [
                torch.rand(
                    n, len(species), generator=torch_generator(seed, name), dtype=torch.float64
                )
                for n, name in ((self.n_run, "initial_state"), (self.n_test_run, "test_state"))
            ]
        ).numpy()
        start = start * self.initial_fold ** (2 * factor - 1)
        columns = [f"[{s}]" for s in species] + [f"{s}'" for s in species]
        runner.timeCourseSelections = ["time", *columns, *ids, *model.time_dependent]
        blocks = [self._run(runner, model, species, run, c0) for run, c0 in enumerate(start)]
        table = torch.from_numpy(np.stack(blocks))
        n_met, n_rxn = len(species), len(ids)
        state = table[:, :, 1 : 1 + n_met].clone()
        # roadrunner gives X' in amounts per time
        dx_dt = table[:, :, 1 + n_met : 1 + 2 * n_met] / torch.from_numpy(volume)
        flux = table[:, :, 1 + 2 * n_met : 1 + 2 * n_met + n_rxn].clone()
        driven = table[:, :, 1 + 2 * n_met + n_rxn :].clone()

        warnings = list(network.warnings)
        low = float(state.min())
        if low < 0:
            if low < -1e-6:
                raise SolverError(
                    f"{model.name}: a concentration turns negative ({low:.3g}): lower "
                    "simulator.initial_fold or relative_tolerance"
                )
            state.clamp_(min=0)
        residual = float((dx_dt - flux @ torch.from_numpy(S).T).abs().max())
        if residual > 1e-6 * float(dx_dt.abs().max()):
            warnings.append(
                f"dx/dt differs from S v by up to {residual:.3g}: rules or events act beside the "
                "reactions"
            )
        negative = (flux < 0).any(dim=0).any(dim=0)
        reversed_names = [r.name for r, n in zip(model.reactions, negative, strict=True) if n]
        if self.split_reversible:
            n_rxn = network.n_rxn
            reverse = [j for j, r in enumerate(model.reactions) if r.reversible]
            backward = (-flux[:, :, reverse]).clamp(min=0)
            flux[:, :, reverse] = flux[:, :, reverse].clamp(min=0)
            flux = torch.cat([flux, backward], dim=2)
        elif reversed_names:
            warnings.append(
                f"{len(reversed_names)} reversible reactions run backwards in some frames "
                f"({', '.join(reversed_names[:8])}"
                f"{' …' if len(reversed_names) > 8 else ''}): a rate law that is never negative "
                "cannot express them"
            )
        time = torch.arange(self.n_frame, dtype=torch.float64) * self.dt
        n_all = self.n_run + self.n_test_run
        parameters: dict[str, Tensor] = {
            "met_sub": network.met_sub,
            "rxn_sub": network.rxn_sub,
            "sto_sub": network.sto_sub,
            "met_all": network.met_all,
            "rxn_all": network.rxn_all,
            "sto_all": network.sto_all,
            "sign_all": sign,
            "is_integer_column": integer_columns(network),
            "flux": flux,
        }
        if model.time_dependent:
            drive, at = self._drives(model)
            parameters |= {"drive_sub": drive, "drive_rxn": at}
        measured, derivative, source = state, dx_dt, "exact"
        if self.noise.is_measured:
            parameters["clean_state"], parameters["clean_dx_dt"] = state, dx_dt
            generator = torch_generator(seed, "measurement_noise")
            draws = [
                torch.randn(state.shape, generator=generator, dtype=torch.float64) for _ in range(2)
            ]
            measured = state * (1 + self.noise.measurement_relative * draws[0])
            measured = (measured + self.noise.measurement_mM * draws[1]).clamp(min=0)
            _, derivative = differentiate(
                time,
                measured,
                method=self.derivative.method,
                window=self.derivative.window,
                degree=self.derivative.degree,
            )
            source = "estimated"
        unit = model.time_unit
        balanced = is_mass_balanced(network)
        provenance = {
            "simulator": type(self).__name__,
            "seed": int(seed),
            "model": f"{model.name} ({model.path.name})",
            "n_met": n_met,
            "n_rxn": n_rxn,
            "reaction_names": list(network.reaction_names),
            "design": (
                f"{self.n_run} initial conditions, each concentration within "
                f"{self.initial_fold:g}-fold of the model's own, {self.n_frame} frames each at dt "
                f"{self.dt:g} {unit} ({self.n_run * self.n_frame} frames), {self.n_test_run} "
                "held-out initial conditions over the same horizon"
            ),
            "n_initial_condition": self.n_run,
            "n_test_initial_condition": self.n_test_run,
            "initial_fold": self.initial_fold,
            "n_frame": self.n_frame,
            "dt": self.dt,
            "integrator": "cvode (libroadrunner)",
            "lowest_concentration_mM": float(measured.min()),
            "depletion_margin": depletion_margin(
                measured, time, network, unit, is_noisy=self.noise.is_measured
            ),
            "dx_dt_source": source,
            "dx_dt_minus_S_v_max": residual,
            "activity_rank": activity_rank(measured[: self.n_run]),
            "mass_balanced": balanced,
            "flux_limit": False,
            "external_input_mode": "none",
            "time_dependent_names": list(model.time_dependent),
            "n_non_integer_column": int((~parameters["is_integer_column"]).sum()),
            "warnings": warnings,
        }
        facts = {
            "rate_law": "sbml",
            "flux_limit": False,
            "dt": self.dt,
            "metabolite_names": list(network.metabolite_names),
            "reaction_names": list(network.reaction_names),
            "kinetic_laws": {r.name: r.law for r in model.reactions},
            "assignment_rules": dict(model.rules),
            "reversed_reactions": reversed_names,
            "mass_balanced": balanced,
            "external_input_mode": "none",
            "warnings": warnings,
        }
        recording = Recording(
            time=time.expand(n_all, self.n_frame).clone(),
            state=measured,
            names=network.metabolite_names,
            dx_dt=derivative,
            dx_dt_source=source,
            inputs={"time_dependent": driven} if model.time_dependent else {},
            units={"time": unit, "state": "mM", "dx_dt": f"mM/{unit}", "flux": f"mM/{unit}"},
            provenance=provenance,
            is_test=torch.arange(n_all) >= self.n_run if self.n_test_run else None,
        )
        return recording, Truth(parameters, facts)

    def _network(self, model: SBMLModel, S: np.ndarray) -> tuple[ReactionNetwork, Tensor]:
        """Network of the model, backward reactions last, and the sign of each net edge."""
        forward = [(r.name, r.reactants, r.products, S[:, j], r.arguments)
                   for j, r in enumerate(model.reactions)]  # fmt: skip
        if self.split_reversible:
            columns = [(name, sub, prod, s, ()) for name, sub, prod, s, _ in forward]
            columns += [
                (name + REVERSE, prod, sub, -s, ())
                for (name, sub, prod, s, _), r in zip(forward, model.reactions, strict=True)
                if r.reversible
            ]
        else:
            columns = forward
        substrates, nets, signs = [], [], {}
        for j, (_, reactants, products, column, arguments) in enumerate(columns):
            substrates.append({**{m: 1.0 for m in arguments}, **reactants}.items())
            nets.append([(int(m), float(column[m])) for m in np.flatnonzero(column)])
            for m, _ in nets[-1]:
                both = m in reactants and m in products
                signs[m, j] = 0.0 if both else (1.0 if m in products else -1.0)
        network = network_from_edges(
            _edges(substrates),
            _edges(nets),
            model.metabolite_names,
            [name for name, *_ in columns],
            model.warnings,
        )
        edges = zip(network.met_all.tolist(), network.rxn_all.tolist(), strict=True)
        sign = torch.tensor([signs[edge] for edge in edges], dtype=torch.float64)
        return with_warnings(network), sign

    def _drives(self, model: SBMLModel) -> tuple[Tensor, Tensor]:
        """Which function of time stands in which law: two index vectors."""
        pairs = [
            (d, j)
            for j, r in enumerate(model.reactions)
            for d, name in enumerate(model.time_dependent)
            if re.search(rf"\b{re.escape(name)}\b", r.law)
        ]
        if self.split_reversible:
            reverse = [j for j, r in enumerate(model.reactions) if r.reversible]
            place = {j: len(model.reactions) + n for n, j in enumerate(reverse)}
            pairs += [(d, place[j]) for d, j in pairs if j in place]
        drive, rxn = zip(*pairs, strict=True) if pairs else ((), ())
        return torch.tensor(drive, dtype=torch.long), torch.tensor(rxn, dtype=torch.long)

    def _run(
        self, runner: Any, model: SBMLModel, species: list[str], run: int, initial: np.ndarray
    ) -> np.ndarray:
        runner.resetAll()
        for name, value in zip(species, initial, strict=True):
            runner[f"[{name}]"] = float(value)
        try:
            table = np.array(runner.simulate(0, (self.n_frame - 1) * self.dt, self.n_frame))
        except RuntimeError as error:
            c = np.array([runner[f"[{s}]"] for s in species])
            speed = np.abs([runner[f"{s}'"] for s in species]) / (np.abs(c) + 1e-12)
            rate = np.nan_to_num(np.abs(runner.model.getReactionRates()))
            raise SolverError(
                f"{model.name}: the solver failed in run {run} at t = "
                f"{float(runner.getCurrentTime()):g} {model.time_unit}; fastest metabolite "
                f"{model.metabolite_names[int(np.argmax(np.nan_to_num(speed)))]}, fastest reaction "
                f"{model.reactions[int(np.argmax(rate))].name} ({_first_line(error)}). Lower "
                "simulator.initial_fold, or raise simulator.relative_tolerance"
            ) from error
        if not np.isfinite(table).all():
            raise SolverError(
                f"{model.name}: values that are not finite in run {run}: lower "
                "simulator.initial_fold"
            )
        return table


def _volume_of(runner: Any, species: str) -> str:
    where = (
        runner.getCompartmentForSpecies(species)
        if hasattr(runner, "getCompartmentForSpecies")
        else None
    )
    if where:
        return where
    at = list(runner.model.getFloatingSpeciesIds()).index(species)
    return list(runner.model.getCompartmentIds())[
        int(runner.model.getCompartmentIndexForFloatingSpecies(at))
    ]


def _load_runner(model: SBMLModel) -> Any:
    try:
        import roadrunner
    except ImportError as error:
        raise MissingExtraError("libroadrunner", "sbml", "Simulating a kinetic SBML model") from (
            error
        )
    roadrunner.Logger.setLevel(roadrunner.Logger.LOG_FATAL)
    raw = model.path.read_bytes()
    text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    try:
        return roadrunner.RoadRunner(text.decode("utf-8"))
    except RuntimeError as error:
        raise DataError(
            f"libroadrunner cannot load {model.path.name}: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
