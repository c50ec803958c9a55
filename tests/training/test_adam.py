"""The lean Adam against torch's own, bit by bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from neuralgraph.training.adam import Adam


def network(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def groups(model: nn.Module) -> list[dict[str, object]]:
    return [
        {"params": list(model[0].parameters()), "lr": 1e-2},  # type: ignore[index]
        {"params": list(model[2].parameters()), "lr": 3e-3},  # type: ignore[index]
    ]


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, n: int, skip: int = -1) -> None:
    x = torch.linspace(-1, 1, 12).view(4, 3)
    for i in range(n):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        if i == skip:
            model[2].bias.grad = None  # type: ignore[index, union-attr]
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + i)
        optimizer.step()


@pytest.mark.parametrize("skip", [-1, 0, 3])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_same_bytes_as_torch(skip: int, weight_decay: float) -> None:
    ours, theirs = network(), network()
    descend(ours, Adam(groups(ours), weight_decay=weight_decay), 7, skip)
    plain = torch.optim.Adam(groups(theirs), weight_decay=weight_decay, fused=True)
    descend(theirs, plain, 7, skip)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_goes_on_after_loading() -> None:
    whole, part = network(), network()
    descend(whole, Adam(groups(whole)), 3)
    one = Adam(groups(part))
    descend(part, one, 3)
    two = Adam(groups(part))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    other = copy.deepcopy(part)
    three = torch.optim.Adam(groups(other), fused=True)
    three.load_state_dict(copy.deepcopy(one.state_dict()))
    descend(part, two, 4)
    descend(other, three, 4)
    assert int(two.state_dict()["state"][0]["step"]) == 7
    for a, b in zip(part.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
