"""Does anything in closed form beat the mean of other perturbations on genes never perturbed?

    python scripts/hyperbolic_unseen.py [overrides …]

K562 cells with one gene activated (``+experiment=hyperbolic_response_unseen``; other data by
overrides). Each candidate predicts the genes its fold held out, with shared and with disjoint
controls; ``nested`` takes, fold by fold, the candidate that predicts training perturbations best
when each is left out in turn with all that share its gene. Gains on the mean are paired over
perturbations (bootstrap, 95 %). ``share known``: what a predictor would have gained that knows a
share of what is special about each gene, from the half of its cells that the truth does not use.
Nothing is written but the two tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neuralgraph.systems.hyperbolic_response import metrics
from neuralgraph.systems.hyperbolic_response.baselines import Known, shrunk

Candidate = Callable[[Known, Tensor], Tensor]
"""``(known, hot (P,)) -> predicted response (G,)`` of one gene that was never perturbed."""
N_BOOTSTRAP = 10_000
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    data, builder = prepared(sys.argv[1:])
    candidates = {**means(), **graph_candidates(data)}
    scores: dict[tuple[str, bool], list[Tensor]] = {}
    power: dict[tuple[float, bool], list[Tensor]] = {}
    chosen: list[str] = []
    for form in range(builder.n_form):
        disjoint = form > 0
        found: dict[str, list[Tensor]] = {}
        ladder: dict[float, list[Tensor]] = {}
        for f, fold in enumerate(data.folds):
            known, inner = builder.known[form][f], builder.inner(f, form)
            best = choice(candidates, builder, f, *inner)
            chosen.append(best)
            test = fold.test
            truth = (test.delta_shared if form == 0 else test.deltas_disjoint()[form - 1]).double()
            halves = (
                (test.half_a_shared[0], test.half_b_shared[0])
                if form == 0
                else (test.half_a[form - 1], test.half_b[form - 1])
            )
            for row, hot in enumerate((test.multi_hot > 0).double()):
                for name, candidate in candidates.items():
                    said = candidate(known, hot)
                    found.setdefault(name, []).append(metrics.pearson(said[None], truth[row, None]))
                    if name == best:
                        found.setdefault("nested", []).append(found[name][-1])
                first, second = (half[row].double() for half in halves)
                mean = candidates["perturbed mean"](known, hot)
                for share in (0.0, *SHARES):
                    said = mean + share * (first - mean)
                    value = metrics.pearson(said[None], second[None])
                    ladder.setdefault(share, []).append(value)
        for name, values in found.items():
            scores.setdefault((name, disjoint), []).append(torch.cat(values))
        for share, values in ladder.items():
            power.setdefault((share, disjoint), []).append(torch.cat(values))
    print(table({k: metrics.stacked(v) for k, v in scores.items()}, "perturbed mean", "candidate"))
    print("\nnested chose:", {name: chosen.count(name) for name in sorted(set(chosen))}, "\n")
    print(table({k: metrics.stacked(v) for k, v in power.items()}, 0.0, "share known"))


def prepared(overrides: list[str]) -> tuple[Any, Any]:
    """Data of the experiment, and its questions."""
    from hydra import compose, initialize_config_dir

    from neuralgraph import pipeline
    from neuralgraph.cli import plain
    from neuralgraph.config import CONFIG_FOLDER
    from neuralgraph.systems.hyperbolic_response.tasks import Builder, TaskSettings

    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        config = plain(
            compose("train", ["+experiment=hyperbolic_response_unseen", "seed=42", *overrides])
        )
    parts = pipeline.compose(config)
    recording, truth = parts.simulator.simulate(config["seed"])
    given = parts.simulator.reveal(recording, truth, **config["prior"])
    data: Any = parts.dataset(recording, given)
    return data, Builder(data, TaskSettings("additive", n_loading=4, n_chunk=4))


def means() -> dict[str, Candidate]:
    """What needs no knowledge of the gene asked for."""

    def singles(known: Known) -> Known:
        return known.rows(known.hot.sum(1) == 1)

    def plain(known: Known, hot: Tensor) -> Tensor:
        return singles(known).delta.mean(0)

    def shrunk_mean(known: Known, hot: Tensor) -> Tensor:
        return singles(shrunk(known, control_is_exact=True)).delta.mean(0)

    def population(known: Known, hot: Tensor) -> Tensor:
        return singles(shrunk(known, control_is_exact=False)).delta.mean(0)

    def median(known: Known, hot: Tensor) -> Tensor:
        return singles(known).delta.median(0).values

    def alike(known: Known, hot: Tensor) -> Tensor:
        delta = singles(known).delta
        return (delta / delta.norm(dim=1, keepdim=True)).mean(0)

    def every(known: Known, hot: Tensor) -> Tensor:
        return known.delta.sum(0) / known.hot.sum()

    def slope(known: Known, hot: Tensor) -> Tensor:
        # control noise is in every response alike, so it is in the intercept and not in the slope
        order = known.hot.sum(1)
        centred = order - order.mean()
        if not bool((centred != 0).any()):
            return plain(known, hot)
        return centred @ known.delta / centred.square().sum()

    def first_direction(known: Known, hot: Tensor) -> Tensor:
        delta = singles(known).delta
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        return ((u[:, :1] * s[:1]) @ vh[:1]).mean(0)

    return {
        "perturbed mean": plain,
        "shrunk mean": shrunk_mean,
        "shrunk mean, controls too": population,
        "median": median,
        "responses of one size": alike,
        "pairs count too": every,
        "slope on the number of genes": slope,
        "first direction alone": first_direction,
    }


def graph_candidates(data: Any) -> dict[str, Candidate]:
    """What the gene graph says of the gene asked for: kernel ridge around the mean, and targets."""
    from neuralgraph.systems.hyperbolic_response.active import edge_signs
    from neuralgraph.systems.hyperbolic_response.treelikeness import path_lengths

    graph, node = data.graph, data.spec.perturbation_node.cpu()
    path = path_lengths(graph.n_node, graph.edge_index)[node][:, node].double()
    path = path.fill_diagonal_(0.0)
    sign = edge_signs(graph.n_node, graph.edge_index, graph.sign)[node].double()
    adjacency = graph.adjacency().double()
    values, vectors = torch.linalg.eigh(adjacency)
    touched = (adjacency[node] > 0).double()
    touched[torch.arange(len(node)), node] = 1.0
    common = touched @ touched.T
    size = common.diagonal()
    kernels = {f"paths, length {length:g}": (-path / length).exp() for length in (1.0, 3.0)} | {
        "shared neighbours": common / (size[:, None] * size[None]).sqrt()
    }
    for time in (2.0, 8.0):
        heat = ((vectors * (time * (values - 1)).exp()) @ vectors.T)[node][:, node]
        root = heat.diagonal().sqrt()
        kernels[f"heat, time {time:g}"] = heat / (root[:, None] * root[None])
    both = sign[:, None] * sign[None]
    kernels["paths, length 3, signed"] = kernels["paths, length 3"] * torch.where(
        torch.isfinite(path), both, torch.ones_like(both)
    )

    def of(kernel: Tensor, penalty: float) -> Candidate:
        def predict(known: Known, hot: Tensor) -> Tensor:
            alone = known.rows(known.hot.sum(1) == 1)
            at, asked = alone.hot.argmax(1), int(hot.argmax())
            mean = alone.delta.mean(0)
            gram = kernel[at][:, at] + penalty * torch.eye(len(at), dtype=torch.float64)
            return mean + kernel[asked, at] @ torch.linalg.solve(gram, alone.delta - mean)

        return predict

    return {
        f"ridge, {name}, penalty {penalty:g}": of(kernel, penalty)
        for name, kernel in kernels.items()
        for penalty in (0.3, 1.0, 3.0)
    }


def choice(
    candidates: dict[str, Candidate], builder: Any, fold: int, known: Known, wanted: Tensor
) -> str:
    """The candidate that predicts left-out training perturbations best, by mean correlation."""
    total = dict.fromkeys(candidates, 0.0)
    for row in (known.hot.sum(1) == 1).nonzero()[:, 0].tolist():
        asked = known.hot[row]
        left = known.rows(~builder.hidden(fold, asked, int(known.context[row])))
        for name, candidate in candidates.items():
            value = metrics.pearson(candidate(left, asked)[None], wanted[row, None])
            total[name] += float(value.nan_to_num(0.0))
    return max(total, key=lambda name: total[name])


def table(scores: dict[tuple[Any, bool], Tensor], base: Any, head: str) -> str:
    """Markdown: Pearson delta, gain with its interval, and the gain that would have been found."""
    lines = [
        f"| {head} | shared | gain [95 %] | detectable | disjoint | gain [95 %] | detectable |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in dict.fromkeys(key[0] for key in scores):
        cells = []
        for disjoint in (False, True):
            value = scores[name, disjoint]
            gain = value - scores[base, disjoint]
            low, high = metrics.interval(gain, N_BOOTSTRAP)
            cells.append(f"{float(value.mean()):.3f}")
            cells.append(f"{float(gain.mean()):+.3f} [{low:+.3f}, {high:+.3f}]")
            cells.append(f"{metrics.detectable(gain):.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
