r"""Recovery of S where a flux limiter acts: what of it a short alternation can reach.

With the limiter $v_j = k_j f_j \min(1, \min_i c_i / (\Delta t \sum_{j'} |s_{ij'}| k_{j'} f_{j'}))$
every rate depends on the rate constants of all reactions that compete for its substrates, so that
the rates are not linear in anything and the decoding of
:mod:`neuralgraph.systems.metabolism.recovery` does not apply. Three steps, repeated:

1. *Shares.* With the limiting factors held, the rates are linear in $|S_{ij}|$ times a factor of
   the reaction; message passing decodes the integers and the factors, and the factors correct the
   rate constants. Where a substrate is used up, only the shares of its consumers matter.
2. *Fit.* L-BFGS through the model, limiter included, on rate constants, rate law and $|s|$, with
   S solved for at every evaluation (variable projection) under a prior around the integers.
3. *Decode.* The integers again, from the rates of the fit; the prior narrows around them.

At the end the integers are held and everything else is fitted to them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from neuralgraph.nn.mlp import MLP
from neuralgraph.systems.metabolism.model import Metabolism_Propagation
from neuralgraph.systems.metabolism.recovery_checks import RecoveryProblem
from neuralgraph.systems.metabolism.recovery_law import PolynomialLaw, collocation
from neuralgraph.systems.metabolism.recovery_messages import Belief, StoichiometryDecoder
from neuralgraph.systems.metabolism.recovery_mlp import SharedRateNetwork

Array = np.ndarray
STEP = 0.4
"""Share of a factor that goes into its rate constant at once."""
SHARE_LEVELS = (1e-1, 2e-2)
"""Least relative error of the rows in the first step, from the first to the last iteration."""
PRIOR_SD = (0.5, 0.5, 0.3, 0.2, 0.15)
"""Deviation of S from its prior in the second step, in turn; the last one stays."""
K_RANGE = (1e-3, 1e2)
"""Smallest and largest rate constant, in units where the law is about 1."""
FLOOR = 1e-12
"""Squared relative residual below which rows count as equally well explained."""


@dataclass(frozen=True)
class LimitedAnswer:
    """Integers found behind a limiter; rate constants and law are in the model.

    Attributes:
        sto_sub: ``(n_sub_edge,)`` integers >= 1.
        sto_all: ``(n_all_edge,)`` signed integers.
        confidence: Log evidence of every edge, ``(n_all_edge,)``.
        median_residual: Median over metabolites of rms residual over rms derivative, with the
            integers held, on the frames used.
    """

    sto_sub: Array
    sto_all: Array
    confidence: Array
    median_residual: float


def spread_frames(frame: Array, most: int) -> Array:
    """Early frames densely, late ones ever more thinly: a transient fades.

    Args:
        frame: Number of each frame in its run, ``(n_frame,)``.
        most: Frames to take.

    >>> spread_frames(np.arange(1000), 12).tolist()
    [0, 1, 2, 3, 4, 9, 19, 43, 94, 206, 454, 999]
    """
    order = np.argsort(frame, kind="stable")
    n = len(order)
    if n <= most:
        return np.sort(order)
    early = most // 3
    late = np.geomspace(early, n - 1, most - early).round().astype(int)
    return np.sort(order[np.unique(np.concatenate([np.arange(early), late]))])


class _Fit:
    """Tables of one problem, and the model that is fitted in place."""

    def __init__(
        self,
        model: Metabolism_Propagation,
        problem: RecoveryProblem,
        frames: Array,
        stock: Callable[[], SharedRateNetwork],
        decoder: StoichiometryDecoder,
    ) -> None:
        self.model, self.problem, self.decoder, self.stock = model, problem, decoder, stock
        kind = model.log_k.dtype
        self.c = torch.from_numpy(problem.concentration[frames]).to(kind)
        self.y = torch.from_numpy(np.ascontiguousarray(problem.dx_dt[frames].T)).to(kind)
        self.rms = torch.from_numpy(decoder.rms).to(kind)
        self.live = torch.from_numpy(decoder.live)
        self.used = torch.from_numpy(decoder.row_used)
        self.edge = torch.from_numpy(decoder.row_edge)
        sign = torch.from_numpy(decoder.row_sign).to(kind)
        self.row_rxn, self.row_sign = torch.from_numpy(decoder.row_rxn), sign
        self.prior_mean = torch.full(self.used.shape, 1.5, dtype=kind)
        self.prior_sd = PRIOR_SD[0]
        self.noise = (0.05 * self.rms).square()
        self.parameters = [
            model.log_k,
            *model.msg_mlp.parameters(),
            *model.rate_mlp.parameters(),
            model.sto_sub,
        ]

    def columns(self) -> Tensor:
        """Signed rates of the reactions of each row, ``(n_met, n_slot, n_frame)``."""
        return self.model.flux(self.c).t()[self.row_rxn] * self.row_sign[:, :, None]

    @torch.no_grad()
    def solve(self, x: Tensor) -> Tensor:
        """|S| of each row given its columns, with the prior, ``(n_met, n_slot)``."""
        p = 1 / self.prior_sd**2
        noise = self.noise[:, None]
        a = x @ x.transpose(1, 2) / noise[:, :, None]
        a = a + torch.diag_embed(torch.where(self.used, p, 1.0).to(x))
        b = (x @ self.y[:, :, None])[:, :, 0] / noise
        return torch.linalg.solve(a, b + torch.where(self.used, p * self.prior_mean, 0.0))

    def loss(self) -> tuple[Tensor, Tensor]:
        """Mean log squared relative residual with the pull of the prior, and the residuals."""
        x = self.columns()
        size = self.solve(x.detach())
        left = (self.y - torch.einsum("ist,is->it", x, size)).square().mean(1)
        away = torch.where(self.used, size - self.prior_mean, 0.0) / self.prior_sd
        pull = away.square().sum(1) * self.noise / self.y.shape[1]
        value = ((left + pull) / self.rms**2 + FLOOR)[self.live].log().mean()
        return value, left.detach()

    def hard_loss(self) -> tuple[Tensor, Tensor]:
        """The same with the integers of the model."""
        left = (self.y - self.model(self.c).t()).square().mean(1)
        return (left / self.rms**2 + FLOOR)[self.live].log().mean(), left.detach()

    def descend(
        self, loss: Callable[[], tuple[Tensor, Tensor]], parameters: list[Tensor], n_step: int
    ) -> float:
        """L-BFGS in place, with the noise of the rows set to the residual every 50 steps."""
        for start in range(0, n_step, 50):
            with torch.no_grad():
                self.noise = torch.maximum(loss()[1], FLOOR * self.rms**2)
            optimizer = torch.optim.LBFGS(
                parameters,
                max_iter=min(50, n_step - start),
                history_size=40,
                line_search_fn="strong_wolfe",
                tolerance_grad=1e-12,
                tolerance_change=1e-14,
            )

            frozen = [p.requires_grad for p in parameters]
            for p in parameters:  # a phase without an optimiser holds them
                p.requires_grad_(True)

            def closure(optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
                optimizer.zero_grad()
                now, _ = loss()
                torch.autograd.backward(now)
                return now

            before = [p.detach().clone() for p in parameters]
            optimizer.step(closure)
            for p, was in zip(parameters, frozen, strict=True):
                p.grad = None
                p.requires_grad_(was)
            if not all(bool(torch.isfinite(p).all()) for p in parameters):
                with torch.no_grad():
                    for p, old in zip(parameters, before, strict=True):
                        p.copy_(old)
                break
        with torch.no_grad():
            return float(loss()[0])

    @torch.no_grad()
    def factors(self) -> Array:
        """What the limiter leaves of each rate, ``(n_rxn, n_frame)``."""
        limited = self.model.flux(self.c).t()
        self.model.flux_limit = False
        free = self.model.flux(self.c).t()
        self.model.flux_limit = True
        return (limited / free.clamp_min(1e-300)).double().numpy()

    def set_decoder(self, factor: Array) -> None:
        """Rate functions of every pattern with the limiting factors held."""
        law = self.stock().rates(self.c.t().double().numpy(), self.decoder)
        k = 10 ** self.model.log_k.detach().double().numpy()
        self.decoder.set_rates(law * k[:, None, None] * factor[:, None, :])

    def shares(self, n_step: int) -> Belief:
        """First step: rate constants from shares, in the model; the belief at the end."""
        d = self.decoder
        belief, moved = d.start(2.0, 3.0), None
        k = np.ones(d.n_rxn)
        self._put_k(k)
        self._put_sizes(np.ones(len(self.problem.met_sub)))
        for level in np.geomspace(*SHARE_LEVELS, n_step):
            self.set_decoder(self.factors())
            if moved is not None:
                belief = replace(belief, mean=moved[0], var=moved[1])
            belief = d.sweep(belief, float(level), k_range=(1e-3, 1e3), n_pass=3)
            factor = np.clip(d.guess_rate_constants(belief), 1e-2, 1e2) ** STEP
            k = np.clip(k * factor, *K_RANGE)
            moved = belief.mean / factor[d.rxn], belief.var / factor[d.rxn] ** 2
            self._put_k(k)
            _, inside = d.coefficients(belief.pattern)
            self._put_sizes(self._flat(inside))
        return belief

    def decode(self, say: Callable[[str], None]) -> Belief:
        """Third step: integers from the rates of the fit."""
        d = self.decoder
        with torch.no_grad():
            value, left = self.loss()
        relative = float((left.sqrt() / self.rms)[self.live].median())
        self.set_decoder(self.factors())
        size = self.model.sto_sub.detach().abs().round().clamp(1, self.problem.max_coefficient)
        shape = np.array(
            [
                d.poly.shapes[int(n)].index(tuple(int(s) for s in size[torch.from_numpy(e)]))
                for n, e in zip(d.n_sub, d.sub_edges, strict=True)
            ]
        )
        belief = replace(d.start(1.5, 1.0), shape=shape)
        for heat in (4.0, 2.0, 1.0, 0.5):
            belief = d.sweep(belief, max(heat * relative, 1e-7), k_range=(0.1, 10.0), n_pass=3)
        say(f"fit: objective {float(value):.2f}, median row residual {relative:.1e}")
        return belief

    def take(self, belief: Belief, sd: float) -> None:
        """Centre the prior on decoded integers and scale the rate constants with them."""
        d = self.decoder
        size, inside = d.coefficients(belief.pattern)
        kind = self.prior_mean
        on_rows = torch.from_numpy(size.astype(float)).to(kind)[self.edge]
        self.prior_mean = torch.where(self.used, on_rows, torch.full_like(kind, 1.5))
        self.prior_sd = sd
        factor = np.clip(d.guess_rate_constants(belief), 0.2, 5.0)
        with torch.no_grad():
            self.model.log_k.add_(torch.from_numpy(0.5 * np.log10(factor)).to(kind))
        self._put_sizes(self._flat(inside))

    def _flat(self, inside: list[tuple[int, ...]]) -> Array:
        out = np.zeros(len(self.problem.met_sub))
        for edges, values in zip(self.decoder.sub_edges, inside, strict=True):
            out[edges] = values
        return out

    def _put_k(self, k: Array) -> None:
        with torch.no_grad():
            self.model.log_k.copy_(torch.from_numpy(np.log10(k)))

    def _put_sizes(self, size: Array) -> None:
        self.model.set_stoichiometry(sto_sub=torch.from_numpy(size))


def recover_limited(
    model: Metabolism_Propagation,
    problem: RecoveryProblem,
    frame: Array,
    *,
    layers: Callable[[MLP], nn.Module],
    rng: np.random.Generator,
    n_share: int,
    n_round: int,
    n_step: int,
    most_frames: int = 240,
    log: Callable[[str], None] | None = None,
) -> LimitedAnswer:
    """Fit the model in place to data behind a limiter, and decode the integers of S.

    Args:
        model: With ``flux_limit``, roles and signs given; holds rate constants, law and integers
            afterwards.
        problem: Data and graph.
        frame: Number of each frame in its run, ``(n_frame,)``.
        layers: Copies a network of the model as stock layers of unscaled inputs.
        rng: Source of the sampling points.
        n_share: Iterations of the first step.
        n_round: Rounds of the second and third step.
        n_step: L-BFGS steps of a round.
        most_frames: Frames used; early ones densely, late ones thinly.
        log: Called with one line of text per stage.

    Source:
        Own; variable projection after Golub & Pereyra (1973).
    """
    say = log if log is not None else lambda _: None
    frames = spread_frames(frame, most_frames)
    poly = PolynomialLaw(problem.max_substrates, problem.max_coefficient, (1,))
    decoder = problem.decoder(poly, frames, True)
    points = collocation(poly, problem.center, problem.half_width, rng)

    def own_law() -> SharedRateNetwork:
        return SharedRateNetwork(layers(model.msg_mlp), layers(model.rate_mlp), points)

    fit = _Fit(model, problem, frames, own_law, decoder)
    belief = fit.shares(n_share)
    with torch.no_grad():
        # between the integers, where the slope of both is felt
        model.sto_sub.copy_(0.5 * model.sto_sub + 0.75)
    for turn in range(n_round):
        fit.descend(fit.loss, fit.parameters, n_step)
        belief = fit.decode(say)
        if turn < n_round - 1:
            fit.take(belief, PRIOR_SD[min(turn + 1, len(PRIOR_SD) - 1)])
    size, inside = decoder.coefficients(belief.pattern)
    fit.take(belief, PRIOR_SD[-1])
    sto_all, sto_sub = size * problem.sign_all, fit._flat(inside)
    model.set_stoichiometry(
        sto_all=torch.from_numpy(sto_all.astype(float)), sto_sub=torch.from_numpy(sto_sub)
    )
    value = fit.descend(fit.hard_loss, fit.parameters[:-1], 2 * n_step)
    _, left = fit.hard_loss()
    relative = float((left.sqrt() / fit.rms)[fit.live].median())
    say(f"integers held: objective {value:.2f}, median row residual {relative:.1e}")
    fit.set_decoder(fit.factors())
    noise = np.maximum(left.double().numpy(), 1e-14 * decoder.rms**2)
    confidence = decoder.confidence(belief.pattern, noise, np.ones(problem.n_rxn))
    return LimitedAnswer(sto_sub.astype(int), sto_all.astype(int), confidence, relative)
