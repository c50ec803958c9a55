"""Do the intervals of rate constants hold the truth where the rate law is learned beside them?

    python scripts/coverage_law.py                        # 200 refits, about six CPU minutes
    python scripts/coverage_law.py --replicates 20 --noise 1e-4 1e-3

One random network whose rate law is a random network (as in ``metabolism_s``); each replicate has
fresh noise of the derivatives, fresh untrained networks, and a refit by the estimator of the
experiment (``fit_rate_mlp``, S at its integers, started from the true log10 k plus normal errors of
0.1, as a decoding would leave them), judged by the standard errors that the report
would give: with the law among the unknowns (``learned``) and with the law held (``known``).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from neuralgraph.building import build
from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import numpy_generator, torch_generator
from neuralgraph.numerics.information import analyse, residual_noise
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.estimate import gauged_log_k, gauged_stoichiometry
from neuralgraph.systems.metabolism.identifiability import MetabolismIdentifiability
from neuralgraph.systems.metabolism.kinetics import network_of_truth
from neuralgraph.systems.metabolism.model import Metabolism_Propagation
from neuralgraph.systems.metabolism.recovery_mlp import fit_rate_mlp
from neuralgraph.systems.metabolism.start import stock_layers, take_back
from neuralgraph.systems.metabolism.uncertainty import LN10

WIDTH = {"hidden_dim": 8, "message_dim": 4}
SIZES = {"n_met": 20, "n_rxn": 48, "n_run": 100, "n_test_run": 1, "n_frame": 5, **WIDTH}
TWO_SIDED_95 = 1.959963984540054
LAWS = ("learned", "known")


def stem(name: str) -> dict[str, Any]:
    """Keys of a stem of the menu."""
    return yaml.safe_load((Path(CONFIG_FOLDER) / name).read_text(encoding="utf-8"))


def simulated(seed: int, noise: float) -> tuple[Any, Recording, Truth]:
    """A small network with noisy derivatives."""
    config = {**stem("simulator/metabolism_rate_network.yaml"), **SIZES}
    config["noise"] = {**config["noise"], "derivative_relative": noise}
    made = build(config, "simulator")
    return made, *made.simulate(seed)


def refitted(data: MetabolismData, truth: Truth, seed: int) -> Metabolism_Propagation:
    """A model with S at its integers, and law and rate constants as the experiment fits them."""
    model = Metabolism_Propagation(
        data.spec,
        generator=torch_generator(seed, "model"),
        hidden_dim_sub=WIDTH["hidden_dim"],
        hidden_dim_rate=WIDTH["hidden_dim"],
        message_dim=WIDTH["message_dim"],
    ).double()
    p = truth.parameters
    model.set_stoichiometry(sto_all=p["sto_all"].double(), sto_sub=p["sto_sub"].double())
    msg, rate = stock_layers(model.msg_mlp), stock_layers(model.rate_mlp)
    rng = numpy_generator(seed, "start")
    batch = data.train
    edges = [x.cpu().numpy() for x in (model.met_sub, model.rxn_sub, model.met_all, model.rxn_all)]
    fit = fit_rate_mlp(
        batch.concentration.double().numpy(),
        batch.dx_dt.double().numpy(),
        *edges,
        sto_sub=p["sto_sub"].numpy(),
        sto_all=p["sto_all"].numpy(),
        log_k=p["log_k"].double().numpy() + rng.normal(0, 0.1, data.spec.n_rxn),
        msg_mlp=msg,
        rate_mlp=rate,
        n_met=data.spec.n_met,
        n_rxn=data.spec.n_rxn,
        rng=rng,
        max_frames=len(batch),
        degree=(6, 5, 4),
    )
    take_back(model.msg_mlp, msg)
    take_back(model.rate_mlp, rate)
    with torch.no_grad():
        model.log_k.copy_(torch.as_tensor(fit.log_k))
    return model


def errors_of(
    model: Metabolism_Propagation, data: MetabolismData, law: str
) -> tuple[Tensor, Tensor]:
    """Standard errors of log10 k, and which rate constants are determined."""
    part = MetabolismIdentifiability(
        **{k: v for k, v in stem("identifiability/metabolism.yaml").items() if k[0] != "_"}
    )
    part.law = law
    problem = part.problem(model, data, None, is_fitted=True)
    found = analyse(problem, residual_noise(problem), rtol=part.rtol)
    rows = {row.parameter: row for row in found.rows()}
    each = [rows[f"k({name})"].relative_error for name in data.spec.reaction_names]
    known = torch.tensor([e is not None for e in each])
    return torch.tensor([float("nan") if e is None else e for e in each]).double() / LN10, known


def study(seed: int, noise: float, n_replicate: int) -> dict[str, Any]:
    """Coverage over replicates of one network at one noise."""
    made, clean, truth = simulated(seed, 0.0)
    given = made.reveal(
        clean, truth, support=True, roles=True, stoichiometry=False, rate_constants=False
    )
    network = network_of_truth(truth)
    began = time.process_time()
    inside: dict[str, list[Tensor]] = {law: [] for law in LAWS}
    size: dict[str, list[Tensor]] = {law: [] for law in LAWS}
    away_all = []
    determined: list[Tensor] = []
    for r in range(n_replicate):
        data = MetabolismData(clean, given, validation_fraction=0.0).astype(torch.float64)
        n = data.n_train
        sd = noise * data._dx_dt[:n].square().mean(0).sqrt()
        g = np.random.default_rng([seed, r])
        data._dx_dt = data._dx_dt.clone()
        data._dx_dt[:n] += sd * torch.from_numpy(g.standard_normal((n, data.spec.n_met)))
        model = refitted(data, truth, r)
        gauged = gauged_stoichiometry(model, data, max_coefficient=2)
        pair = gauged_log_k(model, data, truth, network, gauged)
        assert not isinstance(pair, str)
        away = (pair[0] - pair[1]).abs()
        away_all.append(away)
        for law in LAWS:
            error, is_known = errors_of(model, data, law)
            if law == LAWS[0]:
                determined.append(is_known)
            inside[law].append((away <= TWO_SIDED_95 * error).double())
            size[law].append(error)
        if (r + 1) % 10 == 0:
            which = torch.stack(determined)
            so_far = {law: float(torch.stack(inside[law])[which].mean()) for law in LAWS}
            print(f"{r + 1} refits at noise {noise:g}: {so_far}", file=sys.stderr, flush=True)
    which = torch.stack(determined)  # of each replicate: a fit may leave a column without a scale
    count = which.double().sum(0)
    result: dict[str, Any] = {
        "seed": seed,
        "noise": noise,
        "n_replicate": n_replicate,
        "n_k_mean": float(count.sum() / n_replicate),
        "median_error": float(torch.stack(away_all)[which].median()),
        "cpu_seconds": time.process_time() - began,
    }
    for law in LAWS:
        hits = torch.stack(inside[law]) * which
        share = hits.sum(0)[count > 0] / count[count > 0]
        result[law] = {
            "mean": float(hits.sum() / count.sum()),
            "lowest": float(share.min()),
            "highest": float(share.max()),
            "median_standard_error": float(torch.stack(size[law])[which].median()),
        }
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="of the network")
    parser.add_argument("--noise", nargs="+", type=float, default=[1e-3])
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [study(args.seed, noise, args.replicates) for noise in args.noise]
    text = json.dumps(rows, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
