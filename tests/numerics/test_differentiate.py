"""Derivatives of sampled series."""

from __future__ import annotations

import pytest
import torch

from neuralgraph.core.errors import DataError
from neuralgraph.numerics.differentiate import METHODS, differentiate

UNEVEN = torch.tensor([0.0, 0.1, 0.25, 0.3, 0.5, 0.55, 0.8, 1.0, 1.3, 1.35], dtype=torch.float64)


def test_local_polynomial_reproduces_polynomials_of_its_degree_at_any_spacing():
    x = (2 - UNEVEN + 3 * UNEVEN**2)[None, :, None]
    smooth, slope = differentiate(UNEVEN, x, method="local_polynomial", window=5, degree=2)
    torch.testing.assert_close(smooth, x)
    torch.testing.assert_close(slope, (-1 + 6 * UNEVEN)[None, :, None])


def test_each_run_may_have_its_own_times():
    time = torch.stack([UNEVEN, 2 * UNEVEN + 1])
    _, slope = differentiate(
        time, (time**2)[..., None], method="local_polynomial", window=5, degree=2
    )
    torch.testing.assert_close(slope, 2 * time[..., None])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_slope_of_a_sine(method):
    time = torch.linspace(0, 2 * torch.pi, 101, dtype=torch.float64)
    x = time.sin()[None, :, None].expand(2, 101, 3)
    _, slope = differentiate(time, x, method=method, window=7, degree=3)
    assert slope.shape == x.shape
    assert float((slope - time.cos()[None, :, None]).abs().max()) < 1e-2


@pytest.mark.parametrize("method", ["local_polynomial", "smoothing_spline"])
def test_smoothing_beats_finite_differences_on_noise(method):
    time = torch.linspace(0, 2 * torch.pi, 201, dtype=torch.float64)
    noise = torch.randn(1, 201, 4, generator=torch.Generator().manual_seed(1)).double()
    x = time.sin()[None, :, None] + 0.02 * noise
    truth = time.cos()[None, :, None]

    def error(name: str) -> float:
        _, slope = differentiate(time, x, method=name, window=21, degree=3)
        return float((slope - truth).square().mean().sqrt())

    assert error(method) < 0.3 * error("finite_difference")


def test_a_constant_has_no_slope():
    x = torch.full((1, 10, 1), 3.0, dtype=torch.float64)
    _, slope = differentiate(UNEVEN, x, method="smoothing_spline", window=5, degree=2)
    assert float(slope.abs().max()) == 0


def test_too_few_frames_are_refused():
    with pytest.raises(DataError, match="at least 4 frames"):
        differentiate(
            UNEVEN[:3],
            torch.ones(1, 3, 1, dtype=torch.float64),
            method="local_polynomial",
            window=5,
            degree=3,
        )


def test_an_unknown_method_is_refused():
    with pytest.raises(DataError, match="known: local_polynomial"):
        differentiate(UNEVEN, torch.ones(1, 10, 1), method="magic", window=5, degree=2)
