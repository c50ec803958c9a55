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
from neuralgraph.numerics.incidence import GroupSum

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
            linear: nn.Linear = nn.utils.skip_init(nn.Linear, a, b)  # type: ignore[assignment]  # typed Module
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


def _hidden(s: Tensor, parameters: Sequence[Tensor | None]) -> list[Tensor]:
    """``s`` of the first hidden layer, then of those after it."""
    kept = [s]
    for i in range(0, len(parameters), 2):
        weight, bias = cast(Tensor, parameters[i]), cast(Tensor, parameters[i + 1])
        s = torch.addmm(bias - weight.sum(1), s, weight.t(), beta=2, alpha=4).sigmoid_()
        kept.append(s)
    return kept


def _forward(s: Tensor, parameters: Sequence[Tensor | None], is_single: bool) -> list[Tensor]:
    """The same and the result: of the last layer where ``is_single``, else hidden values."""
    if not is_single:
        kept = _hidden(s, parameters)
        return [*kept, torch.add(_MINUS_ONE.to(s), kept[-1], alpha=2)]
    kept = _hidden(s, parameters[:-2])
    weight, bias = cast(Tensor, parameters[-2])[0], parameters[-1]
    shift = -weight.sum() if bias is None else bias - weight.sum()
    return [*kept, torch.addmv(shift, kept[-1], weight, alpha=2)]


_MINUS_ONE = torch.tensor(-1.0)


def _backward(
    g: Tensor, kept: Sequence[Tensor], parameters: Sequence[Tensor | None], is_single: bool
) -> tuple[Tensor, float, list[Tensor | None]]:
    """Gradient at the first layer, ``k`` times which counts, and those of later parameters."""
    if not is_single:
        q = torch.ops.aten.sigmoid_backward(g, kept[-1])
        return _backward_hidden(q, 4.0, kept, parameters)
    s, bias = kept[-1], parameters[-1]
    total = g.sum()
    grad_weight = torch.addmv(-total, s.t(), g, alpha=2).unsqueeze(0)
    q = g.unsqueeze(1) * cast(Tensor, parameters[-2])
    q = torch.ops.aten.sigmoid_backward(q, s, grad_input=q)
    q, k, found = _backward_hidden(q, 4.0, kept, parameters[:-2])
    return q, k, [*found, grad_weight, None if bias is None else total.view(1)]


