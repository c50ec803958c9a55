"""Recovery of a metabolic network beside peers, on the same data.

    python scripts/bench_recovery.py                       # everything, hours
    python scripts/bench_recovery.py --sizes 10/25 --noise 0 --seeds 1
    python scripts/bench_recovery.py --out experiments/bench_recovery/results.json

Data: a random mass-balanced network under mass action (one or two substrates, kinetic order 1 in
each), 96 runs of 30 frames for training and 8 held out. Noise is measurement noise relative to each
concentration; with it derivatives are estimated once (local polynomial) and everybody gets the
same ones. Two tasks on the same data: rate constants with S given (``k``), and S with support and
roles given (``s``).

Each contestant runs alone in a process of its own with the same bounds on CPU time and memory; its
time is CPU time of the fit with all of its tuning, its memory the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml
from torch import Tensor

from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import torch_generator
from neuralgraph.systems.metabolism import metrics, structure
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.estimate import design_flux, substrate_amplitude
from neuralgraph.systems.metabolism.kinetics import MassAction, network_of_truth
from neuralgraph.systems.metabolism.network import ReactionNetwork, random_network
from neuralgraph.systems.metabolism.simulator import Built, NetworkSimulator

CONF = Path(__file__).resolve().parents[1] / "conf"
SIZES = {"10/25": (10, 25), "30/75": (30, 75), "100/256": (100, 256)}
PRIORS = {
    "k": {"support": True, "roles": True, "stoichiometry": True, "rate_constants": False},
    "s": {"support": True, "roles": True, "stoichiometry": False, "rate_constants": False},
}
OURS = {
    "k": ("+experiment=metabolism_textbook_k",),
    "s": ("+experiment=metabolism_textbook", "evaluation.max_coefficient=2",
          "loop.max_coefficient=2"),
}  # fmt: skip
DOCUMENT = {
    "k": ("+experiment=metabolism_joint_document", "model.homeostasis=false",
          "loss.coeff_MLP_node_L1=0"),
    "s": ("+experiment=metabolism_s_adam",),
}  # fmt: skip
FLOOR = 1e-4
"""Below the smallest rate constant of the data (10^-2.5): what least squares sets to 0 or less."""
CONTESTANTS = ("oracle", "ours", "document", "pysindy", "pysindy_graph")
GIVEN = {
    "oracle": "S (k) or support (s), every rate law; for s also the rate constants",
    "ours": "S (k) or support and roles (s); the exponent of the rate law is found",
    "document": "S (k) or support and roles (s); the rate law is a network",
    "pysindy": "that rates are polynomials of degree 2; for k, S to read k off the coefficients",
    "pysindy_graph": "the substrates of every reaction as its library; for k, S as above",
}
THRESHOLDS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
RIDGES = (1e-8, 1e-3, 0.05)
K_METRICS = (
    "median_abs_dlog10_k_identifiable",
    "n_outliers_identifiable",
    "rate_constants_R2_identifiable",
)
S_METRICS = ("exact_edges_identifiable", "exact_columns_identifiable")


# -- data ------------------------------------------------------------------------------------------


class MassActionNetwork(NetworkSimulator):
    """Random mass-balanced reactions of one or two substrates, kinetic order 1 in each."""

    size: tuple[int, int]

    def _build(self, seed: int) -> Built:
        network = random_network(
            *self.size,
            n_substrate_max=2,
            n_product_max=2,
            coefficient_max=2,
            mass_balanced=True,
            generator=torch_generator(seed, "network"),
        )
        log_k = self._draw_log_k(seed, network.n_rxn)
        order = torch.ones_like(network.sto_sub)
        law = MassAction(network, log_k.numpy(), order.numpy())
        facts = {"rate_law": "mass_action", "order_rule": "one"}
        return Built(network, law, {"log_k": log_k, "order_sub": order}, facts)


def simulator(size: tuple[int, int], noise: float) -> MassActionNetwork:
    """The simulator of one cell of the table."""
    from hydra.utils import instantiate

    node = yaml.safe_load((CONF / "simulator/metabolism_oscillatory.yaml").read_text())
    for key in ("_target_", "seed", "n_met", "n_rxn", "cycle_length", "avoid_shared_pairs"):
        node.pop(key)
    node.update(n_run=96, n_test_run=8, n_frame=30, dt_min=0.1, n_substep=2)
    node.update(log_k_min=-2.5, log_k_max=-1.5)
    node["derivative"].update(window=11, degree=2)
    node["homeostasis"].update(lambda_per_min=[0.0], baseline_mM=[5.0])
    node["noise"]["measurement_relative"] = noise
    made = MassActionNetwork(**instantiate(node, _convert_="all"))
    made.size = size
    return made


def write_data(folder: Path, size: tuple[int, int], noise: float, seed: int) -> None:
    """One recording with its truth, and what each of the two tasks is told."""
    from neuralgraph import pipeline

    made: Any = simulator(size, noise)
    for task, prior in PRIORS.items():
        config = {"simulator": {"seed": seed}, "seed": seed, "prior": prior}
        pipeline.simulate(made, config, folder / task / "data")


def read_data(folder: Path) -> tuple[MetabolismData, Truth, ReactionNetwork]:
    """Training data as every contestant sees them, and the truth for scoring."""
    from neuralgraph.pipeline import SavedSimulation

    saved = SavedSimulation(path=str(folder))
    recording, truth = saved.simulate(0)
    assert truth is not None and isinstance(recording, Recording)
    given = saved.reveal(recording, truth, **PRIORS[folder.name])
    data = MetabolismData(recording, given, validation_fraction=0.0)
    return data, truth, network_of_truth(truth)


# -- scores, the same for all ----------------------------------------------------------------------


def score(
    task: str,
    data: MetabolismData,
    truth: Truth,
    network: ReactionNetwork,
    *,
    log_k: Tensor | None = None,
    edges: tuple[Tensor, Tensor, Tensor] | None = None,
    is_support_given: bool = True,
) -> dict[str, float]:
    """Metrics of a result by the definitions of the package, the same for every contestant.

    ``edges`` are metabolite, reaction and estimated coefficient. With kinetic orders of 1 a column
    (2, -2) and a column (1, -1) with twice the rate constant are the same: a common factor counts
    as right for everybody.
    """
    found = structure.identifiability(
        network,
        design_flux(data, truth, network),
        log_k=truth.parameters["log_k"],
        is_stoichiometry_given=task == "k",
        rtol=1e-8,
        order_sub=truth.parameters["order_sub"],
    )
    if task == "k":
        assert log_k is not None and found.k is not None
        true = truth.parameters["log_k"]
        log_k = log_k.clamp_min(math.log10(FLOOR))
        scores = metrics.rate_constant_scores(
            log_k, true, is_identifiable=found.k, group=found.group
        )
        off = (log_k - true).abs()[found.k]
        scores = {**scores, "median_abs_dlog10_k_identifiable": float(off.median())}
        wanted = K_METRICS
    else:
        assert edges is not None
        gauged = metrics.fix_gauge(
            *edges,
            n_met=network.n_met,
            n_rxn=network.n_rxn,
            substrate=None,
            max_coefficient=2,
            is_support_given=is_support_given,
        )
        gauged = _best_factor(gauged, network)
        scores = metrics.stoichiometry_scores(gauged, network, is_identifiable=found.column)
        wanted = (*S_METRICS, "support_f1")
    return {name: scores[name] for name in wanted}


def _best_factor(
    gauged: metrics.GaugedStoichiometry, network: ReactionNetwork
) -> metrics.GaugedStoichiometry:
    """A column of ones counts as one of twos where the truth has twos alone."""
    from dataclasses import replace

    truth = network.matrix()
    twice = (truth.abs().amax(0) == 2) & ((truth == 0) | (truth.abs() == 2)).all(0)
    factor = torch.where(twice, 2.0, 1.0)[gauged.rxn]
    small = gauged.integer.abs() <= 1
    factor = torch.where(small, factor, torch.ones_like(factor))
    return replace(gauged, integer=gauged.integer * factor, value=gauged.value * factor)


# -- contestants -----------------------------------------------------------------------------------


def unit_rates(network: ReactionNetwork, concentration: Tensor) -> Tensor:
    """Products of the substrates of each reaction, ``(n_frame, n_rxn)``."""
    law = MassAction(network, np.zeros(network.n_rxn), np.ones(network.met_sub.numel()))
    return torch.from_numpy(law.flux(concentration.numpy()))


def oracle(task: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Plain least squares with the known rate laws."""
    data, truth, network = read_data(folder)
    began = time.process_time()
    c, y = data.train.concentration.double(), data.train.dx_dt.double()
    rate = unit_rates(network, c)
    if task == "k":
        S = network.matrix()
        gram = (S.T @ S) * (rate.T @ rate)
        moment = ((y @ S) * rate).sum(0)
        scale = gram.diagonal().clamp_min(1e-300).rsqrt()
        k = (
            scale
            * torch.linalg.lstsq(
                gram * scale[:, None] * scale, (scale * moment)[:, None], driver="gelsd"
            ).solution[:, 0]
        )
        took = time.process_time() - began
        log_k = k.clamp_min(FLOOR).log10()
        return {"cpu_seconds": took, **score(task, data, truth, network, log_k=log_k)}
    v = rate * 10 ** truth.parameters["log_k"]
    matrix = torch.zeros(network.n_met, network.n_rxn, dtype=torch.float64)
    for i in range(network.n_met):
        columns = network.rxn_all[network.met_all == i]
        if columns.numel():
            found = torch.linalg.lstsq(v[:, columns], y[:, i : i + 1], driver="gelsd").solution
            matrix[i, columns] = found[:, 0]
    took = time.process_time() - began
    # the scale of a column is known to the oracle: no gauge, plain rounding
    met, rxn = network.met_all, network.rxn_all
    value = matrix[met, rxn]
    one = torch.ones(network.n_rxn, dtype=torch.float64)
    whole = value.round()
    gauged = metrics.GaugedStoichiometry(met, rxn, value, whole, one, value, network.n_met)
    flux = design_flux(data, truth, network)
    found = structure.identifiability(
        network, flux, log_k=truth.parameters["log_k"], is_stoichiometry_given=False, rtol=1e-8,
        order_sub=truth.parameters["order_sub"],
    )  # fmt: skip
    scores = metrics.stoichiometry_scores(gauged, network, is_identifiable=found.column)
    return {"cpu_seconds": took, **{name: scores[name] for name in S_METRICS}}


