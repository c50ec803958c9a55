"""Circuit design: success, novelty, robustness and cost of each generator, over seeds.

    python scripts/bench_design.py [--training RUN_FOLDER] [--seeds 5] [--json FILE]

For every phenotype and 3 to 6 genes, 20 circuits by the knobs of ``conf/generator``. The cost is
the number of circuits the oracle labels for each circuit of the phenotype that was met; both
generators skip what is isomorphic to something they have seen. ``--training`` is a run or
simulation folder of ``grn_phenotype``: a circuit counts as new where none of its circuits to learn
from is isomorphic.
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
import yaml

from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn.circuit import canonical_keys
from neuralgraph.systems.boolean_grn.design.generators import Evolution, RandomSearch
from neuralgraph.systems.boolean_grn.design.search import Design, search, training_keys
from neuralgraph.systems.boolean_grn.design.task import DesignTask
from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES, label_circuits

CONF = Path(__file__).resolve().parents[1] / "conf"
GENERATORS = {"random": RandomSearch, "evolutionary": Evolution}


def knobs(path: str, *drop: str) -> dict[str, Any]:
    """Plain keys of a config file."""
    content = yaml.safe_load((CONF / path).read_text(encoding="utf-8"))
    return {k: v for k, v in content.items() if not k.startswith("_") and k not in drop}


def run(
    name: str, phenotype: str, n_gene: int, seed: int, objective: str, known: frozenset[bytes]
) -> Design:
    """One design at the defaults of ``conf/design.yaml``."""
    verb = knobs("design.yaml")
    names = ("rule", "update", "feedback", "is_connected")
    task = DesignTask(phenotype=phenotype, n_gene=n_gene, **{k: verb[k] for k in names})
    generator = GENERATORS[name](
        task, numpy_generator(seed, "design"), **knobs(f"generator/{name}.yaml")
    )
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


def new_ones(
    phenotype: str, n_gene: int, n_seed: int, known: frozenset[bytes]
) -> tuple[float, float]:
    """Circuits returned that are not in the training data (mean), and evaluations for each."""
    n_returned, n_evaluation = 0, 0
    for seed in range(n_seed):
        found = run("evolutionary", phenotype, n_gene, seed, "first", known)
        keys = set(canonical_keys(found.circuits))
        if found.n_class is None or found.n_class > len(found.circuits):
            assert not keys & known
        n_returned += len(keys - known)
        n_evaluation += found.n_evaluation
    return n_returned / n_seed, n_evaluation / max(1, n_returned)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", help="folder of a grn_phenotype run or simulation")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(arguments)
    rows = []
    print(
        "| genes | phenotype | returned | evaluations per success, random | evolutionary | "
        "new against training | returned with `training=` | evaluations per new one | "
        "robustness, first | robust | CPU ms a circuit |\n"
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for n_gene in (3, 4, 5, 6):
        known = frozenset[bytes]()
        if options.training is not None:
            known = training_keys(options.training, n_gene)
        for phenotype in PHENOTYPES:
            row: dict[str, Any] = {"n_gene": n_gene, "phenotype": phenotype}
            spent = 0.0
            for name in GENERATORS:
                began = time.process_time()
                found = [
                    run(name, phenotype, n_gene, seed, "first", frozenset())
                    for seed in range(options.seeds)
                ]
                if name == "evolutionary":
                    spent = time.process_time() - began
                each = [d.evaluations_per_success for d in found]
                row[name] = [float(np.mean(each)), float(np.min(each)), float(np.max(each))]
            first = found
            row["returned"] = [len(d.circuits) for d in first]
            row["robustness_first"] = float(np.mean([d.robustness.mean() for d in first]))
            robust = run("evolutionary", phenotype, n_gene, 0, "robust", frozenset())
            row["robustness_robust"] = float(robust.robustness.mean())
            keys = [key for d in first for key in canonical_keys(d.circuits)]
            row["novelty"] = float(np.mean([key not in known for key in keys]))
            if known:
                row["new"] = new_ones(phenotype, n_gene, options.seeds, known)
            row["cpu_ms"] = 1000 * spent / sum(row["returned"])
            rows.append(row)
            cost = [f"{row[k][0]:.2f} ({row[k][1]:.2f}–{row[k][2]:.2f})" for k in GENERATORS]
            returned = sorted(set(row["returned"]))
            new = f"{100 * row['novelty']:.0f} %" if known else "–"
            if known:
                new += f" | {row['new'][0]:g} | {row['new'][1]:.2f}"
            else:
                new += " | – | –"
            print(
                f"| {n_gene} | {phenotype} | {', '.join(map(str, returned))} | {cost[0]} | "
                f"{cost[1]} | {new} | {row['robustness_first']:.2f} | "
                f"{row['robustness_robust']:.2f} | {row['cpu_ms']:.1f} |",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
