"""A small screen: as AnnData, as a file, and simulated."""

from __future__ import annotations

import numpy as np
import pytest

LABELS = ("control", "G0", "G1", "G2", "T9", "G0+G1", "G1+T9")
READ = {
    "layer": None,
    "expression": "auto",
    "perturbation_column": "perturbation",
    "control_label": "control",
    "strip": None,
    "combination_separator": "auto",
    "target_map": None,
    "cell_type_column": None,
    "batch_column": None,
    "gene_column": None,
    "protein": None,
    "keep": {},
    "max_cells": None,
    "max_order": None,
    "min_genes": 1,
    "min_cells": 4,
}
CUT = {
    "split": "combination",
    "fold": "all",
    "n_fold": 2,
    "seed_of_split": 0,
    "n_control_split": 2,
    "n_top_genes": None,
    "min_cells_per_gene": 0,
    "target_sum": 1e4,
    "reference": "cell_type",
    "validation_fraction": 0.0,
    "unseen_single_fraction": 0.0,
    "max_order": None,
    "graph": "identity",
    "graph_path": None,
    "graph_names_path": None,
    "graph_threshold": None,
    "graph_bridges": 0,
    "allow_isolated": True,
}
SIMULATE = {
    "n_gene": 60,
    "n_single": 10,
    "n_only_combined": 0,
    "n_double": 14,
    "near_fraction": 0.6,
    "near_distance": 4,
    "n_cell": 12,
    "n_control": 40,
    "n_cell_type": 1,
    "cell_type_spread": 0.3,
    "n_batch": 2,
    "batch_spread": 0.05,
    "branching": 3.0,
    "decay": 0.8,
    "repression": 0.3,
    "knockdown": 1.2,
    "epistasis": 1.5,
    "epistasis_length": 2.0,
    "masking": 0.7,
    "library_size": 3000.0,
    "library_spread": 0.3,
    "dispersion": 0.2,
    "missing_edges": 0.0,
    "false_edges": 0.0,
}


@pytest.fixture
def make_cells():
    """Counts of 20 cells for each label; 12 genes, of which T9 is not one."""

    def make(labels=LABELS, n=20, n_gene=12, seed=0):
        import anndata
        import pandas as pd

        rng = np.random.default_rng(seed)
        counts = rng.poisson(np.exp(rng.normal(1.5, 0.5, n_gene)), (n * len(labels), n_gene))
        obs = pd.DataFrame(
            {
                "perturbation": np.repeat(labels, n),
                "lane": np.tile(["a", "b"], n * len(labels) // 2),
                "type": np.tile(["x", "x", "y", "y"], n * len(labels) // 4),
            },
            index=[f"c{i}" for i in range(n * len(labels))],
        )
        var = pd.DataFrame(index=[f"G{i}" for i in range(n_gene)])
        return anndata.AnnData(counts.astype(np.float32), obs=obs, var=var)

    return make


@pytest.fixture
def read(tmp_path):
    """Write cells and read them as a recording."""
    from neuralgraph.systems.hyperbolic_response.recorded import RecordedScreen

    def call(cells, *, seed=0, **changed):
        path = tmp_path / "cells.h5ad"
        cells.write_h5ad(path)
        return RecordedScreen(path=str(path), **{**READ, **changed}).simulate(seed)[0]

    return call


@pytest.fixture
def simulated():
    """A small simulated screen: recording, truth, and what the simulator reveals."""
    from neuralgraph.systems.hyperbolic_response.simulator import SimulatedScreen

    def call(seed=0, **changed):
        screen = SimulatedScreen(**{**SIMULATE, **changed})
        recording, truth = screen.simulate(seed)
        return recording, truth, screen.reveal(recording, truth, graph=True)

    return call


@pytest.fixture
def cut():
    """A recording cut into folds."""
    from neuralgraph.systems.hyperbolic_response.dataset import ResponseData

    def call(recording, given=None, **changed):
        return ResponseData(recording, given or {}, **{**CUT, **changed})

    return call