def _session(folder: Path, overrides: Sequence[str], scratch: Path) -> tuple[Any, Any, Any]:
    """Everything of a run as the command line builds it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from neuralgraph import pipeline
    from neuralgraph.cli import plain
    from neuralgraph.config import CONFIG_FOLDER

    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        config = plain(
            compose(
                "train",
                [*overrides, "simulator=saved", f"simulator.path={folder}",
                 "trainer.progress=false", "evaluation.every=0"],
            )
        )  # fmt: skip
    parts = pipeline.compose(config)
    recording, truth, given = pipeline.simulate(parts.simulator, config, scratch / "data")
    data, model = pipeline.cut_and_build(parts, config, recording, given)
    _, session = pipeline.open_session(parts, config, scratch, data, model, None)
    session.callbacks = []
    return parts, session, truth


def _trained(task: str, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    from neuralgraph.training.trainer import train

    with tempfile.TemporaryDirectory() as scratch:
        parts, session, truth = _session(folder, overrides, Path(scratch))
        began = time.process_time()
        train(session, parts.loop)
        took = time.process_time() - began
    assert truth is not None
    result: dict[str, Any] = {"cpu_seconds": took, "n_steps": session.n_steps}
    model, data, network = session.model, session.data, network_of_truth(truth)
    if task == "s":
        edges = (model.met_all, model.rxn_all, model.sto_all.detach())
        return {**result, **score(task, data, truth, network, edges=edges)}
    alpha = substrate_amplitude(model)
    shift = metrics.log_k_shift_mass_action(alpha, data.spec.rxn_sub, data.spec.n_rxn)
    log_k = model.log_k.detach().double() + shift
    return {**result, "alpha": alpha, **score(task, data, truth, network, log_k=log_k)}


def ours(task: str, folder: Path, seconds: float) -> dict[str, Any]:
    """The experiment of the menu that fits the task."""
    return _trained(task, folder, OURS[task])


def document(task: str, folder: Path, seconds: float) -> dict[str, Any]:
    """The documents' loop for as many steps as fit the budget."""
    n_try = 100
    with tempfile.TemporaryDirectory() as scratch:
        overrides = (*DOCUMENT[task], f"budget.max_steps={n_try}")
        parts, session, *_ = _session(folder, overrides, Path(scratch))
        began = time.process_time()
        parts.loop(session)
        each = (time.process_time() - began) / n_try
    n_steps = max(n_try, int(seconds / each) - n_try)
    overrides = (*DOCUMENT[task], f"budget.max_steps={n_steps}")
    return {**_trained(task, folder, overrides), "seconds_per_step": each}


