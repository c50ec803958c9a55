"""Multilayer perceptrons with their own generator, and one that starts from a power law."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from neuralgraph.core.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "silu": nn.SiLU, "relu": nn.ReLU}


class MLP(nn.Sequential):
    r"""Linear layers with an activation between them; weights are ``0.weight, 2.weight, …``.

    Weights and biases start uniform in $\pm 1/\sqrt{\text{fan in}}$, the last layer times
    ``last_scale``. A last layer of exactly 0 is refused: with it (and a tanh network of zeros
    before) no weight but the last bias ever receives a gradient.

    Args:
        n_in, n_out: Widths of input and output.
        hidden_dim: Width of every hidden layer.
        n_layers: Number of linear layers, at least 1.
        generator: Source of the initial weights.
        activation: ``tanh``, ``silu`` or ``relu``.
        input_scale: Factor on each input feature, length ``n_in``; keeps measured quantities of
            any unit near 1 without changing what the function is called with.
        last_scale: Factor on the initial last layer, > 0.

    Raises:
        ConfigError: an impossible size, activation or scale.

    Source:
        own.
    """

    input_scale: Tensor

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        hidden_dim: int,
        n_layers: int,
        generator: torch.Generator,
        activation: str = "tanh",
        input_scale: Sequence[float] | None = None,
        last_scale: float = 1.0,
    ) -> None:
        if n_layers < 1 or (n_layers > 1 and hidden_dim < 1):
            raise ConfigError(
                f"an MLP needs n_layers >= 1 and hidden_dim >= 1, got {n_layers} and {hidden_dim}"
            )
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation}")
        if not last_scale > 0:
            raise ConfigError(
                f"last_scale must be positive, got {last_scale}: an all-zero last layer stops the "
                "gradient of every layer before it"
            )
        if input_scale is not None and len(input_scale) != n_in:
            raise ConfigError(f"input_scale must have length {n_in}, got {len(input_scale)}")
        width = [n_in, *[hidden_dim] * (n_layers - 1), n_out]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(width)):
            # skip_init leaves the global generator alone
            linear: nn.Linear = nn.utils.skip_init(nn.Linear, a, b)  # type: ignore[assignment]
            bound = 1 / math.sqrt(max(a, 1))
            with torch.no_grad():
                linear.weight.uniform_(-bound, bound, generator=generator)
                linear.bias.uniform_(-bound, bound, generator=generator)
                if i == n_layers - 1:
                    linear.weight.mul_(last_scale)
                    linear.bias.mul_(last_scale)
            layers.append(linear)
            if i < n_layers - 1:
                layers.append(ACTIVATIONS[activation]())
        super().__init__(*layers)
        scale = torch.ones(n_in) if input_scale is None else torch.tensor(input_scale).float()
        self.is_scaled = bool((scale != 1).any())
        self.is_tanh = activation == "tanh"
        self.register_buffer("input_scale", scale)

    @property
    def last(self) -> nn.Linear:
        """Last linear layer."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def hidden(self, x: Tensor) -> Tensor:
        """Everything before the last linear layer: ``(*, n_in) -> (*, hidden_dim)``.

        A sum over inputs commutes with the last layer, so that a caller may sum these first.
        """
        if self.is_scaled:
            x = x * self.input_scale
        layers = self._linear_layers()
        if len(layers) == 1:
            return x
        if not self.is_tanh:
            for i in range(len(self) - 1):
                x = self[i](x)
            return x
        rows = _Rows.apply(x.reshape(-1, x.shape[-1]), False, *_parameters(layers[:-1]))
        return cast(Tensor, rows).view(*x.shape[:-1], -1)

    def hidden_grid(self, value: Tensor, feature: Tensor) -> Tensor:
        """:meth:`hidden` at every pair (value[n, b], feature[n]).

        Args:
            value: First input, ``(n, n_batch)``.
            feature: Remaining inputs of each row, ``(n, n_in - 1)``.

        Returns:
            ``(n, n_batch, hidden_dim)``.
        """
        layers = self._linear_layers()
        if len(layers) == 1 or not self.is_tanh:
            rows = feature.unsqueeze(1).expand(-1, value.shape[1], -1)
            return self.hidden(torch.cat([value.unsqueeze(2), rows], dim=2))
        scale = self.input_scale if self.is_scaled else None
        rows = _Grid.apply(value, feature, scale, False, *_parameters(layers[:-1]))
        return cast(Tensor, rows).view(*value.shape, -1)

    def grid(self, value: Tensor, feature: Tensor) -> Tensor:
        """The function at every pair (value[n, b], feature[n]) of a network with one output.

        Args:
            value: First input, ``(n, n_batch)``.
            feature: Remaining inputs, ``(n, n_in - 1)``.

        Returns:
            ``(n, n_batch)``.
        """
        layers = self._linear_layers()
        if len(layers) == 1 or not self.is_tanh:
            return self.last(self.hidden_grid(value, feature)).squeeze(2)
        scale = self.input_scale if self.is_scaled else None
        rows = _Grid.apply(value, feature, scale, True, *_parameters(layers))
        return cast(Tensor, rows).view(value.shape)

    def single(self, x: Tensor) -> Tensor:
        """The function of a network with one output, ``(*, n_in) -> (*,)``."""
        layers = self._linear_layers()
        if len(layers) == 1 or not self.is_tanh:
            return self.last(self.hidden(x)).squeeze(-1)
        if self.is_scaled:
            x = x * self.input_scale
        rows = _Rows.apply(x.reshape(-1, x.shape[-1]), True, *_parameters(layers))
        return cast(Tensor, rows).view(x.shape[:-1])

    def forward(self, input: Tensor) -> Tensor:
        """``(*, n_in) -> (*, n_out)``."""
        return self.last(self.hidden(input))

    def _linear_layers(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self._modules.values())[::2])


