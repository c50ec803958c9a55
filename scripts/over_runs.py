"""Compares metrics over the runs of a sweep, with the run (a network, a data set) as the unit.

    python -m neuralgraph.train -m +experiment=perturb_ode_simulated_graph model.n_seed=2 seed=1,2,3
    python scripts/over_runs.py FOLDER/summary.csv test_mse_single_standard \
        test_mse_single_no_change test_mse_single_additive

The first metric is set against each of the others: in how many runs it is lower, the geometric mean
of the ratio and the mean of the difference with 95 % intervals (bootstrap over runs).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

N_DRAW = 10_000
"""Draws of the bootstrap."""


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean of values ``(n_run,)``, reproducible."""
    rows = np.random.default_rng(0).integers(len(values), size=(N_DRAW, len(values)))
    low, high = np.quantile(values[rows].mean(1), (0.025, 0.975))
    return float(low), float(high)


def compared(mine: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How ``mine`` stands to ``other``, both ``(n_run,)`` and above 0.

    Returns:
        ``runs``, ``lower`` (runs in which mine is lower), ``ratio`` (geometric mean) and
        ``difference`` (mean), each with ``_lo`` and ``_hi``.
    """
    logs, apart = np.log(mine / other), mine - other
    ratio, difference = interval(logs), interval(apart)
    return {
        "runs": len(mine),
        "lower": int((mine < other).sum()),
        "ratio": float(np.exp(logs.mean())),
        "ratio_lo": float(np.exp(ratio[0])),
        "ratio_hi": float(np.exp(ratio[1])),
        "difference": float(apart.mean()),
        "difference_lo": difference[0],
        "difference_hi": difference[1],
    }


def columns(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Columns of a summary by name; runs in which one of them is missing are left out.

    Raises:
        SystemExit: a name that is no column, with those that are like it.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known = list(rows[0]) if rows else []
    for name in names:
        if name not in known:
            raise SystemExit(f"{path} has no column '{name}'; it has: {', '.join(known)}")
    whole = [row for row in rows if all(row[name] for name in names)]
    return {name: np.array([float(row[name]) for row in whole]) for name in names}


def main(arguments: list[str] | None = None) -> None:
    """Print one row for each metric compared with."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("summary", type=Path, help="summary.csv of a sweep")
    parser.add_argument("metric", help="the metric to judge, lower is better")
    parser.add_argument("others", nargs="+", help="metrics to compare it with")
    chosen = parser.parse_args(arguments)
    table = columns(chosen.summary, [chosen.metric, *chosen.others])
    print(f"{chosen.metric}: mean {table[chosen.metric].mean():.4g}")
    for name in chosen.others:
        c = compared(table[chosen.metric], table[name])
        print(
            f"{name}: mean {table[name].mean():.4g}; lower in {c['lower']} of {c['runs']} runs; "
            f"ratio {c['ratio']:.3f} [{c['ratio_lo']:.3f}, {c['ratio_hi']:.3f}]; "
            f"difference {c['difference']:.4g} [{c['difference_lo']:.4g}, "
            f"{c['difference_hi']:.4g}]"
        )


if __name__ == "__main__":
    main()
