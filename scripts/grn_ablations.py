"""Each part of ``grn_phenotype`` switched off alone, on a small population.

    python scripts/grn_ablations.py --seeds 0 1 [--variant NAME ...] >> ablations.jsonl
    python scripts/grn_ablations.py --table ablations.jsonl

One line of JSON for each variant, seed and size. Every variant of a seed sees the same circuits and
is trained for the same number of steps; seconds are CPU seconds of its training. ``--table``
prints, over the seeds, the accuracy of each variant and its difference to the whole network of the
same seed, with 95 % intervals of the mean (Student's t over seeds). ``--population N M`` takes N
circuits as they come and M of each phenotype, of 4 and of 5 genes.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from neuralgraph.systems.boolean_grn.features import SPECTRA

WHOLE = {False: "all", True: "structure: all"}
INFORMED, STRUCTURE = "model=grn_informed", "model=grn_structure"
VARIANTS: dict[str, list[str]] = {
    "all": [INFORMED],
    "no soft dynamics": [INFORMED, "model.informed.use_dynamics=false"],
    "no spectral features": [INFORMED, "model.informed.spectra=[]"],
    **{
        f"spectra without {name.replace('_', ' ')}": [
            INFORMED, f"model.informed.spectra=[{','.join(x for x in SPECTRA if x != name)}]",
        ]
        for name in SPECTRA
    },
    "no interventions": [INFORMED, "model.informed.use_interventions=false"],
    "no relations": [INFORMED, "model.informed.use_relations=false"],
    "neither": [
        INFORMED, "model.informed.use_interventions=false", "model.informed.use_relations=false",
    ],
    "12 starts": [INFORMED, "model.informed.n_start=12"],
    "no contrastive loss": [INFORMED, "loss.coeff_contrastive=0"],
    "no constraint loss": [INFORMED, "loss.coeff_constraint=0"],
    "no dynamics loss": [INFORMED, "loss.coeff_dynamics=0"],
    "no auxiliary heads": [INFORMED, "loss.coeff_auxiliary=0"],
    "no curriculum": [INFORMED, "loop=grn_plain"],
    "no annealing": [INFORMED, *(f"loop.stages.{k}.tau=10" for k in range(4))],
    "structure: all": [STRUCTURE],
    "structure: no spectral features": [STRUCTURE, "model.structure.spectra=[]"],
    "structure: no dynamics loss": [STRUCTURE, "loss.coeff_dynamics=0"],
    "structure: no auxiliary heads": [STRUCTURE, "loss.coeff_auxiliary=0"],
    "structure: no contrastive loss": [STRUCTURE, "loss.coeff_contrastive=0"],
    "structure: no constraint loss": [STRUCTURE, "loss.coeff_constraint=0"],
    "structure: no curriculum": [STRUCTURE, "loop=grn_plain"],
}  # fmt: skip


@functools.cache
def drawn(seed: int, population: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Recording, truth and prior of a seed, the same for every variant."""
    from hydra import compose

    from neuralgraph import pipeline
    from neuralgraph.cli import plain

    config: dict[str, Any] = plain(compose("train", chosen(seed, population, [INFORMED])))
    simulator = pipeline.compose(config).simulator
    recording, truth = simulator.simulate(seed)
    return recording, truth, simulator.reveal(recording, truth, **config["prior"])


def chosen(seed: int, population: tuple[int, int], overrides: list[str]) -> list[str]:
    """Overrides of a training."""
    return [
        "+experiment=grn_phenotype", f"seed={seed}", f"simulator.n_natural={population[0]}",
        f"simulator.n_per_phenotype={population[1]}", "simulator.sizes_test=[4,6]", *overrides,
    ]  # fmt: skip


