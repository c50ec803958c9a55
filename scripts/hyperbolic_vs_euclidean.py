"""Is a response predicted better where perturbations are embedded in hyperbolic space?

    python scripts/hyperbolic_vs_euclidean.py kernel --data papalexi [--dims … --seeds …]
    python scripts/hyperbolic_vs_euclidean.py residual --data simulated [--dims … --seeds …]
    python scripts/hyperbolic_vs_euclidean.py table

``kernel``: perturbed genes are embedded by their path lengths in the gene graph, and held-out
single perturbations predicted by a Gaussian process on geodesic distances, around the mean of the
training perturbations (scales by likelihood; nothing else is fitted). ``residual``: the predictive
model of ``+experiment=hyperbolic_response…``, the whole residual as descent left it and as
validation keeps it, one cut of the controls; the simulated screen is a smaller one. The two spaces
share folds, starts, steps and numbers of parameters. Lines of JSON hold an error for each held-out
perturbation; ``table`` prints paired differences with 95 % intervals (bootstrap over perturbations;
``residual``: over seeds, too). Truth and prediction use disjoint controls. Seconds are CPU seconds
of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

SINGLES = ("dataset.split=unseen_perturbation", "dataset.max_order=1", "dataset.n_control_split=1")
KERNEL: dict[str, tuple[str, ...]] = {
    "simulated": (
        "+experiment=hyperbolic_response_simulated", "simulator.n_double=0", *SINGLES,
        "dataset.n_fold=5", "dataset.validation_fraction=0",
    ),
    "papalexi": (
        "+experiment=hyperbolic_response_papalexi", "dataset.n_control_split=1",
        "dataset.validation_fraction=0",
    ),
    "norman": (
        "+experiment=hyperbolic_response_unseen", "dataset.n_control_split=1",
        "dataset.validation_fraction=0",
    ),
}  # fmt: skip
RESIDUAL: dict[str, tuple[str, ...]] = {
    "simulated": (
        "+experiment=hyperbolic_response_simulated", "dataset.n_control_split=1",
        "simulator.n_gene=100", "simulator.n_single=24", "simulator.n_double=60",
        "dataset.n_fold=3",
    ),
    "papalexi": ("+experiment=hyperbolic_response_papalexi", "dataset.n_control_split=1"),
    "norman": ("+experiment=hyperbolic_response_unseen", "dataset.n_control_split=1"),
}  # fmt: skip
KEPT = ("kept_error", "kept_pearson")
MANIFOLDS = ("lorentz", "euclidean")
N_BOOTSTRAP = 5000


def main() -> None:
    """Compute what was asked for, line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("kernel", "residual", "table"))
    parser.add_argument("--data", choices=[*KERNEL], default="simulated")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("runs/hyperbolic_vs_euclidean.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.what == "table":
        print(table(read(options.out)))
    elif options.what == "kernel":
        kernel(options)
    else:
        residual(options)


def composed(overrides: list[str]) -> tuple[dict[str, Any], Any]:
    """Config and parts of a run."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from neuralgraph import pipeline
    from neuralgraph.cli import plain
    from neuralgraph.config import CONFIG_FOLDER

    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        config = plain(compose("train", overrides))
    return config, pipeline.compose(config)


def kernel(options: argparse.Namespace) -> None:
    """Embed the perturbed genes, predict each fold, one line for each setting."""
    from neuralgraph.systems.hyperbolic_response.active import edge_signs
    from neuralgraph.systems.hyperbolic_response.treelikeness import embed, path_lengths

    done = settings(options.out, "kernel", options.data)
    for seed in options.seeds:
        wanted = [
            (m, d) for m in (*MANIFOLDS, "path") for d in options.dims if (m, d, seed) not in done
        ]
        if not wanted:
            continue
        # a screen is simulated anew for each seed; measured data get another start only
        config, parts = composed([*KERNEL[options.data], f"seed={seed}"])
        recording, truth = parts.simulator.simulate(config["seed"])
        given = parts.simulator.reveal(recording, truth, **config["prior"])
        data = parts.dataset(recording, given)
        graph, node = data.graph, data.spec.perturbation_node
        paths = path_lengths(graph.n_node, graph.edge_index)[node][:, node]
        is_joined = torch.isfinite(paths)
        inside = is_joined[is_joined.sum(1).argmax()].nonzero()[:, 0]
        sign = edge_signs(graph.n_node, graph.edge_index, graph.sign)[node]
        for manifold, dim in wanted:
            began = time.process_time()
            if manifold == "path":
                if dim != options.dims[0]:
                    continue
                near = paths[inside][:, inside]
            else:
                found = embed(
                    paths[inside][:, inside].clamp_min(0.5), cast(Any, manifold), dim,
                    n_step=200, learning_rate=0.2, seed=seed,
                )  # fmt: skip
                near = found.distance * paths[inside][:, inside].sum() / found.distance.sum()
            distance = torch.full_like(paths, torch.inf).fill_diagonal_(0.0)
            distance[inside[:, None], inside[None, :]] = near
            error, score, names = folds(data, distance, sign)
            write(
                options.out,
                what="kernel", data=options.data, manifold=manifold, dim=dim, seed=seed,
                n_joined=len(inside), n=len(paths), error=error, pearson=score, names=names,
                seconds=time.process_time() - began,
            )  # fmt: skip


def folds(data: Any, distance: Tensor, sign: Tensor) -> tuple[list[float], list[float], list[str]]:
    """Error relative to the perturbed mean, and Pearson delta, of each held-out perturbation."""
    from neuralgraph.systems.hyperbolic_response.active import posterior

    errors, scores, names = [], [], []
    for fold in data.folds:
        train, test = fold.train, fold.test
        at, asked = train.multi_hot.argmax(1), test.multi_hot.argmax(1)
        delta = train.delta.double()
        mean = delta.mean(0)
        # a gauge of signs would flip the mean, so it is taken off first
        belief = posterior(distance, sign, at.tolist(), delta - mean)
        truth = test.delta_disjoint.double()
        predicted = mean + belief.mean[asked]
        errors += ((predicted - truth).square().sum(1) / (mean - truth).square().sum(1)).tolist()
        scores += correlation(predicted, truth)
        names += list(test.names)
    return errors, scores, names


def residual(options: argparse.Namespace) -> None:
    """Train the predictive model on each space, one line for each setting."""
    from neuralgraph import pipeline
    from neuralgraph.systems.hyperbolic_response.tasks import Builder
    from neuralgraph.training.session import Session

    done = settings(options.out, "residual", options.data)
    for seed in options.seeds:
        for dim in options.dims:
            for manifold in MANIFOLDS:
                if (manifold, dim, seed) in done:
                    continue
                began = time.process_time()
                config, parts = composed(
                    [
                        *RESIDUAL[options.data], f"model.manifold={manifold}", f"model.dim={dim}",
                        f"seed={seed}", f"loop.n_epochs={options.epochs}",
                    ]
                )  # fmt: skip
                recording, truth = parts.simulator.simulate(config["seed"])
                given = parts.simulator.reveal(recording, truth, **config["prior"])
                data, model = pipeline.cut_and_build(parts, config, recording, given)
                session = Session(model, data, parts.loss, optimizer=parts.optimizer, seed=seed)
                parts.loop(session)
                model.eval()
                anything = cast(Any, model)
                with torch.no_grad():
                    asked = Builder(data, anything.settings).test().to("cpu", torch.float32)
                    found = anything(asked)
                    # weights at the end of descent, whether validation kept them or not
                    last = found.base + anything.members(asked).mean(2)
                    curvature = anything.curvature(dict(anything.weight.items()))
                row: dict[str, list[float]] = {k: [] for k in ("error", "pearson", *KEPT)}
                names: list[str] = []
                for f, fold in enumerate(data.folds):
                    n = fold.test.n_condition
                    measured = fold.test.delta_disjoint.double()
                    left = (found.base[1, f, :n].double() - measured).square().sum(1)
                    for said, keys in ((last, ("error", "pearson")), (found.delta, KEPT)):
                        ours = said[1, f, :n].double()
                        row[keys[0]] += ((ours - measured).square().sum(1) / left).tolist()
                        row[keys[1]] += correlation(ours, measured)
                    names += list(fold.test.names)
                write(
                    options.out,
                    what="residual", data=options.data, manifold=manifold, dim=dim, seed=seed,
                    **row, names=names, epochs=options.epochs,
                    n_parameter=sum(p.numel() for p in model.parameters()),
                    curvature=curvature.tolist(), descent_kept=anything.descent_kept(),
                    seconds=time.process_time() - began,
                )  # fmt: skip


def correlation(a: Tensor, b: Tensor) -> list[float]:
    """Pearson correlation of each row."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)).tolist()


def settings(path: Path, what: str, data: str) -> set[tuple[str, int, int]]:
    """Manifold, dimension and seed of the lines that are there."""
    return {
        (row["manifold"], row["dim"], row["seed"])
        for row in read(path)
        if row["what"] == what and row["data"] == data
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Lines of results."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def write(path: Path, **row: Any) -> None:
    """Append a line, and show its means."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    shown = {k: row[k] for k in ("what", "data", "manifold", "dim", "seed")}
    mean = sum(row["error"]) / len(row["error"])
    print(shown, f"error {mean:.4f}", f"{row['seconds']:.1f} s", flush=True)


def resampled(
    difference: np.ndarray, random: np.random.Generator, *, is_same: bool, over_seeds: bool
) -> np.ndarray:
    """Bootstrap means of differences by seed and perturbation, ``(n_seed, n)``.

    Args:
        difference: Paired.
        random: Of the draws.
        is_same: Whether all seeds have the same perturbations (measured data), drawn together;
            else each seed is another screen.
        over_seeds: Draw seeds, too: starts of a training differ as perturbations do.
    """
    import numpy as np

    n_seed, n = difference.shape
    seed = np.arange(n_seed)[None]
    if over_seeds:
        seed = random.integers(0, n_seed, (N_BOOTSTRAP, n_seed))
    column = random.integers(0, n, (N_BOOTSTRAP, 1 if is_same else n_seed, n))
    return difference[seed[:, :, None], column].mean((1, 2))


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: error and Pearson delta in both spaces, and their paired differences."""
    import numpy as np

    random = np.random.default_rng(0)
    lines = []
    for what in ("kernel", "residual"):
        for data in KERNEL:
            here = [r for r in rows if r["what"] == what and r["data"] == data]
            if not here:
                continue
            base = "perturbed mean" if what == "kernel" else "closed-form baseline"
            of_key = {"error": f"error / that of the {base}", "pearson": "Pearson delta"}
            if what == "residual":
                of_key["kept_error"] = "error as validation keeps it"
            head = [
                f"{text}: hyperbolic | Euclidean | difference [95 %]" for text in of_key.values()
            ]
            lines += [
                "",
                f"**{what}, {data}** ({len(here[0]['error'])} held-out perturbations)",
                "",
                "| dimension | seeds | " + " | ".join(head) + " |",
                "| ---: | ---: |" + " ---: |" * 3 * len(of_key),
            ]
            for dim in sorted({r["dim"] for r in here}):
                cells = []
                n_seed = 0
                for key in of_key:
                    of = {}
                    for manifold in MANIFOLDS:
                        found = [r for r in here if r["dim"] == dim and r["manifold"] == manifold]
                        of[manifold] = {r["seed"]: np.array(r[key]) for r in found}
                    seeds = sorted(set(of["lorentz"]) & set(of["euclidean"]))
                    n_seed = len(seeds)
                    if not seeds:
                        break
                    a, b = (np.stack([of[m][s] for s in seeds]) for m in MANIFOLDS)
                    drawn = resampled(
                        a - b, random, is_same=data != "simulated", over_seeds=what == "residual"
                    )
                    low, high = np.quantile(drawn, [0.025, 0.975])
                    cells += [
                        f"{a.mean():.3f}",
                        f"{b.mean():.3f}",
                        f"{(a - b).mean():+.4f} [{low:+.4f}, {high:+.4f}]",
                    ]
                if cells:
                    lines.append(f"| {dim} | {n_seed} | " + " | ".join(cells) + " |")
            path = [r for r in here if r["manifold"] == "path"]
            if path:
                error = np.mean([r["error"] for r in path])
                score = np.mean([r["pearson"] for r in path])
                lines.append(f"| path lengths | {len(path)} | {error:.3f} | | | {score:.3f} | | |")
    return "\n".join(lines).strip()


if __name__ == "__main__":
    main()
