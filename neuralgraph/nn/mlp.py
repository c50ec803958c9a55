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
        return self._hidden_from(x, 0)

    def hidden_grid(self, value: Tensor, feature: Tensor) -> Tensor:
        """:meth:`hidden` at every pair (value[n, b], feature[n]), without building the pairs.

        The part of the first layer that does not change along the batch is computed once a row.

        Args:
            value: First input, ``(n, n_batch)``.
            feature: Remaining inputs of each row, ``(n, n_in - 1)``.

        Returns:
            ``(n, n_batch, hidden_dim)``.
        """
        if len(self) == 1 or not isinstance(self[1], nn.Tanh):
            rows = feature.unsqueeze(1).expand(-1, value.shape[1], -1)
            return self.hidden(torch.cat([value.unsqueeze(2), rows], dim=2))
        first = self[0]
        assert isinstance(first, nn.Linear)
        scale = self.input_scale if self.is_scaled else None
        return self._hidden_from(_grid_tanh(value, feature, first.weight, first.bias, scale), 2)

    def grid(self, value: Tensor, feature: Tensor) -> Tensor:
        """The function at every pair (value[n, b], feature[n]) of a network with one output.

        Args:
            value: First input, ``(n, n_batch)``.
            feature: Remaining inputs, ``(n, n_in - 1)``.

        Returns:
            ``(n, n_batch)``.
        """
        return self._single(self.hidden_grid(value, feature))

    def single(self, x: Tensor) -> Tensor:
        """The function of a network with one output, ``(*, n_in) -> (*,)``."""
        return self._single(self.hidden(x))

    def forward(self, input: Tensor) -> Tensor:
        """``(*, n_in) -> (*, n_out)``."""
        return self.last(self.hidden(input))

    def _single(self, hidden: Tensor) -> Tensor:
        last = self.last
        flat = torch.mv(hidden.reshape(-1, last.in_features), last.weight.view(-1))
        value = flat.view(hidden.shape[:-1])
        return value if last.bias is None else value + last.bias

    def _hidden_from(self, x: Tensor, start: int) -> Tensor:
        shape = x.shape[:-1]
        for i in range(start, len(self) - 1, 2):
            layer, activation = self[i], self[i + 1]
            assert isinstance(layer, nn.Linear)
            if isinstance(activation, nn.Tanh):
                x = _linear_tanh(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias)
            else:
                x = activation(layer(x))
        return x.view(*shape, x.shape[-1])


def _is_sigmoid_faster(x: Tensor) -> bool:
    """In float32 on a CPU, tanh(x) = 2 sigmoid(2x) - 1 is 2.5 times faster, and equal to 1e-7."""
    return x.dtype == torch.float32 and x.device.type == "cpu"


def _tanh_of_double_(x: Tensor) -> Tensor:
    """tanh(x / 2) in place, by the sigmoid."""
    x.sigmoid_()
    return torch.add(_MINUS_ONE, x, alpha=2.0, out=x)


_MINUS_ONE = torch.tensor(-1.0)


class _LinearTanh(torch.autograd.Function):
    """tanh(x W^T + b) as one node of the graph, ``(n, n_in) -> (n, n_out)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if _is_sigmoid_faster(x):
            y = _tanh_of_double_(torch.addmm(bias, x, weight.t(), beta=2.0, alpha=2.0))
        else:
            y = torch.addmm(bias, x, weight.t()).tanh_()
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight, y = ctx.saved_tensors
        g = torch.ops.aten.tanh_backward(grads[0].contiguous(), y)
        return g @ weight if ctx.needs_input_grad[0] else None, g.t() @ x, g.sum(0)


class _GridTanh(torch.autograd.Function):
    """First layer on a grid: tanh(w_0 value[n, b] + W_rest feature[n] + bias), as one node."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, feature: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None
    ) -> Tensor:
        scaled = weight if scale is None else weight * scale
        twice = 2.0 if _is_sigmoid_faster(value) else 1.0
        row = torch.addmm(bias, feature, scaled[:, 1:].t(), beta=twice, alpha=twice)
        y = torch.addcmul(row.unsqueeze(1), value.unsqueeze(2), scaled[:, 0], value=twice)
        y = _tanh_of_double_(y) if twice == 2.0 else y.tanh_()
        ctx.save_for_backward(value, feature, scaled, scale, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, feature, scaled, scale, y = ctx.saved_tensors
        g = torch.ops.aten.tanh_backward(grads[0].contiguous(), y)
        flat, row = g.view(-1, g.shape[2]), g.sum(1)
        grad_value = grad_feature = None
        if ctx.needs_input_grad[0]:
            grad_value = (flat @ scaled[:, 0]).view_as(value)
        if ctx.needs_input_grad[1]:
            grad_feature = row @ scaled[:, 1:]
        grad_weight = torch.empty_like(scaled)
        torch.mv(flat.t(), value.reshape(-1), out=grad_weight[:, 0])
        grad_weight[:, 1:] = row.t() @ feature
        if scale is not None:
            grad_weight *= scale
        return grad_value, grad_feature, grad_weight, row.sum(0), None


def _linear_tanh(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return cast(Tensor, _LinearTanh.apply(x, weight, bias))


def _grid_tanh(
    value: Tensor, feature: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None
) -> Tensor:
    return cast(Tensor, _GridTanh.apply(value, feature, weight, bias, scale))


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
        log_c = concentration.clamp_min(self.floor).log()
        padded = nn.functional.pad(log_c, (0, 1))  # a last column at c = 1, where N is subtracted
        value = self.net.grid(padded, order.unsqueeze(1))
        value = value[:, :-1] - value[:, -1:]
        return torch.addcmul(value, self.power * order.unsqueeze(1), log_c)

    def forward(self, input: Tensor) -> Tensor:
        """``(*, 2)``, features [c, |s|] -> ``(*, 1)``."""
        flat = input.reshape(-1, 2)
        value = self.log_value(flat[:, :1], flat[:, 1]).exp()
        return value.reshape(*input.shape[:-1], 1)
