"""Small populations and models for the tests of the learning half."""

from __future__ import annotations

from typing import Any

import torch

from neuralgraph.core.seeding import torch_generator
from neuralgraph.systems.boolean_grn.dataset import GRNData
from neuralgraph.systems.boolean_grn.loss import GRNObjective
from neuralgraph.systems.boolean_grn.model import GRNRows
from neuralgraph.systems.boolean_grn.simulator import CircuitPopulation

SMALL: dict[str, Any] = {
    "sizes_learn": [4], "n_natural": 60, "n_per_phenotype": 5, "sizes_test": [4, 6], "n_test": 40,
    "n_test_per_phenotype": 3, "in_degree": 2.2, "share_inhibition": 0.5, "n_fold": 5,
    "fold": None,
}  # fmt: skip
ROW: dict[str, Any] = {
    "n_hidden": 16, "n_pair": 8, "n_walk": 4, "n_layer": 2,
    "spectra": ["walks", "laplacian", "signed_laplacian", "magnetic_laplacian"],
    "use_dynamics": True, "use_relations": True, "use_interventions": True, "n_start": 32,
    "n_step": 40, "n_window": 12, "tau": 10.0,
}  # fmt: skip
COEFFICIENTS: dict[str, float] = {
    "label_smoothing": 0.0, "coeff_contrastive": 0.05, "contrastive_temperature": 0.1,
    "coeff_constraint": 0.1, "coeff_dynamics": 0.5, "coeff_auxiliary": 0.1,
}  # fmt: skip


def population(seed: int = 0, *, attractors: bool = True, **changed: Any):
    """Recording, truth and data of a small population."""
    simulator = CircuitPopulation(**{**SMALL, **changed})
    recording, truth = simulator.simulate(seed)
    given = simulator.reveal(recording, truth, attractors=attractors)
    data = GRNData(recording, given, validation_fraction=0.1).astype(torch.float32)
    return recording, truth, data


def rows(
    spec, *, informed: bool = True, structure: bool = True, explorer=None, **changed: Any
) -> GRNRows:
    """Small classifiers."""
    arguments = {**ROW, **changed}
    return GRNRows(
        spec,
        generator=torch_generator(0, "model"),
        informed=arguments if informed else None,
        structure={**arguments, "use_dynamics": False} if structure else None,
        explorer=explorer,
    )


def objective(**changed: float) -> GRNObjective:
    """Every term on, unless changed."""
    return GRNObjective(**{**COEFFICIENTS, **changed})