def _parameters(layers: list[nn.Linear]) -> list[Tensor | None]:
    return [x for layer in layers for x in (layer.weight, layer.bias)]


# A tanh network is one node of the autograd graph, with tanh(z) = 2 s - 1, s = sigmoid(2 z): one
# pass over the hidden values instead of several, and in float32 on a CPU 2.5 times faster than tanh
# (equal to 1e-7). The factors 2 and -1 go into the next layer's weights. Of a gradient g with
# respect to tanh(z), g s (1 - s) is kept; the missing factors 4 are collected in ``k``.


def _forward(s: Tensor, parameters: Sequence[Tensor | None], is_single: bool) -> list[Tensor]:
    """Hidden values of the further layers, ``s`` being the first; at last the result."""
    kept = [s]
    n_hidden = len(parameters) - 2 if is_single else len(parameters)
    for i in range(0, n_hidden, 2):
        weight, bias = cast(Tensor, parameters[i]), cast(Tensor, parameters[i + 1])
        s = torch.addmm(bias - weight.sum(1), s, weight.t(), beta=2, alpha=4).sigmoid_()
        kept.append(s)
    if is_single:
        weight, bias = cast(Tensor, parameters[-2])[0], parameters[-1]
        shift = -weight.sum() if bias is None else bias - weight.sum()
        kept.append(torch.addmv(shift, s, weight, alpha=2))
    else:
        kept.append(torch.add(s.new_tensor(-1.0), s, alpha=2))
    return kept


