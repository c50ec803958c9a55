"""Means beside the predictive model, the choice among them, and intervals over seeds."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from neuralgraph.systems.hyperbolic_response.baselines import Known


def load(name):
    path = Path(__file__).resolve().parents[2] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


unseen, spaces = load("hyperbolic_unseen"), load("hyperbolic_vs_euclidean")


def screen(shift: float = 0.0) -> Known:
    """Four genes alone and two pairs; each gene adds the same, the controls are off."""
    hot = torch.eye(6, dtype=torch.float64)[:4]
    hot = torch.cat([hot, hot[:1] + hot[1:2], hot[2:3] + hot[3:]])
    step = torch.linspace(-1, 2, 20, dtype=torch.float64)
    delta = hot.sum(1, keepdim=True) * step + shift * step.flip(0).square()
    n = len(hot)
    return Known(
        delta=delta, variance=torch.full_like(delta, 1e-4), hot=hot,
        context=torch.zeros(n, dtype=torch.long), control=torch.zeros(1, 20, dtype=torch.float64),
        control_variance=torch.full((1, 20), 1e-4, dtype=torch.float64), gene_of=torch.arange(6),
    )  # fmt: skip


def test_the_slope_on_the_number_of_genes_is_free_of_the_controls_and_the_mean_is_not():
    candidates, asked = unseen.means(), torch.eye(6, dtype=torch.float64)[4]
    step = torch.linspace(-1, 2, 20, dtype=torch.float64)
    slope, mean = (candidates[k] for k in ("slope on the number of genes", "perturbed mean"))
    for shift in (0.0, 3.0):
        assert torch.allclose(slope(screen(shift), asked), step)
    assert torch.allclose(mean(screen(), asked), step)
    assert not torch.allclose(mean(screen(3.0), asked), step, atol=0.1)
    singles = screen().rows(torch.arange(4))
    assert torch.allclose(slope(singles, asked), mean(singles, asked)), "no pairs, no slope"


def test_the_choice_is_what_predicts_training_perturbations_left_out_with_their_relatives():
    known = screen(3.0)
    left_out = []

    class Questions:
        def hidden(self, fold, asked, context):
            gone = (known.hot @ asked) > 0
            left_out.append(gone.nonzero()[:, 0].tolist())
            return gone

    names = ("perturbed mean", "slope on the number of genes")
    candidates = {name: unseen.means()[name] for name in names}
    wanted = screen().delta  # measured against other controls, whose noise is another
    assert unseen.choice(candidates, Questions(), 0, known, wanted) == names[1]
    assert unseen.choice(candidates, Questions(), 0, known, known.delta) == names[0]
    assert left_out[:4] == [[0, 4], [1, 4], [2, 5], [3, 5]]


def test_intervals_over_seeds_hold_what_differs_between_seeds():
    rng = np.random.default_rng(0)
    seed, pair = rng.normal(size=(6, 1)), 0.01 * rng.normal(size=(6, 40))

    def width(**how):
        low, high = np.quantile(spaces.resampled(seed + pair, rng, **how), [0.025, 0.975])
        assert low < (seed + pair).mean() < high
        return high - low

    assert width(is_same=False, over_seeds=False) < 0.01
    expected = 2 * 1.96 * seed.std() / 6**0.5
    assert 0.7 * expected < width(is_same=True, over_seeds=True) < 1.3 * expected
    both = np.array([[1.0, -1.0], [-1.0, 1.0]])  # what all seeds share is drawn together
    assert np.abs(spaces.resampled(both, rng, is_same=True, over_seeds=False)).max() == 0
    assert np.abs(spaces.resampled(both, rng, is_same=False, over_seeds=False)).max() == 1
