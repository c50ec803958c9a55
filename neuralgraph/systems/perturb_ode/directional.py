r"""The neural twin of the local field: a directional network, trained one day at a time.

:math:`\dot z = |z|\,W_2\,\mathrm{relu}(W_1 z / |z|)^4` without biases: the speed is proportional to
the size of a deviation, and its direction alone decides where it goes. The fourth power keeps a
unit silent for directions away from its own, as the kernel does with conditions.

Source:
    own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, NotNegative
from neuralgraph.core.errors import ConfigError
from neuralgraph.core.seeding import torch_generator
from neuralgraph.systems.perturb_ode.reference import Choice, Series, Shrunk


class DirectionalNetwork:
    """Settings of the twin; those given as lists, and the epoch, are chosen within.

    Args:
        path: Reference path, ``mean`` or ``median``.
        n_component: Numbers of components of single cells, in which the deviations live.
        n_hidden: Numbers of units.
        n_seed: Starts; their predictions are averaged.
        n_epochs: Most steps of training.
        learning_rate: Learning rates of Adam.
        weight_decay: Of Adam, decoupled.
        every: Epochs between two looks; one of them is chosen.
    """

    def __init__(
        self,
        *,
        path: str,
        n_component: list[int],
        n_hidden: list[int],
        n_seed: Count,
        n_epochs: Count,
        learning_rate: list[float],
        weight_decay: NotNegative,
        every: Count,
    ) -> None:
        lists = {"n_component": n_component, "n_hidden": n_hidden, "learning_rate": learning_rate}
        for name, values in lists.items():
            if not values or min(values) <= 0:
                raise ConfigError(f"twin.{name} must be a list of positive numbers, got {values}")
        self.path, self.n_component, self.n_hidden = path, n_component, n_hidden
        self.n_seed, self.n_epochs, self.every = n_seed, n_epochs, every
        self.learning_rate, self.weight_decay = learning_rate, weight_decay

    def nested(self, series: Series, held_out: Sequence[int]) -> dict[int, Choice]:
        """Leave-one-out predictions; width, rate and epoch are chosen by inner leave-one-out.

        Every fold, inner and outer, and every start is one slice of a batched model.

        Args:
            series: The statistics.
            held_out: Conditions that are held out in turn; the others are always trained on.
        """
        rows = list(held_out)
        folds = [(h,) for h in rows] + list(itertools.combinations(rows, 2))
        everyone = range(series.mean.shape[0])
        share = torch.ones(len(folds), len(everyone), dtype=series.mean.dtype)
        for f, fold in enumerate(folds):
            share[f, list(fold)] = 0
        share = share / share.sum(1, keepdim=True)
        place = {fold: f for f, fold in enumerate(folds)}
        best: dict[int, Choice] = {}
        for n_component in self.n_component:
            shrunk = [
                Shrunk(
                    series,
                    [k for k in everyone if k not in fold],
                    path=self.path,
                    n_component=n_component,
                )
                for fold in folds
            ]
            score = torch.stack([s.score for s in shrunk])  # (fold, K, T, q)

            for width, rate in itertools.product(self.n_hidden, self.learning_rate):
                looks = self._trained(score, share, n_hidden=width, learning_rate=rate)
                for epoch, ahead in looks:
                    errors = {
                        (f, row): series.error(shrunk[f].genes(ahead[f, row]), row)
                        for f, fold in enumerate(folds)
                        if len(fold) == 2
                        for row in fold
                    }
                    for held in rows:
                        judged = [
                            errors[place[min(held, v), max(held, v)], v] for v in rows if v != held
                        ]
                        inner = sum(judged) / len(judged)
                        if held in best and inner >= best[held].inner_error:
                            continue
                        f = place[held,]
                        best[held] = Choice(
                            shrunk[f].genes(ahead[f, held]),
                            {
                                "n_component": n_component,
                                "n_hidden": width,
                                "learning_rate": rate,
                                "epoch": epoch,
                            },
                            inner,
                        )
        return best

    def _trained(
        self, score: Tensor, share: Tensor, *, n_hidden: int, learning_rate: float
    ) -> Iterator[tuple[int, Tensor]]:
        """Epoch and predicted scores ``(fold, K, T - 1, q)`` at each look along training.

        Args:
            score: Shrunk scores in each fold, ``(fold, K, T, q)``.
            share: Weight of each condition in each fold, 0 for one held out, ``(fold, K)``.
            n_hidden: Units.
            learning_rate: Of Adam.
        """
        n_fold, q, h = len(score), score.shape[-1], n_hidden
        generator = torch_generator(0, "directional network")

        def start(*shape: int, fan_in: int) -> Tensor:
            one = torch.randn(self.n_seed, *shape, generator=generator, dtype=score.dtype)
            return (one / fan_in**0.5).repeat(n_fold, 1, 1).requires_grad_()

        inner = start(q, h, fan_in=1)
        outer = (0.1 * start(h, q, fan_in=h)).detach().requires_grad_()
        parameters = [inner, outer]
        optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=self.weight_decay)
        of_fold = torch.arange(n_fold).repeat_interleave(self.n_seed)
        begin = score[of_fold, :, :-1].flatten(1, 2)
        wanted = score[of_fold, :, 1:].flatten(1, 2)
        size = begin.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        vote = share[of_fold].repeat_interleave(score.shape[2] - 1, 1) / (score.shape[2] - 1)

        def field(z: Tensor) -> Tensor:
            length = z.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            unit = torch.bmm(z / length, inner / inner.norm(dim=1, keepdim=True).clamp_min(1e-12))
            return length * torch.bmm(unit.relu() ** 4, outer)

        def day(z: Tensor) -> Tensor:
            for _ in range(2):
                k1 = field(z)
                k2 = field(z + 0.25 * k1)
                k3 = field(z + 0.25 * k2)
                z = z + (k1 + 2 * (k2 + k3) + field(z + 0.5 * k3)) / 12
            return z

        for epoch in range(self.n_epochs + 1):
            if epoch % self.every == 0 or epoch == self.n_epochs:
                with torch.no_grad():
                    state, frames = score[of_fold, :, 0], []
                    for _ in range(score.shape[2] - 1):
                        state = day(state)
                        frames.append(state)
                    ahead = torch.stack(frames, 2).unflatten(0, (n_fold, self.n_seed)).mean(1)
                yield epoch, ahead
            if epoch == self.n_epochs:
                break
            optimizer.zero_grad()
            error = ((day(begin) - wanted) / size).square().sum(-1)
            (error * vote).sum().backward()
            torch.nn.utils.clip_grad_value_(parameters, 1.0)
            optimizer.step()