def _backward(
    g: Tensor, kept: Sequence[Tensor], parameters: Sequence[Tensor | None], is_single: bool
) -> tuple[Tensor, float, list[Tensor | None]]:
    """Gradient at the first layer, ``k`` times which counts, and those of later parameters."""
    found: list[Tensor | None] = []
    s = kept[-1]
    n_hidden = len(parameters)
    if is_single:
        n_hidden -= 2
        weight, bias = cast(Tensor, parameters[-2]), parameters[-1]
        total = g.sum()
        found = [torch.addmv(-total, s.t(), g, alpha=2).unsqueeze(0)]
        found.append(None if bias is None else total.view(1))
        g = g.unsqueeze(1) * weight
    q = torch.ops.aten.sigmoid_backward(g, s)
    k = 4.0
    for i in range(n_hidden - 2, -1, -2):
        s, weight = kept[i // 2], cast(Tensor, parameters[i])
        total = q.sum(0)
        found = [
            torch.addmm(total.unsqueeze(1), q.t(), s, beta=-k, alpha=2 * k),
            total.mul_(k),
            *found,
        ]
        # total is scaled in place after the line above has used it
        q = torch.ops.aten.sigmoid_backward(q @ weight, s)
        k *= 4.0
    return q, k, found


class _Rows(torch.autograd.Function):
    """Tanh network on rows, ``(n, n_in) -> (n, hidden_dim)``, or ``(n,)`` when ``is_single``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, is_single: bool, *parameters: Tensor | None) -> Tensor:
        weight, bias = cast(Tensor, parameters[0]), cast(Tensor, parameters[1])
        s = torch.addmm(bias, x, weight.t(), beta=2, alpha=2).sigmoid_()
        *kept, result = _forward(s, parameters[2:], is_single)
        ctx.is_single, ctx.n_kept = is_single, len(kept)
        ctx.save_for_backward(x, *kept, *parameters)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        kept, parameters = rest[: ctx.n_kept], rest[ctx.n_kept :]
        q, k, found = _backward(grads[0], kept, parameters[2:], ctx.is_single)
        q = q.mul_(k)
        grad_x = q @ parameters[0] if ctx.needs_input_grad[0] else None
        return grad_x, None, q.t() @ x, q.sum(0), *found


class _Grid(torch.autograd.Function):
    """The same at every pair (value[n, b], feature[n]), rows n * n_batch + b."""

    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        feature: Tensor,
        scale: Tensor | None,
        is_single: bool,
        *parameters: Tensor | None,
    ) -> Tensor:
        weight, bias = cast(Tensor, parameters[0]), cast(Tensor, parameters[1])
        if scale is not None:
            weight = weight * scale
        # rows [value, feature, 1], so that one product gives the layer and one its gradient
        x = value.new_empty(*value.shape, weight.shape[1] + 1)
        x[:, :, 0] = value
        x[:, :, 1:-1] = feature.unsqueeze(1)
        x[:, :, -1] = 1.0
        x = x.view(-1, x.shape[2])
        twice = torch.cat([weight, bias.unsqueeze(1)], dim=1).mul_(2)
        s = torch.mm(x, twice.t()).sigmoid_()
        *kept, result = _forward(s, parameters[2:], is_single)
        ctx.is_single, ctx.n_kept, ctx.shape = is_single, len(kept), value.shape
        ctx.save_for_backward(x, weight, scale, *kept, *parameters[2:])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, *rest = ctx.saved_tensors
        kept, parameters = rest[: ctx.n_kept], rest[ctx.n_kept :]
        q, k, found = _backward(grads[0], kept, parameters, ctx.is_single)
        grad_value = grad_feature = None
        if ctx.needs_input_grad[0]:
            grad_value = (q @ (k * weight[:, 0])).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            grad_feature = (q @ (k * weight[:, 1:])).view(*ctx.shape, -1).sum(1)
        both = torch.mm(x.t(), q).mul_(k)
        grad_weight, grad_bias = both[:-1].t(), both[-1]
        if scale is not None:
            grad_weight = grad_weight * scale
        return grad_value, grad_feature, None, None, grad_weight, grad_bias, *found


class PowerLawMLP(nn.Module):
    r"""Positive function of a concentration, a learned correction to a power law.

    $f(c, s) = \exp\big(p\, s \log c + N(\log c, s) - N(0, s)\big)$ with a network $N$ and a learned
    power $p$. $f(1, s) = 1$ by construction, which fixes the gauge between $f$ and the rate
    constants; $c$ is floored at ``floor`` so that 0 is allowed.

    Args:
        hidden_dim, n_layers, activation: Of the network, as in :class:`MLP`.
        generator: Source of the initial weights.
        power: Initial $p$ (mass action is $p = 1$, $N = 0$).
        floor: Smallest concentration told apart.
        last_scale: Factor on the network's initial last layer.

    Source:
        own; the skip keeps noisy fits from collapsing to a constant.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        n_layers: int,
        generator: torch.Generator,
        activation: str = "tanh",
        power: float = 0.5,
        floor: float = 1e-8,
        last_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.net = MLP(
            2,
            1,
            hidden_dim=hidden_dim,
            n_layers=n_layers,
            generator=generator,
            activation=activation,
            last_scale=last_scale,
        )
        # the last bias cancels in N(log c, s) - N(0, s): it is no parameter
        self.net.last.register_parameter("bias", None)
        self.power = nn.Parameter(torch.tensor(float(power)))
        self.floor = float(floor)

    def log_value(self, concentration: Tensor, order: Tensor) -> Tensor:
        """Logarithm of f.

        Args:
            concentration: ``(n, n_batch)``, >= 0.
            order: |s| of each row, ``(n,)``.

        Returns:
            ``(n, n_batch)``.
        """
        return self.log_value_at(concentration.clamp_min(self.floor).log(), order)

    def log_value_at(self, log_c: Tensor, order: Tensor) -> Tensor:
        """:meth:`log_value` from the logarithm of the concentration."""
        column = order.unsqueeze(1)
        padded = nn.functional.pad(log_c, (0, 1))  # a last column at c = 1, where N is subtracted
        value = self.net.grid(padded, column)
        value = value[:, :-1] - value[:, -1:]
        return torch.addcmul(value, self.power * column, log_c)

    def forward(self, input: Tensor) -> Tensor:
        """``(*, 2)``, features [c, |s|] -> ``(*, 1)``."""
        flat = input.reshape(-1, 2)
        value = self.log_value(flat[:, :1], flat[:, 1]).exp()
        return value.reshape(*input.shape[:-1], 1)