def _backward_hidden(
    q: Tensor, k: float, kept: Sequence[Tensor], parameters: Sequence[Tensor | None]
) -> tuple[Tensor, float, list[Tensor | None]]:
    found: list[Tensor | None] = []
    for i in range(len(parameters) - 2, -1, -2):
        s, weight = kept[i // 2], cast(Tensor, parameters[i])
        total = q.sum(0)
        grad_weight = torch.addmm(total.unsqueeze(1), q.t(), s, beta=-k, alpha=2 * k)
        found = [grad_weight, total.mul_(k), *found]
        q = q @ weight
        q = torch.ops.aten.sigmoid_backward(q, s, grad_input=q)
        k *= 4.0
    return q, k, found


class _Rows(torch.autograd.Function):
    """Tanh network on rows, ``(n, n_in) -> (n, hidden_dim)``, or ``(n,)`` when ``is_single``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, is_single: bool, *parameters: Tensor | None) -> Tensor:
        *kept, result = _forward(_first(x, parameters), parameters[2:], is_single)
        ctx.is_single, ctx.n_kept = is_single, len(kept)
        ctx.save_for_backward(x, *kept, *parameters)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        kept, parameters = rest[: ctx.n_kept], rest[ctx.n_kept :]
        q, k, found = _backward(grads[0], kept, parameters[2:], ctx.is_single)
        grad_x = q @ (parameters[0] * k) if ctx.needs_input_grad[0] else None
        return grad_x, None, *_grad_first(q, k, x), *found


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
        x = _pairs(value, feature, scale)
        *kept, result = _forward(_first(x, parameters), parameters[2:], is_single)
        ctx.is_single, ctx.n_kept, ctx.shape = is_single, len(kept), value.shape
        ctx.save_for_backward(x, scale, *kept, *parameters)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, *rest = ctx.saved_tensors
        kept, parameters = rest[: ctx.n_kept], rest[ctx.n_kept :]
        q, k, found = _backward(grads[0], kept, parameters[2:], ctx.is_single)
        grad_value, grad_feature = _grad_pairs(
            q, k, parameters[0], scale, ctx.shape, ctx.needs_input_grad[:2]
        )
        return grad_value, grad_feature, None, None, *_grad_first(q, k, x), *found


def _first(x: Tensor, parameters: Sequence[Tensor | None]) -> Tensor:
    weight, bias = cast(Tensor, parameters[0]), cast(Tensor, parameters[1])
    return torch.addmm(bias, x, weight.t(), beta=2, alpha=2).sigmoid_()


def _grad_first(q: Tensor, k: float, x: Tensor) -> tuple[Tensor, Tensor]:
    # (x^T q)^T: with few inputs that is several times faster than q^T x
    return torch.mm(x.t(), q).mul_(k).t(), q.sum(0).mul_(k)


def _pairs(value: Tensor, feature: Tensor, scale: Tensor | None) -> Tensor:
    """Rows (value[n, b], feature[n]), scaled."""
    n, n_batch = value.shape
    rows = feature.unsqueeze(1).expand(n, n_batch, feature.shape[1])
    x = torch.cat([value.unsqueeze(2), rows], dim=2).view(n * n_batch, -1)
    return x if scale is None else x.mul_(scale)


def _grad_pairs(
    q: Tensor, k: float, weight: Tensor, scale: Tensor | None, shape: Any, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of value and feature, from that at the first layer."""
    grad_value = grad_feature = None
    if not any(needs):
        return None, None
    weight = weight * k if scale is None else weight * (k * scale)
    if needs[0]:
        grad_value = torch.mv(q, weight[:, 0]).view(shape)
    if needs[1]:
        if weight.shape[1] == 2:
            grad_feature = torch.mv(q, weight[:, 1]).view(shape).sum(1, keepdim=True)
        else:
            grad_feature = q.view(*shape, -1).sum(1) @ weight[:, 1:]
    return grad_value, grad_feature


class _PowerLaw(torch.autograd.Function):
    """p s log c + N(log c, s) - N(0, s) on a grid; the last layer of N has no bias."""

    @staticmethod
    def forward(
        ctx: Any, log_c: Tensor, order: Tensor, power: Tensor, *parameters: Tensor
    ) -> Tensor:
        n, n_batch = log_c.shape
        padded = nn.functional.pad(log_c, (0, 1))  # a last column at c = 1, where N is subtracted
        x = _pairs(padded, order.unsqueeze(1), None)
        *kept, value = _forward(_first(x, parameters), (*parameters[2:], None), True)
        value = value.view(n, n_batch + 1)
        product = log_c * order.unsqueeze(1)
        ctx.shape = padded.shape
        ctx.save_for_backward(x, log_c, order, power, product, *kept, *parameters)
        ctx.n_kept = len(kept)
        return torch.addcmul(value[:, :-1] - value[:, -1:], product, power)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, log_c, order, power, product, *rest = ctx.saved_tensors
        kept, parameters = rest[: ctx.n_kept], rest[ctx.n_kept :]
        g = grads[0]
        padded = torch.cat([g, -g.sum(1, keepdim=True)], dim=1).view(-1)
        q, k, found = _backward(padded, kept, (*parameters[2:], None), True)
        grad_log_c, grad_order = _grad_pairs(
            q, k, parameters[0], None, ctx.shape, ctx.needs_input_grad[:2]
        )
        if grad_log_c is not None:
            grad_log_c = torch.addcmul(grad_log_c[:, :-1], g, order.unsqueeze(1) * power)
        if grad_order is not None:
            grad_order = torch.addcmul(grad_order[:, 0], (g * log_c).sum(1), power)
        grad_power = torch.vdot(g.reshape(-1), product.view(-1))
        return grad_log_c, grad_order, grad_power, *_grad_first(q, k, x), *found[:-1]


class _RateOfMessages(torch.autograd.Function):
    """Rate network of summed messages, without ever forming the messages' last layer.

    With the sum h of hidden values over n messages, that layer gives V h + n a; the first layer
    of the rate network, W (V h + n a) + b, is one product with W V. Of h = 2 s - n the sums s of
    sigmoids are formed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        groups: GroupSum,
        value: Tensor,
        feature: Tensor,
        scale: Tensor | None,
        count: Tensor,
        n_hidden: int,
        *parameters: Tensor | None,
    ) -> Tensor:
        hidden, (last, last_bias), rate = _split(parameters, n_hidden)
        x = _pairs(value, feature, scale)
        of_messages = _hidden(_first(x, hidden), hidden[2:])
        total = groups.total(of_messages[-1].view(*value.shape, -1))
        weight, bias = cast(Tensor, rate[0]), cast(Tensor, rate[1])
        both = weight @ last
        z = torch.addmm(bias, total.view(-1, both.shape[1]), both.t(), beta=2, alpha=4)
        shift = -both.sum(1) if last_bias is None else weight @ last_bias - both.sum(1)
        z.view(groups.n_group, -1, z.shape[1]).add_(torch.outer(count, shift.mul_(2)).unsqueeze(1))
        *kept, result = _forward(z.sigmoid_(), rate[2:], True)
        ctx.groups, ctx.n_hidden, ctx.shape = groups, n_hidden, value.shape
        ctx.n_kept = (len(of_messages), len(kept))
        ctx.save_for_backward(x, scale, count, total, both, *of_messages, *kept, *parameters)
        return result.view(groups.n_group, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, count, total, both, *rest = ctx.saved_tensors
        at, end = ctx.n_kept[0], sum(ctx.n_kept)
        of_messages, kept, parameters = rest[:at], rest[at:end], rest[end:]
        hidden, (last, last_bias), rate = _split(parameters, ctx.n_hidden)
        groups, weight = ctx.groups, rate[0]
        q, k, found = _backward(grads[0].reshape(-1), kept, rate[2:], True)
        per_group = q.view(groups.n_group, -1, q.shape[1]).sum(1)
        counted = torch.mv(per_group.t(), count)
        summed = total.view(-1, both.shape[1])
        grad_both = torch.addmm(counted.unsqueeze(1), q.t(), summed, beta=-k, alpha=2 * k)
        grad_weight, grad_last = grad_both @ last.t(), weight.t() @ grad_both
        grad_last_bias = None
        if last_bias is not None:
            grad_weight.addr_(counted, last_bias, alpha=k)
            grad_last_bias = torch.mv(weight.t(), counted).mul_(k)
        grad_bias = per_group.sum(0).mul_(k)
        g = torch.mm(q, both * k).view_as(total)
        q = torch.empty_like(of_messages[-1])
        s, spread, at = of_messages[-1].view(*ctx.shape, -1), q.view(*ctx.shape, -1), 0
        for n in groups.counts:
            part = slice(at, at + n)
            torch.ops.aten.sigmoid_backward(g[:n], s[part], grad_input=spread[part])
            at += n
        q, k, found_hidden = _backward_hidden(q, 4.0, of_messages, hidden[2:])
        needs = ctx.needs_input_grad[1:3]
        grad_value, grad_feature = _grad_pairs(q, k, hidden[0], scale, ctx.shape, needs)
        return (
            *(None, grad_value, grad_feature, None, None, None),
            *_grad_first(q, k, x),
            *found_hidden,
            *(grad_last, grad_last_bias),
            *(grad_weight, grad_bias),
            *found,
        )


def _split(parameters: Sequence[Any], n_hidden: int) -> tuple[Any, Any, Any]:
    return parameters[:n_hidden], parameters[n_hidden : n_hidden + 2], parameters[n_hidden + 2 :]


def rate_of_messages(
    groups: GroupSum, value: Tensor, feature: Tensor, count: Tensor, message: MLP, rate: MLP
) -> Tensor:
    """``rate`` of the sums over groups of ``message(value[n, b], feature[n])``.

    Args:
        groups: Which messages are summed.
        value: First input of the messages, ``(n, n_batch)``, rows as ``groups`` wants them.
        feature: Remaining inputs, ``(n, n_in - 1)``.
        count: Number of messages of each group, ``(n_group,)``, in the order of ``groups.group``.
        message: Network of the messages; its last layer commutes with the sum.
        rate: Network with one output.

    Returns:
        ``(n_group, n_batch)``, in the order of ``groups.group``.
    """
    of_message, of_rate = message._linear_layers(), rate._linear_layers()
    is_fused = message.is_tanh and rate.is_tanh and not rate.is_scaled
    if not is_fused or len(of_message) == 1 or len(of_rate) == 1:
        return rate_of_sums(groups(message.hidden_grid(value, feature)), count, message, rate)
    scale = message.input_scale if message.is_scaled else None
    parameters = _parameters([*of_message, *of_rate])
    n_hidden = 2 * len(of_message) - 2
    result = _RateOfMessages.apply(groups, value, feature, scale, count, n_hidden, *parameters)
    return cast(Tensor, result)


def rate_of_sums(total: Tensor, count: Tensor, message: MLP, rate: MLP) -> Tensor:
    """The same from sums over groups of :meth:`MLP.hidden` of ``message``.

    Args:
        total: The sums, ``(n_group, n_batch, hidden_dim)``.
        count: Number of messages of each group, ``(n_group,)``.
        message: Network of the messages.
        rate: Network with one output.

    Returns:
        ``(n_group, n_batch)``.
    """
    last = message.last
    h = nn.functional.linear(total, last.weight)
    if last.bias is not None:
        h = torch.addcmul(h, count.view(-1, 1, 1), last.bias)
    return rate.single(h)


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
        layers = self.net._linear_layers()
        if self.net.is_tanh and len(layers) > 1:
            value = _PowerLaw.apply(log_c, order, self.power, *_parameters(layers)[:-1])
            return cast(Tensor, value)
        column = order.unsqueeze(1)
        value = self.net.grid(log_c, column) - self.net.grid(torch.zeros_like(column), column)
        return torch.addcmul(value, self.power * column, log_c)

    def forward(self, input: Tensor) -> Tensor:
        """``(*, 2)``, features [c, |s|] -> ``(*, 1)``."""
        flat = input.reshape(-1, 2)
        value = self.log_value(flat[:, :1], flat[:, 1]).exp()
        return value.reshape(*input.shape[:-1], 1)