def _library(network: ReactionNetwork | None) -> Any:
    """Polynomials of degree 2, or the substrate products of a graph alone."""
    import pysindy

    if network is None:
        return pysindy.PolynomialLibrary(degree=2)

    class GraphLibrary(pysindy.PolynomialLibrary):
        """Only the monomials that some reaction has for its rate."""

        def __init__(self, monomials: Any = None) -> None:
            super().__init__(degree=2)
            self.monomials = monomials

        # pysindy has it static
        def _combinations(self, *args: Any, **named: Any) -> Iterator[tuple[int, ...]]:  # type: ignore[override]  # see above
            return iter(self.monomials)

    return GraphLibrary(sorted(set(monomials_of(network))))


def monomials_of(network: ReactionNetwork) -> list[tuple[int, ...]]:
    """Substrates of each reaction."""
    found: list[list[int]] = [[] for _ in range(network.n_rxn)]
    for m, r in zip(network.met_sub.tolist(), network.rxn_sub.tolist(), strict=True):
        found[r].append(m)
    return [tuple(sorted(x)) for x in found]


def sindy(task: str, folder: Path, seconds: float, *, with_graph: bool) -> dict[str, Any]:
    """STLSQ of pysindy; threshold and ridge chosen on a fifth of the training runs.

    Under noise its own smoothed differentiation is tried beside the derivatives that all are given.
    """
    import warnings

    import pysindy

    warnings.filterwarnings("ignore")
    data, truth, network = read_data(folder)
    train = data.train
    n_run = int(train.run.max()) + 1
    runs = [train.run == r for r in range(n_run)]
    x = [train.concentration[r].double().numpy() for r in runs]
    t = [train.time[r].double().numpy() for r in runs]
    given = [train.dx_dt[r].double().numpy() for r in runs]
    derivatives = {"given": given}
    if data.dx_dt_source == "estimated":
        smoother = pysindy.SmoothedFiniteDifference()
        own = [
            np.asarray(smoother(xi, ti))  # pyright: ignore[reportArgumentType]
            for xi, ti in zip(x, t, strict=True)
        ]
        derivatives["smoothed finite difference"] = own
    n_fit = n_run - n_run // 5
    began = time.process_time()
    deadline = began + 0.6 * seconds
    best: tuple[float, tuple[str, float, float]] | None = None
    n_tried = 0

    def fitted(name: str, threshold: float, ridge: float, n: int) -> Any:
        optimizer = pysindy.STLSQ(threshold=threshold, alpha=ridge)
        model = pysindy.SINDy(
            optimizer=optimizer, feature_library=_library(network if with_graph else None)
        )
        model.fit(x[:n], t=t[:n], x_dot=derivatives[name][:n])
        return model

    grid = [(d, h, a) for a in RIDGES for h in THRESHOLDS for d in derivatives]
    for choice in grid:
        if n_tried and time.process_time() > deadline:
            break
        model = fitted(*choice, n_fit)
        n_tried += 1
        off = [
            np.asarray(model.predict(xi)) - yi
            for xi, yi in zip(x[n_fit:], given[n_fit:], strict=True)
        ]
        error = float(np.mean(np.square(np.concatenate(off))))
        if math.isfinite(error) and (best is None or error < best[0]):
            best = (error, choice)
    assert best is not None
    model = fitted(*best[1], n_run)
    took = time.process_time() - began
    weight = torch.from_numpy(np.asarray(model.coefficients())).double()
    powers = [
        tuple(np.repeat(np.arange(len(p)), p).tolist()) for p in _powers(model, network, with_graph)
    ]
    place = {p: n for n, p in enumerate(powers)}
    column = [place[m] for m in monomials_of(network)]
    result: dict[str, Any] = {
        "cpu_seconds": took,
        "n_terms_library": weight.shape[1],
        "n_tried": n_tried,
        "n_grid": len(grid),
        "chosen": list(best[1]),
    }
    if task == "k":
        S, k = network.matrix(), torch.zeros(network.n_rxn, dtype=torch.float64)
        for n in set(column):
            group = [j for j in range(network.n_rxn) if column[j] == n]
            solved = torch.linalg.lstsq(S[:, group], weight[:, n : n + 1], driver="gelsd").solution
            k[group] = solved[:, 0]
        log_k = k.clamp_min(FLOOR).log10()
        return {**result, **score(task, data, truth, network, log_k=log_k)}
    met, rxn = torch.ones(network.n_met, network.n_rxn).nonzero(as_tuple=True)
    edges = (met, rxn, weight[:, column][met, rxn])
    return {
        **result,
        **score(task, data, truth, network, edges=edges, is_support_given=False),
    }


