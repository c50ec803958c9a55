"""Does choosing the next perturbation beat chance? Active selection on simulated screens.

    python scripts/hyperbolic_active.py [--first 0 --screens 20] [--out FILE]
    python scripts/hyperbolic_active.py --table

Each screen is a tree of regulators with single knock-downs; a third of them is held out, a few are
measured at the start, and each agent chooses the next ones. The reward is the fall of the error on
the held-out responses, whose cells and controls nobody else uses. One line of JSON for each screen;
``--table`` prints means over screens and paired differences to chance with 95 % intervals
(bootstrap over screens). Seconds are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from neuralgraph.nn.hyperbolic import ManifoldName

SCREEN = (
    "+experiment=hyperbolic_policy_value", "simulator.n_gene=120", "simulator.n_single=30",
    "simulator.n_double=0", "simulator.n_batch=1", "simulator.missing_edges=0",
    "simulator.false_edges=0", "dataset.reward=mean", "dataset.min_cells_per_gene=0",
)  # fmt: skip
"""Screens of single knock-downs whose gene graph is known."""
N_TEST, N_START, N_ROUND, N_CHANCE = 10, 3, 12, 10
DIM, N_STEP, RATE = 4, 250, 0.2
N_BOOTSTRAP = 5000


def main() -> None:
    """Run screens, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--screens", type=int, default=20)
    parser.add_argument("--manifold", choices=("lorentz", "euclidean"), default="lorentz")
    parser.add_argument("--out", type=Path, default=Path("runs/hyperbolic_active.jsonl"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.table:
        print(table(read(options.out)))
        return
    done = {(row["seed"], row["manifold"]) for row in read(options.out)}
    for seed in range(options.first, options.first + options.screens):
        if (seed, options.manifold) not in done:
            row = screen(seed, options.manifold)
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(seed, {k: round(sum(v) / len(v), 4) for k, v in row["errors"].items()})


def screen(seed: int, manifold: ManifoldName) -> dict[str, Any]:
    """Errors of every agent along one screen."""
    from neuralgraph.core.seeding import torch_generator
    from neuralgraph.systems.hyperbolic_response.active import (
        AGENTS,
        MeasurementEnv,
        campaign,
        edge_signs,
    )
    from neuralgraph.systems.hyperbolic_response.treelikeness import embed, path_lengths

    began = time.process_time()
    config, parts = composed([*SCREEN, f"seed={seed}", f"dataset.seed_of_split={seed}"])
    recording, truth = parts.simulator.simulate(seed)
    given = parts.simulator.reveal(recording, truth, **config["prior"])
    data = parts.dataset(recording, given)
    graph = data.graph
    paths = path_lengths(graph.n_node, graph.edge_index)
    found = embed(paths, manifold, DIM, n_step=N_STEP, learning_rate=RATE, seed=seed)
    scale = paths.sum() / found.distance.sum()  # edges per unit, so that lengths mean the same
    node = data.spec.targets.argmax(1)
    distance = scale * found.distance[node][:, node]
    sign = edge_signs(graph.n_node, graph.edge_index, graph.sign)[node]
    order = torch.randperm(len(node), generator=torch_generator(seed, "held-out perturbations"))
    env = MeasurementEnv(
        distance, sign, data.train.signed[0], data.held_out.signed[0],
        test=order[:N_TEST].tolist(), start=order[N_TEST : N_TEST + N_START].tolist(),
    )  # fmt: skip
    errors: dict[str, list[float]] = {}
    for name, agent in AGENTS.items():
        runs = N_CHANCE if name == "random" else 1
        tried = [
            campaign(env, agent, N_ROUND, torch_generator(seed, f"{name} {i}")) for i in range(runs)
        ]
        errors[name] = [sum(step) / runs for step in zip(*tried, strict=True)]
    floor = (data.train.signed[0] - data.held_out.signed[0])[env.test].square().sum()
    return {
        "seed": seed,
        "manifold": manifold,
        "distortion": found.distortion,
        "errors": errors,
        "measured_directly": float(floor / data.held_out.signed[0][env.test].square().sum()),
        "seconds": time.process_time() - began,
    }


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


def read(path: Path) -> list[dict[str, Any]]:
    """Lines of results."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: error along the campaign, and paired differences to chance."""
    import numpy as np

    lines = []
    for manifold in sorted({row["manifold"] for row in rows}):
        here = [row for row in rows if row["manifold"] == manifold]
        random = np.random.default_rng(0)
        draws = random.integers(0, len(here), (N_BOOTSTRAP, len(here)))
        chance = np.array([row["errors"]["random"] for row in here])
        lines += [
            f"{manifold}, {len(here)} screens, {np.mean([r['seconds'] for r in here]):.1f} CPU s "
            "each:",
            "",
            "| agent | error after 3 | 6 | 12 choices | mean over the campaign | difference to "
            "chance [95 %] | better in |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name in here[0]["errors"]:
            curve = np.array([row["errors"][name] for row in here])
            gain = (curve[:, 1:] - chance[:, 1:]).mean(1)
            low, high = np.quantile(gain[draws].mean(1), [0.025, 0.975])
            difference = (
                "–" if name == "random" else f"{gain.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
            )
            better = "–" if name == "random" else f"{(gain < 0).sum()} of {len(gain)}"
            lines.append(
                f"| {name} | {curve[:, 3].mean():.3f} | {curve[:, 6].mean():.3f} | "
                f"{curve[:, 12].mean():.3f} | {curve[:, 1:].mean():.4f} | {difference} | {better} |"
            )
        floor = np.mean([row["measured_directly"] for row in here])
        start = chance[:, 0].mean()
        lines += ["", f"Before the first choice {start:.3f}; measured directly {floor:.3f}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
