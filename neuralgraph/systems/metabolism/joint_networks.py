"""Closed-form results put into the networks of the model."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neuralgraph.nn.mlp import MLP, PowerLawMLP
from neuralgraph.systems.metabolism.joint_data import KineticData
from neuralgraph.systems.metabolism.joint_law import SMALLEST_CONCENTRATION, Law
from neuralgraph.systems.metabolism.joint_types import Types, places_of_types

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

N_NODE = 128
"""Concentrations at which ``MLP_sub`` is fitted, for each |s|."""
N_NODE_TYPE = 48
"""Concentrations at which ``MLP_node`` is fitted, for each type."""


def set_law(model: Metabolism_Propagation, data: KineticData, law: Law) -> float:
    """Put the law into ``MLP_sub``; returns the relative error of fit of log f (of f: plain)."""
    log_c = data.concentration.clamp_min(SMALLEST_CONCENTRATION).log()
    low, high = min(float(log_c.min()), 0.0), max(float(log_c.max()), 0.0)
    module = copy.deepcopy(model.MLP_sub).double().cpu()
    error = 0.0
    if isinstance(module, PowerLawMLP):
        if law.power is not None:
            module.power.fill_(law.power)
            module.net.last.weight.zero_()
        else:
            x = torch.linspace(low, high, N_NODE, dtype=torch.float64)
            curve = [law.log_value(x, n) for n in range(len(law.levels))]
            slope = torch.cat([s * x for s in law.levels])
            power = (slope @ torch.cat(curve)) / (slope @ slope)
            module.power.copy_(power)
            inputs = torch.cat([torch.stack([x, s.expand_as(x)], 1) for s in law.levels])
            origin = inputs * torch.tensor([0.0, 1.0], dtype=torch.float64)
            error = fit_network(module.net, inputs, torch.cat(curve) - power * slope, offset=origin)
    else:
        top = math.exp(high)
        c = top * torch.linspace(0.0, 1.0, N_NODE, dtype=torch.float64).square()
        c = torch.cat([c[1:], torch.ones(1, dtype=torch.float64)])
        inputs = torch.cat([torch.stack([c, s.expand_as(c)], 1) for s in law.levels])
        clipped = c.log().clamp_min(low)
        target = torch.cat([law.log_value(clipped, n).exp() for n in range(len(law.levels))])
        error = fit_network(module, inputs, target)
    model.MLP_sub.load_state_dict(module.state_dict())
    return error


def set_homeostasis(
    model: Metabolism_Propagation, data: KineticData, types: Types, *, at: float
) -> float:
    """Put the lines of the types into ``MLP_node`` and ``a``; returns the relative error of fit."""
    place = places_of_types(types, model.a.shape[1])
    model.a.copy_(types.posterior @ place)
    top = float(data.concentration.max())
    c = top * torch.linspace(0.0, 1.0, N_NODE_TYPE, dtype=torch.float64).square()
    inputs = torch.cat([torch.cat([c[:, None], p.expand(len(c), -1)], 1) for p in place])
    target = torch.cat([m[0] + m[1] * (c - at) for m in types.mean])
    module = copy.deepcopy(model.MLP_node).double().cpu()
    error = fit_network(module, inputs, target)
    model.MLP_node.load_state_dict(module.state_dict())
    return error


@torch.no_grad()
def fit_network(
    net: MLP,
    inputs: Tensor,
    target: Tensor,
    *,
    offset: Tensor | None = None,
    n_iteration: int = 200,
) -> float:
    r"""Fit a network with one output to few points, by Levenberg–Marquardt in their space.

    With fewer points than weights the step is $J^\top (J J^\top + \mu)^{-1} r$. $J J^\top$ needs
    no Jacobian: it is $\sum_l (\delta_l \delta_l^\top) \circ (h_l h_l^\top + 1)$ over layers.

    Args:
        net: The network, changed in place.
        inputs: ``(n_point, n_in)``.
        target: ``(n_point,)``.
        offset: Inputs whose values are subtracted, ``(n_point, n_in)``, or ``None``.
        n_iteration: Bound on the steps.

    Returns:
        Root mean square of the error, relative to the target's.

    Source:
        own; Levenberg (1944), Marquardt (1963).
    """
    points = inputs if offset is None else torch.cat([inputs, offset])
    n = target.numel()
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    weights = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    size = float(target.square().mean().sqrt()) or 1.0

    def difference(value: Tensor) -> Tensor:
        return value if offset is None else value[:n] - value[n:]

    damping = 1e-3
    error = target - difference(net.single(points))
    score = float(error.square().mean())
    for _ in range(n_iteration):
        h, delta = _activations(net, points)
        kernel = sum(
            (d @ d.T) * (x @ x.T + (layer.bias is not None))
            for x, d, layer in zip(h, delta, layers, strict=True)
        )
        assert isinstance(kernel, Tensor)
        if offset is not None:
            kernel = kernel[:n, :n] - kernel[:n, n:] - kernel[n:, :n] + kernel[n:, n:]
        scale = float(kernel.diagonal().mean())
        before = [w.clone() for w in weights]
        is_better = False
        for _ in range(12):
            damped = kernel + damping * scale * torch.eye(n, dtype=kernel.dtype)
            factor, failed = torch.linalg.cholesky_ex(damped)
            if int(failed) == 0:
                dual = torch.cholesky_solve(error[:, None], factor)[:, 0]
                if offset is not None:
                    dual = torch.cat([dual, -dual])
                for layer, x, d in zip(layers, h, delta, strict=True):
                    step = dual[:, None] * d
                    layer.weight.add_(step.T @ x)
                    if layer.bias is not None:
                        layer.bias.add_(step.sum(0))
                new = target - difference(net.single(points))
                new_score = float(new.square().mean())
                if new_score < score:
                    is_better = True
                    break
                for w, old in zip(weights, before, strict=True):
                    w.copy_(old)
            damping *= 8
        if not is_better:
            break
        gain = 1 - new_score / score
        error, score = new, new_score
        damping = max(damping / 6, 1e-15)
        if score < (1e-9 * size) ** 2 or (gain < 1e-3 and damping < 1e-14):
            break
    return math.sqrt(score) / size


def _activations(net: MLP, points: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs of every linear layer, and the derivative of the output by its pre-activations."""
    with torch.enable_grad():
        x = points * net.input_scale if net.is_scaled else points
        h: list[Tensor] = []
        pre: list[Tensor] = []
        for layer in net:
            if isinstance(layer, nn.Linear):
                h.append(x.detach())
                bias = None if layer.bias is None else layer.bias.detach()
                x = nn.functional.linear(x, layer.weight.detach(), bias)
                if not pre:
                    x.requires_grad_()
                pre.append(x)
            else:
                x = layer(x)
        delta = torch.autograd.grad(x.sum(), pre)
    return h, list(delta)