def _powers(model: Any, network: ReactionNetwork, with_graph: bool) -> np.ndarray:
    library = model.feature_library
    if not with_graph:
        return library.powers_
    rows = [np.bincount(m, minlength=network.n_met) for m in library.monomials]
    return np.stack(rows)


def run_one(name: str, task: str, folder: Path, seconds: float) -> dict[str, Any]:
    """One contestant, in this process."""
    torch.set_num_threads(1)
    if name.startswith("pysindy"):
        return sindy(task, folder, seconds, with_graph=name.endswith("graph"))
    return {"oracle": oracle, "ours": ours, "document": document}[name](task, folder, seconds)


# -- the table -------------------------------------------------------------------------------------


def contest(
    name: str, task: str, folder: Path, *, seconds: float, limit: float, memory_gb: float
) -> dict[str, Any]:
    """One contestant in a process of its own; says where it was cut off."""

    def bounds() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
        most = int(memory_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

    with tempfile.TemporaryDirectory() as scratch:
        out, log = Path(scratch) / "out.json", Path(scratch) / "log"
        command = [sys.executable, __file__, "--one", name, "--task", task, "--data", str(folder)]
        command += ["--seconds", str(seconds), "--out", str(out)]
        with log.open("w") as stream:
            child = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, preexec_fn=bounds
            )
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        result: dict[str, Any] = {"process_cpu_seconds": cpu, "peak_gb": usage.ru_maxrss / 1e6}
        if out.exists():
            return {**result, **json.loads(out.read_text())}
        last = [line for line in log.read_text().splitlines() if line.strip()][-1:] or [""]
        why = f"cut off after {cpu:.0f} s of CPU" if cpu >= limit - 1 else last[0][:200]
        return {**result, "failed": why}


