"""Circuit design: success, novelty, robustness and cost of each generator, over seeds.

    python scripts/bench_design.py [--policy RUN_FOLDER] [--seeds 5] [--sizes 3 4 5 6] [--json FILE]

For every phenotype and size, 20 circuits by the knobs of ``conf/design.yaml`` and
``conf/generator``; what the default classifier learnt from does not count as new. The cost is the
number of circuits the oracle labels for each circuit of the phenotype that was met, mean over the
seeds with its 95 % interval (Student's t). No generator pays for what is isomorphic to something it
has seen. ``--policy`` is a run of ``grn_phenotype``, whose stage 5 has trained a policy: a further
column shows the learned generator that starts from it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import yaml

from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn.circuit import canonical_keys
from neuralgraph.systems.boolean_grn.design.generators import Evolution, Learned, RandomSearch
from neuralgraph.systems.boolean_grn.design.search import Design, search, training_keys
from neuralgraph.systems.boolean_grn.design.task import DesignTask
from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES, label_circuits
from neuralgraph.systems.boolean_grn.simulator import CircuitPopulation, core_keys

CONF = Path(__file__).resolve().parents[1] / "conf"
CLASSES = {"random": RandomSearch, "evolutionary": Evolution, "learned": Learned}
STAGE_5 = "learned, after stage 5"


def knobs(path: str, *drop: str) -> dict[str, Any]:
    """Plain keys of a config file."""
    content = yaml.safe_load((CONF / path).read_text(encoding="utf-8"))
    return {k: v for k, v in content.items() if not k.startswith("_") and k not in drop}


def run(
    name: str,
    phenotype: str,
    n_gene: int,
    seed: int,
    objective: str,
    known: frozenset[bytes],
    policy: str | None = None,
) -> Design:
    """One design at the defaults of ``conf/design.yaml``."""
    verb = knobs("design.yaml")
    names = ("rule", "update", "feedback", "is_connected")
    task = DesignTask(phenotype=phenotype, n_gene=n_gene, **{k: verb[k] for k in names})
    stem = "learned" if name == STAGE_5 else name
    arguments = knobs(f"generator/{stem}.yaml")
    if name == STAGE_5:
        arguments["policy"] = policy
    generator = CLASSES[stem](task, numpy_generator(seed, "design"), **arguments)
    found = search(
        task,
        generator,
        n=verb["n"],
        n_batch=verb["n_batch"],
        n_evaluation_max=verb["n_evaluation_max"] if objective == "first" else 2000,
        objective=objective,
        known=known,
    )
    assert (label_circuits(found.circuits) == task.label).all()
    assert len(set(canonical_keys(found.circuits))) == len(found.circuits)
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval."""
    from scipy.stats import t

    n = len(values)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else np.nan
    return float(np.mean(values)), half


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--policy", help="folder of a grn_phenotype run with stage 5")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3, 4, 5, 6])
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    learnt = CircuitPopulation(**knobs("simulator/grn_circuits.yaml", "seed")).simulate(42)[0]
    training = training_keys(learnt, "population")
    names = [*CLASSES, *([STAGE_5] if options.policy else [])]
    rows = []
    print(
        "| genes | phenotype | returned | "
        + " | ".join(f"evaluations per success, {name} | CPU s" for name in names)
        + " | new against training | without `training` | robustness, first | robust |\n"
        + "| ---: | --- |"
        + " ---: |" * (5 + 2 * len(names)),
        flush=True,
    )
    for n_gene in options.sizes:
        known = training if n_gene > 3 else frozenset[bytes]()
        for phenotype in PHENOTYPES:
            row: dict[str, Any] = {"n_gene": n_gene, "phenotype": phenotype}
            cells = []
            for name in names:
                if name == STAGE_5 and not 4 <= n_gene <= 6:
                    cells.append("– | –")
                    continue
                began = time.process_time()
                found = [
                    run(name, phenotype, n_gene, seed, "first", known, options.policy)
                    for seed in range(options.seeds)
                ]
                spent = (time.process_time() - began) / options.seeds
                each = [d.evaluations_per_success for d in found]
                mean, half = interval(each)
                row[name] = {"each": each, "mean": mean, "half": half, "cpu_s": spent}
                row[name]["returned"] = [len(d.circuits) for d in found]
                row[name]["new"] = float(
                    np.mean([k not in known for d in found for k in core_keys(d.circuits)])
                )
                cells.append(f"{mean:.2f} ± {half:.2f} | {spent:.2f}")
                if name == "evolutionary":
                    row["robustness_first"] = float(np.mean([d.robustness.mean() for d in found]))
            free = [
                key
                for seed in range(options.seeds)
                for key in core_keys(
                    run("evolutionary", phenotype, n_gene, seed, "first", frozenset()).circuits
                )
            ]
            row["new_without"] = float(np.mean([key not in training for key in free]))
            robust = run("evolutionary", phenotype, n_gene, 0, "robust", known)
            row["robustness_robust"] = float(robust.robustness.mean())
            rows.append(row)
            returned = {n for name in names if name in row for n in row[name]["returned"]}
            new = min(row[name]["new"] for name in names if name in row)
            print(
                f"| {n_gene} | {phenotype} | {', '.join(map(str, sorted(returned)))} | "
                + " | ".join(cells)
                + (f" | {100 * new:.0f} %" if known else " | –")
                + f" | {100 * row['new_without']:.0f} % | {row['robustness_first']:.2f} | "
                f"{row['robustness_robust']:.2f} |",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
