"""MLP and PowerLawMLP: fused layers against torch's own, gauge, start values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neuralgraph.core.errors import ConfigError
from neuralgraph.nn.mlp import ACTIVATIONS, MLP, PowerLawMLP


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(n_layers: int = 3, n_in: int = 3, activation: str = "tanh") -> MLP:
    return MLP(
        n_in,
        1,
        hidden_dim=8,
        n_layers=n_layers,
        generator=rng(),
        activation=activation,
        input_scale=(0.5, *[1.0] * (n_in - 1)),
    )


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_grid_equals_plain_layers(activation: str, n_layers: int, dtype: torch.dtype) -> None:
    mlp = network(n_layers, activation=activation).to(dtype)
    value = torch.randn(5, 4, generator=rng(1)).to(dtype).requires_grad_()
    feature = torch.randn(5, 2, generator=rng(2)).to(dtype).requires_grad_()
    rows = torch.cat([value.unsqueeze(2), feature.unsqueeze(1).expand(-1, 4, -1)], dim=2)
    plain = rows * mlp.input_scale
    for layer in mlp:
        plain = layer(plain)
    leaves = (value, feature, *mlp.parameters())
    expected = (plain, *torch.autograd.grad(plain.square().sum(), leaves, retain_graph=True))
    grid = mlp.grid(value, feature)
    result = (grid.unsqueeze(2), *torch.autograd.grad(grid.square().sum(), leaves))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for a, b in zip(result, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mlp(rows), plain, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(mlp.single(rows), plain.squeeze(2), rtol=tolerance, atol=tolerance)


def test_gradcheck_of_the_fused_layers() -> None:
    mlp = network().double()
    value = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    feature = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp.grid, (value, feature))
    assert torch.autograd.gradcheck(lambda w: mlp.grid(value, feature), (mlp.last.weight,))


def test_names_are_those_of_a_sequential() -> None:
    names = [name for name, _ in network(2).named_parameters()]
    assert names == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_same_generator_same_start_and_global_generator_untouched() -> None:
    before = torch.get_rng_state()
    a, b = network(), network()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert isinstance(a[0], nn.Linear)
    assert float(a[0].weight.detach().abs().max()) <= 3**-0.5


def test_all_zero_last_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="stops the gradient"):
        MLP(1, 1, hidden_dim=2, n_layers=2, generator=rng(), last_scale=0.0)


@pytest.mark.parametrize("bad", [{"n_layers": 0}, {"hidden_dim": 0}, {"activation": "sine"}])
def test_impossible_sizes_are_refused(bad: dict[str, object]) -> None:
    knobs = {"hidden_dim": 4, "n_layers": 2, "activation": "tanh", **bad}
    with pytest.raises(ConfigError):
        MLP(2, 1, generator=rng(), **knobs)  # type: ignore[arg-type]  # from the cases


def power_law() -> PowerLawMLP:
    return PowerLawMLP(hidden_dim=6, n_layers=3, generator=rng()).double()


def test_power_law_is_one_at_concentration_one() -> None:
    f = power_law()
    s = torch.tensor([0.5, 1.0, 2.0, 3.0]).double()
    at_one = f(torch.stack([torch.ones(4).double(), s], dim=1))
    torch.testing.assert_close(at_one, torch.ones(4, 1).double())


def test_power_law_without_correction_is_a_power() -> None:
    f = power_law()
    with torch.no_grad():
        f.net.last.weight.zero_()
        f.power.fill_(1.0)
    c, s = torch.rand(5).double() + 0.1, torch.tensor([1.0, 2, 1, 2, 3]).double()
    torch.testing.assert_close(f(torch.stack([c, s], dim=1)).squeeze(1), c**s)


def test_power_law_is_finite_at_zero() -> None:
    f = power_law()
    c = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    value = f.log_value(c, torch.ones(1).double())
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert c.grad is not None and torch.isfinite(c.grad).all()


def test_every_weight_of_the_power_law_moves() -> None:
    f = power_law()
    f.log_value(
        torch.rand(4, 3).double() * 5, torch.tensor([1.0, 2, 1, 2]).double()
    ).sum().backward()
    for name, parameter in f.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name