def one(
    overrides: list[str], seed: int, population: tuple[int, int]
) -> tuple[dict[str, float], dict[str, int], float]:
    """Metrics, number of unstratified test circuits by size, and CPU seconds of one training."""
    from hydra import compose

    from neuralgraph import pipeline
    from neuralgraph.cli import plain
    from neuralgraph.core.seeding import derived_seed
    from neuralgraph.training.session import Session

    config: dict[str, Any] = plain(compose("train", chosen(seed, population, overrides)))
    parts = pipeline.compose(config)
    recording, truth, given = drawn(seed, population)
    data, model = pipeline.cut_and_build(parts, config, recording, given)
    session = Session(
        model, data, parts.loss, optimizer=parts.optimizer, seed=derived_seed(seed, "session")
    )
    began = time.process_time()
    parts.loop(session)
    seconds = time.process_time() - began
    setattr(parts.evaluation, "sizes", [3, 4, 6])  # noqa: B010  # of this evaluator, not of any
    card = parts.evaluation(session.model.eval(), data, truth, log={"final_loss": 0.0})
    n_test = {size: n[0] for size, n in card.facts["tables"]["n_test"].items()}
    return card.metrics, n_test, seconds


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    from scipy.stats import t

    x = torch.tensor(values, dtype=torch.float64)
    half = float(t.ppf(0.975, len(x) - 1)) * float(x.std()) / len(x) ** 0.5 if len(x) > 1 else 0.0
    return float(x.mean()), half


def plus_minus(values: list[float], n_digit: int, sign: str = "-") -> str:
    """Mean and half the width of its interval as text; one value has no interval."""
    mean, half = interval(values)
    text = f"{mean:{sign}.{n_digit}f}"
    return f"{text} ± {half:.{n_digit}f}" if len(values) > 1 else text


def table(path: Path) -> str:
    """Accuracy by variant, and its difference to the whole network of the same seed."""
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    score: dict[str, dict[int, dict[int, dict[str, float]]]] = {}
    for line in lines:
        by_seed = score.setdefault(line["variant"], {}).setdefault(line["n_gene"], {})
        by_seed[line["seed"]] = line
    sizes = sorted({line["n_gene"] for line in lines})
    head = " | ".join(f"{n} genes | difference | mean recall" for n in sizes)
    rows = [
        f"| variant | seeds | {head} | CPU s |",
        "| --- | ---: |" + " ---: |" * (3 * len(sizes) + 1),
    ]
    for variant in [name for name in VARIANTS if name in score]:
        whole = score.get(WHOLE[variant.startswith("structure")], {})
        seeds = sorted(score[variant][sizes[0]])
        cells = []
        for n in sizes:
            own = score[variant][n]
            accuracy = plus_minus([own[s]["accuracy"] for s in seeds], 4)
            paired = [s for s in seeds if s in whole.get(n, {})]
            gaps = [100 * (own[s]["accuracy"] - whole[n][s]["accuracy"]) for s in paired]
            recall, _ = interval([own[s]["balanced"] for s in seeds])
            difference = "" if variant in WHOLE.values() or not gaps else plus_minus(gaps, 1, "+")
            cells.append(f"{accuracy} | {difference} | {recall:.3f}")
        spent = interval([score[variant][sizes[0]][s]["train_seconds"] for s in seeds])[0]
        rows.append(f"| {variant} | {len(seeds)} | {' | '.join(cells)} | {spent:.0f} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Train the variants asked for and print their scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variant", action="append", choices=list(VARIANTS))
    parser.add_argument("--population", type=int, nargs=2, default=[3000, 500])
    parser.add_argument("--table", type=Path, help="lines of earlier calls, to be summed up")
    options = parser.parse_args()
    if options.table is not None:
        sys.stdout.write(table(options.table))
        return
    from hydra import initialize_config_dir

    from neuralgraph.config import CONFIG_FOLDER
    from neuralgraph.core.threads import limit_threads

    limit_threads(1)
    torch.set_num_threads(1)
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        for seed in options.seeds:
            for variant in options.variant or VARIANTS:
                metrics, n_test, seconds = one(VARIANTS[variant], seed, tuple(options.population))
                suffix = "_structure_only" if variant.startswith("structure") else ""
                for size, n in n_test.items():
                    line = {
                        "variant": variant, "seed": seed, "n_gene": int(size), "n_test": n,
                        "accuracy": round(metrics[f"accuracy{suffix}_{size}"], 4),
                        "balanced": round(metrics[f"balanced_accuracy{suffix}_{size}"], 4),
                        "train_seconds": round(seconds, 1),
                    }  # fmt: skip
                    sys.stdout.write(json.dumps(line) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
