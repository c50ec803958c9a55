"""Does a tree fit better into hyperbolic space, and how tree-like are the gene graphs?

    python scripts/hyperbolic_tree.py tree [--depth 4 --dims 2 4 8 16 32 --seeds 0 1 2]
    python scripts/hyperbolic_tree.py graphs
    python scripts/hyperbolic_tree.py embed --graph papalexi_trrust [--dims …]
    python scripts/hyperbolic_tree.py table

``tree`` embeds a regular tree by RiemannianAdam in every dimension, hyperbolic and Euclidean, from
the same starts; ``graphs`` computes Gromov's δ of the gene graphs of the screens; ``embed`` embeds
one of them. Lines of JSON go to ``--out`` (what is there is not computed again); ``table`` prints
them as Markdown. Seconds are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

POLICY = "+experiment=hyperbolic_policy_value"
GRAPHS: dict[str, tuple[str, ...]] = {
    "simulated_tree": (POLICY,),
    "simulated_correlation": (
        POLICY, "dataset.graph=correlation", "dataset.graph_threshold=0.15",
    ),
    "papalexi_trrust": ("+experiment=hyperbolic_response_papalexi",),
    "papalexi_correlation": (
        "+experiment=hyperbolic_response_papalexi", "dataset.graph=correlation",
        "dataset.graph_path=null", "dataset.graph_threshold=0.1",
    ),
    "norman_trrust": ("+experiment=hyperbolic_response",),
    "norman_correlation": (
        "+experiment=hyperbolic_response", "dataset.graph=correlation",
        "dataset.graph_path=null", "dataset.graph_threshold=0.1",
    ),
}  # fmt: skip
"""Overrides by graph; ``trrust`` is the whole file."""
N_SAMPLE = 1_000_000


def main() -> None:
    """Compute what was asked for, line by line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("tree", "graphs", "embed", "table"))
    parser.add_argument("--branching", type=int, default=3)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--graph", choices=[*GRAPHS, "trrust"], default="papalexi_trrust")
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--manifolds", nargs="+", default=["lorentz", "euclidean"])
    parser.add_argument("--out", type=Path, default=Path("runs/hyperbolic_geometry.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.what == "tree":
        from neuralgraph.systems.hyperbolic_response.treelikeness import path_lengths, regular_tree

        edges = regular_tree(options.branching, options.depth)
        distance = path_lengths(int(edges.max()) + 1, edges)
        embed_all(f"tree_{options.branching}_{options.depth}", distance, options)
    elif options.what == "graphs":
        for name in [*GRAPHS, "trrust"]:
            delta_of(name, options.out)
    elif options.what == "embed":
        embed_all(options.graph, distances(options.graph), options)
    else:
        print(table(read(options.out)))


def embed_all(name: str, distance: torch.Tensor, options: argparse.Namespace) -> None:
    """One line for each dimension, seed and manifold."""
    from neuralgraph.systems.hyperbolic_response.treelikeness import embed

    done = {
        (r["graph"], r["manifold"], r["dim"], r["seed"]) for r in read(options.out) if "dim" in r
    }
    for seed in options.seeds:
        for dim in options.dims:
            for manifold in options.manifolds:
                if (name, manifold, dim, seed) in done:
                    continue
                began = time.process_time()
                found = embed(
                    distance, manifold, dim,
                    n_step=options.steps, learning_rate=options.rate, seed=seed,
                )  # fmt: skip
                write(
                    options.out,
                    graph=name, n_node=len(distance), manifold=manifold, dim=dim, seed=seed,
                    distortion=found.distortion, precision=found.precision, loss=found.loss,
                    seconds=time.process_time() - began,
                )  # fmt: skip


def delta_of(name: str, out: Path) -> None:
    """One line with δ of a graph; a graph whose file is missing is left out, with the reason."""
    from neuralgraph.core.errors import NeuralGraphError
    from neuralgraph.systems.hyperbolic_response.treelikeness import hyperbolicity

    if any(row["graph"] == name and "delta" in row for row in read(out)):
        return
    try:
        distance = distances(name)
        found = hyperbolicity(distance, n_sample=N_SAMPLE, seed=0)
    except NeuralGraphError as error:
        print(f"{name}: {error}")
        return
    write(
        out,
        graph=name, n_node=found.n_point, n_edge=int((distance == 1).sum()) // 2,
        delta=found.delta, mean=found.mean, diameter=found.diameter, relative=found.relative,
        n_quadruple=found.n_quadruple, is_exact=found.is_exact,
    )  # fmt: skip


def distances(name: str) -> torch.Tensor:
    """Path lengths in the largest component of a gene graph."""
    from neuralgraph.systems.hyperbolic_response.treelikeness import (
        largest_component,
        path_lengths,
    )

    graph = whole_trrust() if name == "trrust" else graph_of(GRAPHS[name])
    distance = path_lengths(graph.n_node, graph.edge_index)
    keep = largest_component(distance)
    return distance[keep][:, keep]


def graph_of(overrides: tuple[str, ...]) -> Any:
    """Gene graph of a composed run, without training."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from neuralgraph import pipeline
    from neuralgraph.cli import plain
    from neuralgraph.config import CONFIG_FOLDER

    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        config = plain(compose("train", list(overrides)))
    parts = pipeline.compose(config)
    recording, truth = parts.simulator.simulate(config["seed"])
    given = parts.simulator.reveal(recording, truth, **config["prior"])
    return parts.dataset(recording, given).graph


def whole_trrust() -> Any:
    """Every edge of the TRRUST file."""
    import pandas as pd

    from neuralgraph.core.data_home import find_data
    from neuralgraph.systems.hyperbolic_response.gene_graph import read_trrust

    path = find_data("trrust/trrust_human.tsv")
    table = pd.read_csv(path, sep="\t", header=None, dtype=str)
    return read_trrust(path, sorted({*table[0], *table[1]}), 0)


def read(path: Path) -> list[dict[str, Any]]:
    """Lines of results."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def write(path: Path, **row: Any) -> None:
    """Append a line, and show it."""
    line = json.dumps(row)
    print(line, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: δ of the graphs, then distortion and precision by dimension."""
    lines = [
        "| graph | nodes | edges | δ | mean δ | diameter | 2δ / diameter | quadruples |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        if "delta" in row:
            count = "all" if row["is_exact"] else f"{row['n_quadruple']:,} drawn"
            lines.append(
                f"| {row['graph']} | {row['n_node']} | {row['n_edge']} | {row['delta']:g} | "
                f"{row['mean']:.3f} | {row['diameter']:g} | {row['relative']:.2f} | {count} |"
            )
    graphs = list(dict.fromkeys(row["graph"] for row in rows if "dim" in row))
    for graph in graphs:
        here = [row for row in rows if row["graph"] == graph and "dim" in row]
        lines += [
            "",
            f"{graph}, {here[0]['n_node']} nodes:",
            "",
            "| dimension | seeds | distortion hyperbolic | Euclidean | ratio | mAP hyperbolic | "
            "Euclidean | CPU s (hyp., Eucl.) |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for dim in sorted({row["dim"] for row in here}):
            of = {
                m: [r for r in here if r["dim"] == dim and r["manifold"] == m]
                for m in ("lorentz", "euclidean")
            }
            if not of["lorentz"] or not of["euclidean"]:
                continue
            curved, flat = (
                {key: [r[key] for r in of[m]] for key in ("distortion", "precision", "seconds")}
                for m in ("lorentz", "euclidean")
            )
            cells = [
                spread(curved["distortion"]),
                spread(flat["distortion"]),
                f"{mean(curved['distortion']) / mean(flat['distortion']):.2f}",
                spread(curved["precision"]),
                spread(flat["precision"]),
                f"{mean(curved['seconds']):.1f}, {mean(flat['seconds']):.1f}",
            ]
            lines.append(f"| {dim} | {len(of['lorentz'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean(values: list[float]) -> float:
    """Mean."""
    return sum(values) / len(values)


def spread(values: list[float]) -> str:
    """Mean and range over seeds."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    assert all(math.isfinite(v) for v in values)
    return f"{mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


if __name__ == "__main__":
    main()
