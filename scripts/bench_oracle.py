"""Circuits labelled per second: the exact oracle, the naive one of the tests, and biodivine_aeon.

    python scripts/bench_oracle.py [--seconds 3] [--json FILE]

All in one process on one thread, in seconds of this process (``time.process_time``), on the same
random circuits (expected in-degree 2, half inhibitions). Nothing is looked up: each circuit's
labels come from all of its 2^n states each time. The first call of a compiled function is left out.
The rows differ in what they do, as the column says: only the first two give phenotypes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import numpy as np

from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn.circuit import SignedCircuit, canonical_form, random_circuits
from neuralgraph.systems.boolean_grn.network import BooleanNetwork
from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES, analyse_circuits, label_circuits

NAIVE = Path(__file__).resolve().parents[1] / "tests/systems/boolean_grn/naive.py"
SIZES = (3, 4, 5, 6, 8, 10, 12)


def naive_oracle() -> Any:
    """The slow oracle of the tests."""
    spec = importlib.util.spec_from_file_location("naive_oracle", NAIVE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rate(work: Callable[[Any], Any], circuits: Any, seconds: float) -> tuple[float, int]:
    """Circuits per second of process time; the batch is repeated or cut to fill the time."""
    n_done, spent = 0, 0.0
    size = min(len(circuits), 1)
    while spent < seconds:
        batch = circuits[:size]
        began = time.process_time()
        work(batch)
        elapsed = time.process_time() - began
        n_done, spent = n_done + len(batch), spent + elapsed
        if elapsed < 0.2 * seconds:
            size = min(len(circuits), size * 4)
    return n_done / spent, n_done


def aeon_rows(n_gene: int) -> dict[str, Callable[[Any], Any]]:
    """What the symbolic engine offers: fixed points, and asynchronous attractors."""
    import biodivine_aeon as aeon

    def graphs(texts: list[str]) -> Any:
        for text in texts:
            model = aeon.BooleanNetwork.from_bnet(text).infer_valid_graph()
            yield aeon.AsynchronousGraph(model)

    def fixed(texts: list[str]) -> None:
        for graph in graphs(texts):
            every = graph.mk_unit_colored_vertices()
            aeon.FixedPoints.symbolic(graph, every).vertices().cardinality()

    def attractors(texts: list[str]) -> None:
        for graph in graphs(texts):
            aeon.Attractors.attractors(graph, graph.mk_unit_colored_vertices())

    return {
        "biodivine_aeon: build, fixed points": fixed,
        "biodivine_aeon: build, asynchronous attractors": attractors,
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the table; ``--json`` keeps the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="for each cell")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args(arguments)
    naive = naive_oracle()
    results: dict[str, dict[int, float]] = {}
    for n_gene in SIZES:
        circuits = random_circuits(
            max(2_000, 1_000_000 // 4 ** (n_gene - 3)),
            n_gene,
            in_degree=2.0,
            share_inhibition=0.5,
            generator=numpy_generator(1, f"bench/{n_gene}"),
        )
        label_circuits(circuits[:2])
        analyse_circuits(circuits[:2])
        canonical_form(circuits[:2])
        rows: dict[str, Callable[[Any], Any]] = {
            "exact oracle: phenotypes": label_circuits,
            "exact oracle: phenotypes and every fact": analyse_circuits,
            "exact oracle: phenotypes, asynchronous": lambda b: label_circuits(
                b, update="asynchronous"
            ),
            "canonical form": canonical_form,
        }
        if n_gene <= 8:
            rows["naive oracle of the tests: phenotypes"] = naive.label_all
        for name, work in rows.items():
            results.setdefault(name, {})[n_gene] = rate(work, circuits, options.seconds)[0]
        few = circuits[:500]
        texts = [
            BooleanNetwork.from_circuit(SignedCircuit.from_adjacency(m)).to_bnet() for m in few
        ]
        try:
            others = aeon_rows(n_gene)
        except ImportError:
            others = {}
            print("biodivine_aeon is not installed: its rows are left out")
        for name, work in others.items():
            results.setdefault(name, {})[n_gene] = rate(work, texts, options.seconds)[0]
        if n_gene <= 5:
            expected = naive.label_all(few[:200])
            found = [PHENOTYPES[k] for k in label_circuits(few[:200])]
            assert found == expected, "the two oracles disagree"
        shown = "  ".join(f"{name} {values[n_gene]:,.0f}/s" for name, values in results.items()
                          if n_gene in values)  # fmt: skip
        print(f"{n_gene} genes: {shown}", flush=True)
    print(f"\n| circuits per second | {' | '.join(f'{n} genes' for n in SIZES)} |")
    print("| --- |" + " ---: |" * len(SIZES))
    for name, values in results.items():
        cells = [f"{values[n]:,.0f}" if n in values else "" for n in SIZES]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
