r"""The neural twin of the local field: a directional network, trained one day at a time.

:math:`\dot z = |z|\,W_2\,\mathrm{relu}(W_1 z / |z|)^4` without biases: the speed is proportional to
the size of a deviation, and its direction alone decides where it goes. The fourth power keeps a
unit silent for directions away from its own, as the kernel does with conditions.

Source:
    own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, NotNegative, Positive
from neuralgraph.core.seeding import torch_generator
from neuralgraph.systems.perturb_ode.reference import Choice, Series, Shrunk


class DirectionalNetwork:
    """Settings of the twin; only the epoch is chosen within, the rest is taken as given.

    Args:
        path: Reference path, ``mean`` or ``median``.
        n_component: Components of single cells the deviations live in.
        n_hidden: Units.
        n_seed: Starts; their predictions are averaged.
        n_epochs: Steps of training; the one that is used is chosen within.
        learning_rate: Of Adam.
        weight_decay: Of Adam, decoupled.
        every: Epochs between two looks.
    """

    def __init__(
        self,
        *,
        path: str,
        n_component: Count,
        n_hidden: Count,
        n_seed: Count,
        n_epochs: Count,
        learning_rate: Positive,
        weight_decay: NotNegative,
        every: Count,
    ) -> None:
        self.path, self.n_component, self.n_hidden = path, n_component, n_hidden
        self.n_seed, self.n_epochs, self.every = n_seed, n_epochs, every
        self.learning_rate, self.weight_decay = learning_rate, weight_decay

    def nested(self, series: Series, held_out: Sequence[int]) -> dict[int, Choice]:
        """Leave-one-out predictions; the epoch is chosen by inner leave-one-out.

        Every fold, inner and outer, and every start is one slice of a batched model.

        Args:
            series: The statistics.
            held_out: Conditions that are held out in turn; the others are always trained on.
        """
        rows = list(held_out)
        folds = [(h,) for h in rows] + list(itertools.combinations(rows, 2))
        everyone = range(series.mean.shape[0])
        shrunk = [
            Shrunk(
                series,
                [k for k in everyone if k not in fold],
                path=self.path,
                n_component=self.n_component,
            )
            for fold in folds
        ]
        n_fold = len(folds)
        score = torch.stack([s.score for s in shrunk])  # (fold, K, T, q)
        share = torch.ones(n_fold, len(everyone), dtype=score.dtype)
        for f, fold in enumerate(folds):
            share[f, list(fold)] = 0
        share = share / share.sum(1, keepdim=True)
        generator = torch_generator(0, "directional network")
        q, h = self.n_component, self.n_hidden

        def start(*shape: int, fan_in: int) -> Tensor:
            one = torch.randn(self.n_seed, *shape, generator=generator, dtype=score.dtype)
            return (one / fan_in**0.5).repeat(n_fold, 1, 1).requires_grad_()

        inner = start(q, h, fan_in=1)
        outer = (0.1 * start(h, q, fan_in=h)).detach().requires_grad_()
        parameters = [inner, outer]
        optimizer = torch.optim.AdamW(
            parameters, self.learning_rate, weight_decay=self.weight_decay
        )
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

        looks: list[tuple[int, Tensor]] = []
        for epoch in range(self.n_epochs + 1):
            if epoch % self.every == 0 or epoch == self.n_epochs:
                with torch.no_grad():
                    state, frames = score[of_fold, :, 0], []
                    for _ in range(score.shape[2] - 1):
                        state = day(state)
                        frames.append(state)
                    ahead = torch.stack(frames, 2).unflatten(0, (n_fold, self.n_seed)).mean(1)
                    looks.append((epoch, ahead))
            if epoch == self.n_epochs:
                break
            optimizer.zero_grad()
            error = ((day(begin) - wanted) / size).square().sum(-1)
            (error * vote).sum().backward()
            torch.nn.utils.clip_grad_value_(parameters, 1.0)
            optimizer.step()
        return self._chosen(series, rows, folds, shrunk, looks)

    def _chosen(
        self,
        series: Series,
        rows: list[int],
        folds: list[tuple[int, ...]],
        shrunk: list[Shrunk],
        looks: list[tuple[int, Tensor]],
    ) -> dict[int, Choice]:
        place = {fold: f for f, fold in enumerate(folds)}
        found = {}
        for held in rows:
            inner = []
            for _, ahead in looks:
                errors = []
                for other in rows:
                    if other == held:
                        continue
                    f = place[min(held, other), max(held, other)]
                    errors.append(series.error(shrunk[f].genes(ahead[f, other]), other))
                inner.append(sum(errors) / len(errors))
            best = min(range(len(looks)), key=lambda i: inner[i])
            epoch, ahead = looks[best]
            f = place[held,]
            prediction = shrunk[f].genes(ahead[f, held])
            found[held] = Choice(prediction, {"epoch": epoch}, float(inner[best]))
        return found
