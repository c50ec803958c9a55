r"""Directions in which a learned rate law can still move, as nuisance of the parameters' errors.

The law is a network (``msg_mlp`` and ``rate_mlp``, or ``MLP_sub``), fitted to the same data as the
rate constants. Its weights w are unknowns with a normal prior: they differ from those that made the
data as two networks of this size differ, layer by layer (at least as untrained ones). Directions of
w that change no rate are left out. A ``MLP_sub`` that is a power law has one direction, its power.
Scale: rates are divided by their mean over reactions at the median state, or by MLP_sub(1, 1), as
the scores do, so that ``a f, k / a`` is no direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neuralgraph.nn.mlp import MLP, PowerLawMLP

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.dataset import MetabolismData
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

LARGEST_N_RXN = 1500
"""Reactions beyond which the law counts as known."""
N_FRAME = 256
"""Frames at which directions are taken, evenly spread."""
N_SAMPLE = 2048
"""Rates that decide which directions of the weights change something."""
SEEN = 1e-6
"""Change of the rates, relative to that of the strongest direction, from which one counts."""
MOST = 256
"""Directions at most."""
ALIKE = 1e-3
"""Largest deviation of log MLP_sub from a line in log c with which it is a power law."""
N_POINT = 512
"""Rates differentiated together."""
SUBSTRATE = 0.5
"""|s| from which an edge counts as that of a substrate where the roles are not given."""


def why_not(model: Metabolism_Propagation, n_frame: int, largest_degree: int) -> str:
    """Why the law must count as known, or nothing."""
    if model.n_rxn > LARGEST_N_RXN:
        return f"more than {LARGEST_N_RXN} reactions"
    if largest_degree >= min(n_frame, N_FRAME):
        return "a metabolite with more reactions than frames"
    return ""


def law_directions(
    model: Metabolism_Propagation, data: MetabolismData
) -> tuple[Tensor, Tensor] | None:
    """Relative change of every rate along independent directions of the law.

    Args:
        model: The model, fitted or as drawn; its law is linearised where it is.
        data: Its data: training frames.
    Returns:
        Frames ``(n_some,)`` long, and slopes of log rates ``(n_some, n_rxn, n_direction)``, a step
        of 1 being a standard deviation of the weights before the data; ``None`` where no rate
        depends on a weight.
    """
    state = data.train.concentration.detach().cpu().double()
    n_some = min(N_FRAME, state.shape[0])
    frames = torch.linspace(0, state.shape[0] - 1, n_some).round().long()
    law = _Law(model, is_power_law(model, state))
    if not law.groups:
        return None
    with torch.enable_grad():
        gauge = law.gauge(state.median(0).values[None])
        # a sample of the rates decides which directions count
        n = max(1, -(-N_SAMPLE // sum(len(g.rxn) for g in law.groups)))
        few = state[torch.linspace(0, state.shape[0] - 1, min(n, state.shape[0])).round().long()]
        basis = _basis(torch.cat([x - g for x, g in zip(law.slopes(few), gauge, strict=True)]))
        slope = torch.zeros(n_some, model.n_rxn, basis.shape[1], dtype=torch.float64)
        found = law.slopes(state[frames], basis)
        for group, part, origin in zip(law.groups, found, gauge, strict=True):
            slope[:, group.rxn] = (part - origin @ basis).view(n_some, len(group.rxn), -1)
    return frames, slope


def is_power_law(model: Metabolism_Propagation, state: Tensor) -> bool:
    """Whether ``MLP_sub`` is a power of c within the range of the data, up to ``ALIKE``."""
    if model.kinetics != "mass_action" or not isinstance(model.MLP_sub, PowerLawMLP):
        return False
    values = state.flatten()[:: max(1, state.numel() // 4096)].clamp_min(model.MLP_sub.floor)
    x = values.log().unique()
    if len(x) < 3 or not len(model.order_levels):
        return True
    order = model.order_levels.detach().cpu().double()
    weight = [p.detach().cpu().double() for p in model.MLP_sub.net.parameters()]
    rows: list[Tensor] = []
    for size in order:
        s = size.expand_as(x)
        value = _through(model.MLP_sub.net, weight, torch.stack([x, s], 1))
        at_one = _through(model.MLP_sub.net, weight, torch.stack([torch.zeros_like(x), s], 1))
        rows.append((value - at_one)[:, 0] / size.clamp_min(1e-9))
    y = torch.stack(rows)
    slope = float((y * x).sum() / (x.square().sum() * len(order)))
    return float((y - slope * x).abs().max()) < ALIKE


def _basis(sample: Tensor) -> Tensor:
    """Orthonormal directions of the weights that change the sampled rates."""
    n_rate, n_weight = sample.shape
    is_wide = n_weight > n_rate  # wide networks: the smaller of the two Gram matrices
    values, vectors = torch.linalg.eigh(sample @ sample.T if is_wide else sample.T @ sample)
    keep = (values.flip(0) > SEEN**2 * values[-1]).nonzero()[:MOST, 0]
    kept = vectors.flip(1)[:, keep]
    if is_wide:
        kept = torch.linalg.qr(sample.T @ kept)[0]
    return kept.contiguous()


class _Group:
    """Reactions with the same number of substrates: ``rxn`` (n,), ``met`` and ``size`` (n, q)."""

    def __init__(self, rxn: Tensor, met: Tensor, size: Tensor) -> None:
        self.rxn, self.met, self.size = rxn, met, size


class _Law:
    """Logarithm of the rates at k = 1 as a function of standardised weights.

    Args:
        model: Whose networks are differentiated.
        only_power: Whether the power of ``MLP_sub`` is its only weight.
    """

    def __init__(self, model: Metabolism_Propagation, only_power: bool) -> None:
        self.is_learned_rate = model.kinetics == "learned_rate"
        self.is_product = model.aggregation == "multiply"
        self.is_softplus = model.is_softplus
        self.is_difference = not model.has_roles
        names = ("msg_mlp", "rate_mlp") if self.is_learned_rate else ("MLP_sub",)
        self.nets = [getattr(model, name) for name in names]
        self.weight: list[Tensor] = []
        scale: list[Tensor] = []
        for net in self.nets:
            for layer in net.modules():
                if isinstance(layer, nn.Linear):
                    bound = 1 / math.sqrt(3 * max(layer.in_features, 1))
                    for value in (layer.weight, layer.bias):
                        if value is None:
                            continue
                        value = value.detach().cpu().double()
                        self.weight.append(value)
                        size = max(bound, float(value.square().mean().sqrt())) * math.sqrt(2)
                        size = 0.0 if only_power else size
                        scale.append(torch.full((value.numel(),), size, dtype=torch.float64))
            if isinstance(net, PowerLawMLP):
                self.weight.append(net.power.detach().cpu().double().reshape(1))
                scale.append(torch.ones(1, dtype=torch.float64))
        self.scale = torch.cat(scale)
        self.n_weight = self.scale.numel()
        self.groups = self._grouped(model)

    def _grouped(self, model: Metabolism_Propagation) -> list[_Group]:
        met, rxn = model.met_sub.cpu(), model.rxn_sub.cpu()
        if model.order_input is not None:
            size = model.order_input.cpu().double()[model.to_reaction.col.cpu()]
        else:
            size = model.sto_sub.detach().cpu().double().abs()
        drives = size > SUBSTRATE if self.is_difference else torch.ones_like(size).bool()
        met, rxn, size = met[drives], rxn[drives], size[drives]
        order = torch.argsort(rxn, stable=True)
        met, rxn, size = met[order], rxn[order], size[order]
        count = torch.bincount(rxn, minlength=model.n_rxn)
        first = count.cumsum(0) - count
        groups: list[_Group] = []
        for q in count.unique().tolist():
            if q == 0:
                continue
            members = (count == q).nonzero()[:, 0]
            at = first[members][:, None] + torch.arange(q)
            groups.append(_Group(members, met[at], size[at]))
        return groups

    def gauge(self, reference: Tensor) -> list[Tensor]:
        """Slope of the scale of the rates, one ``(n_weight,)`` for each group.

        Args:
            reference: State at which the mean log rate is held, ``(1, n_met)``.
        """
        if self.is_learned_rate:
            mean = torch.cat(self.slopes(reference)).mean(0)
            return [mean] * len(self.groups)
        if isinstance(self.nets[0], PowerLawMLP):  # 1 at c = 1 by construction
            return [torch.zeros(self.n_weight, dtype=torch.float64)] * len(self.groups)
        one = torch.ones(1, dtype=torch.float64)
        at_one = torch.func.grad(lambda w: self._log_substrate(w, one, one).sum())(
            torch.zeros(self.n_weight, dtype=torch.float64)
        )
        return [group.met.shape[1] * at_one for group in self.groups]

    def slopes(self, state: Tensor, basis: Tensor | None = None) -> list[Tensor]:
        """Derivative of log rates at ``state`` ``(n_frame, n_met)``, by group.

        Returns:
            ``(n_frame * n_member, n_weight)``, or in a basis ``(…, n_direction)``.
        """
        origin = torch.zeros(self.n_weight, dtype=torch.float64)
        each = torch.func.vmap(torch.func.grad(self._log_rate), in_dims=(None, 0, 0))
        result: list[Tensor] = []
        for group in self.groups:
            c = state[:, group.met].flatten(0, 1)
            size = group.size.expand(state.shape[0], *group.size.shape).flatten(0, 1)
            parts: list[Tensor] = []
            for first in range(0, len(c), N_POINT):
                here = slice(first, first + N_POINT)
                slope = each(origin, c[here], size[here])
                parts.append(slope if basis is None else slope @ basis)
            result.append(torch.cat(parts))
        return result

    def _log_rate(self, moved: Tensor, c: Tensor, size: Tensor) -> Tensor:
        """At one point; ``moved`` in standard deviations of the weights."""
        if self.is_learned_rate:
            weight = self._moved(moved)
            msg, rate = self.nets
            n_msg = _n_weight(msg)
            x = torch.stack([c, size], 1)
            h = _through(msg, weight[:n_msg], x)
            if self.is_difference:
                at_zero = torch.stack([c, torch.zeros_like(size)], 1)
                h = h - _through(msg, weight[:n_msg], at_zero)
            y = _through(rate, weight[n_msg:], h.sum(0)[None])
            return nn.functional.softplus(y).log().reshape(())
        log_f = self._log_substrate(moved, c, size)
        if self.is_product and not self.is_softplus:
            return log_f.sum()
        value = log_f.sum().exp() if self.is_product else log_f.exp().sum()
        return (nn.functional.softplus(value) if self.is_softplus else value).log()

    def _moved(self, moved: Tensor) -> list[Tensor]:
        weight: list[Tensor] = []
        start = 0
        step = moved * self.scale
        for value in self.weight:
            weight.append(value + step[start : start + value.numel()].view_as(value))
            start += value.numel()
        return weight

    def _log_substrate(self, moved: Tensor, c: Tensor, size: Tensor) -> Tensor:
        """Log MLP_sub (of its magnitude) of each substrate, ``(n_sub,)``."""
        weight = self._moved(moved)
        (net,) = self.nets
        if isinstance(net, PowerLawMLP):
            log_c = c.clamp_min(net.floor).log()
            value = _through(net.net, weight[:-1], torch.stack([log_c, size], 1))
            at_one = _through(net.net, weight[:-1], torch.stack([torch.zeros_like(c), size], 1))
            return (value - at_one)[:, 0] + weight[-1][0] * size * log_c
        value = _through(net, weight, torch.stack([c, size], 1))[:, 0]
        return value.abs().clamp_min(1e-8).log()


def _n_weight(net: nn.Module) -> int:
    return sum(1 for _ in net.parameters())


def _through(net: MLP, weight: Sequence[Tensor], x: Tensor) -> Tensor:
    """The network with other weights, in plain operations that transforms accept."""
    x = x * net.input_scale.detach().cpu().double()
    at = 0
    for layer in net:
        if isinstance(layer, nn.Linear):
            x = x @ weight[at].T
            at += 1
            if layer.bias is not None:
                x = x + weight[at]
                at += 1
        else:
            x = layer(x)
    return x