def show(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown, one table for each task."""
    text = []
    for task, names in (("k", K_METRICS), ("s", S_METRICS)):
        mine = [row for row in rows if row["task"] == task]
        if not mine:
            continue
        header = ["size", "noise", "seed", "contestant", *names, "CPU s", "peak GB", ""]
        text.append(f"\nTask {task}\n")
        text.append("| " + " | ".join(header) + " |")
        text.append("| " + " | ".join(["---"] * 4 + ["---:"] * (len(names) + 2) + ["---"]) + " |")
        for row in mine:
            cells = [row["size"], f"{row['noise']:g}", str(row["seed"]), row["name"]]
            cells += [_number(row.get(name)) for name in names]
            took = row.get("cpu_seconds", row["process_cpu_seconds"])
            cells += [f"{took:.3g}", f"{row['peak_gb']:.2f}", row.get("failed", "")]
            text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.4g}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--noise", nargs="+", type=float, default=[0.0, 0.01, 0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--tasks", nargs="+", default=["k", "s"], choices=["k", "s"])
    parser.add_argument("--names", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--seconds", type=float, default=120.0, help="CPU budget of each fit")
    parser.add_argument("--memory-gb", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=None, help="JSON; rows it holds are kept")
    parser.add_argument("--one", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--task", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        result = run_one(args.one, args.task, args.data, args.seconds)
        args.out.write_text(json.dumps(result))
        return
    rows: list[dict[str, Any]] = []
    if args.out is not None and args.out.exists():
        rows = json.loads(args.out.read_text())
    key = ("size", "noise", "seed", "task", "name")
    for size in args.sizes:
        for noise in args.noise:
            for seed in args.seeds:
                with tempfile.TemporaryDirectory() as scratch:
                    folder = Path(scratch)
                    write_data(folder, SIZES[size], noise, seed)
                    for task in args.tasks:
                        for name in args.names:
                            cell = dict(zip(key, (size, noise, seed, task, name), strict=True))
                            rows = [r for r in rows if any(r[k] != cell[k] for k in key)]
                            result = contest(
                                name, task, folder / task, seconds=args.seconds,
                                limit=3 * args.seconds + 60, memory_gb=args.memory_gb,
                            )  # fmt: skip
                            rows.append({**cell, **result})
                            print(show(rows[-1:]).splitlines()[-1], flush=True)
                            if args.out is not None:
                                args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(show(rows))


if __name__ == "__main__":
    main()
