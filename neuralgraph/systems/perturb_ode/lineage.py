"""Differentiating cells: simulated lineages, and a noisy field that is fitted to their clouds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralgraph.core.bounds import Count, Natural, NotNegative, Positive
from neuralgraph.core.data_home import VARIABLE, data_folders, find_data
from neuralgraph.core.errors import ConfigError, DataError, MissingDataError, nearest
from neuralgraph.core.product import Product
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import numpy_generator, torch_generator
from neuralgraph.core.terms import Terms
from neuralgraph.systems.perturb_ode.cells import log_normalised
from neuralgraph.systems.perturb_ode.distribution import (
    energy_distance,
    euler_maruyama,
    sinkhorn_divergence,
)
from neuralgraph.systems.perturb_ode.measurement import Measurement
from neuralgraph.systems.perturb_ode.rules import (
    TREE,
    TREE_START,
    LogicNetwork,
    read_rules,
    read_start,
)

KINDS = ("knockout", "pin")
DISTANCES = ("energy", "sinkhorn")
FLOOR = 1e-2
"""Added to expression under the root of the noise: silent genes flicker a little."""


class LineageScreen:
    r"""Cells that differentiate after a knock-out, by noisy Hill dynamics of Boolean rules.

    :math:`dx = (u\,\alpha\,g(x) - \gamma x)\,dt + \sigma \sqrt{x + 0.01}\,dW`, kept above 0. All
    cells start as progenitors on day 0, when the knock-out acts; each day measures other cells.
    Some knock-outs are held out.

    Args:
        rules: ``tree`` (a tree of toggle switches that needs no file), or a file of Boolean rules,
            a path or a name in the data folders such as ``boolode/HSC.txt``; the genes that are on
            at the start stand in ``…_ics.txt`` beside it.
        kind: ``knockout`` stops production; ``pin`` takes the gene away at once and for good, as
            BoolODE does.
        n_test: Knock-outs that are held out.
        days: Days of measurement after day 0.
        n_cell: Cells of each condition on each day.
        noise: σ, expression units^½ / day^½.
        start_spread: Standard deviation between progenitors, expression units.
        maximum: Level of a gene that is on, expression units.
        gamma: Decay, 1 / day.
        threshold: K of the Hill functions, expression units.
        exponent: n of the Hill functions.
        measurement: Counts cells for the file ``cells.h5ad`` of ``simulate``.
    """

    def __init__(
        self,
        *,
        rules: str,
        kind: str,
        n_test: Natural,
        days: list[float],
        n_cell: Count,
        noise: NotNegative,
        start_spread: NotNegative,
        maximum: Positive,
        gamma: Positive,
        threshold: Positive,
        exponent: Positive,
        measurement: Measurement,
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind of knock-out '{kind}': {nearest(kind, KINDS)}")
        if n_cell < 4:
            raise ConfigError(f"a cloud needs 4 cells or more, got n_cell = {n_cell}")
        if not days or min(days) <= 0 or sorted(set(days)) != list(days):
            raise ConfigError(f"days must be positive and increasing, got {days}")
        self.rules, self.kind, self.n_test = rules, kind, n_test
        self.days = [float(day) for day in days]
        self.n_cell, self.noise, self.start_spread = n_cell, noise, start_spread
        self.constants = {
            "maximum": maximum, "gamma": gamma, "threshold": threshold, "exponent": exponent,
        }  # fmt: skip
        self.measurement = measurement

    def network(self) -> tuple[LogicNetwork, Tensor]:
        """Rules as a network, and the progenitor, ``(n_gene,)``.

        Raises:
            MissingDataError: the file of rules is not there.
        """
        if self.rules == "tree":
            network, on = read_rules(TREE, source="tree", **self.constants), TREE_START
        else:
            path = self._file()
            network = read_rules(
                path.read_text(encoding="utf-8"), source=path.name, **self.constants
            )
            start = path.with_name(f"{path.stem}_ics.txt")
            on = read_start(start) if start.is_file() else {}
        first = torch.zeros(network.n_gene, dtype=torch.float64)
        for gene, value in on.items():
            if gene not in network.names:
                raise DataError(
                    f"the start names '{gene}', which no rule holds: {nearest(gene, network.names)}"
                )
            first[network.names.index(gene)] = min(value, 1.0) * self.constants["maximum"]
        return network, first

    def _file(self) -> Path:
        try:
            return find_data(self.rules)
        except MissingDataError:
            searched = " and ".join(str(folder) for folder in data_folders())
            raise MissingDataError(
                f"the rules {self.rules} are not in {searched} ({VARIABLE} names the first): "
                "python -m neuralgraph.fetch boolode brings the rule files of BoolODE; "
                "simulator=perturb_ode_lineage_tree needs none"
            ) from None

    def simulate(self, seed: int) -> tuple[Recording, Truth]:
        """Clouds of every condition on every day; the same seed gives the same bytes."""
        network, first = self.network()
        n_gene = network.n_gene
        if self.n_test >= n_gene:
            raise ConfigError(
                f"{self.n_test} of {n_gene} knock-outs cannot all be held out: lower n_test"
            )
        order = torch.randperm(n_gene, generator=torch_generator(seed, "held out")).tolist()
        genes = [-1, *sorted(order[self.n_test :]), *sorted(order[: self.n_test])]
        n_run, n_time = len(genes), len(self.days) + 1
        production = torch.ones(n_run, n_gene, dtype=torch.float64)
        for run, gene in enumerate(genes):
            if gene >= 0:
                production[run, gene] = 0.0
        generator = torch_generator(seed, "cells")
        # one cloud for each day: every day measures other cells
        spread = torch.randn(
            n_run, n_time, self.n_cell, n_gene, dtype=torch.float64, generator=generator
        )
        start = (first + self.start_spread * spread).clamp_min(0)
        kept = production[:, None, None] if self.kind == "pin" else torch.ones(1, 1, 1, 1)
        start = start * kept.double()
        time = torch.tensor([0.0, *self.days], dtype=torch.float64)
        u = production[:, None, None].expand_as(start)
        still = torch.zeros_like(start) + kept
        states, _ = euler_maruyama(
            lambda x: network.rate(x, u, torch.ones_like(u)) * still,
            lambda x: self.noise * (x.clamp_min(0) + FLOOR).sqrt() * still,
            start,
            time,
            max_step=0.05,
            generator=generator,
            floor=0.0,
        )
        clouds = torch.stack([states[day, :, day] for day in range(n_time)], 1)
        names = network.names
        labels = ["unperturbed" if g < 0 else names[g] for g in genes]
        is_test = torch.arange(n_run) >= n_run - self.n_test
        row = torch.arange(n_run)[:, None, None].expand(clouds.shape[:3])
        day = torch.arange(n_time)[None, :, None].expand(clouds.shape[:3])
        frames = (n_run, n_time, n_gene)
        recording = Recording(
            time=time.expand(n_run, -1).contiguous(),
            state=clouds.mean(2),
            names=names,
            inputs={"production": production[:, None].expand(frames).contiguous()},
            graph={
                "cells": clouds.flatten(0, 2).float(),
                "cell_condition": row.flatten(),
                "cell_day": day.flatten(),
                "counts": self._counts(clouds.flatten(0, 2), row.flatten(), seed),
                "target": 1 - production,
            },
            units={"time": "day", "state": "expression units"},
            provenance={
                "design": f"{n_run - self.n_test} training conditions, {self.n_test} knock-outs "
                f"held out, {self.n_cell} cells of each on day 0 and days "
                + ", ".join(f"{d:g}" for d in self.days),
                "conditions": labels,
                "rules": self.rules,
                "kind": self.kind,
                "seed": seed,
            },
            is_test=is_test,
        )
        ends = settle(network, clouds[0, -1])
        truth = Truth(
            parameters={
                "is_edge": network.is_edge,
                "ends": ends,
                "progenitor": first,
                "state": clouds.mean(2),
            },
            facts={"kind": "Hill functions of Boolean rules", "types": type_names(ends, names)},
        )
        return recording, truth

    def _counts(self, cells: Tensor, condition: Tensor, seed: int) -> Tensor:
        """The same cells, counted."""
        run = condition.numpy()
        counted = self.measurement(
            cells.numpy() + FLOOR, 0 * run, run, numpy_generator(seed, "measurement")
        )
        return torch.from_numpy(counted.count).double()

    def reveal(
        self, recording: Recording, truth: Truth | None, /, *, edges: bool
    ) -> dict[str, Tensor]:
        """With ``edges``: which gene stands in the rule of which, without sign and logic."""
        if not edges:
            return {}
        if truth is None:
            raise ConfigError("prior.edges=true needs a simulated network: set it to false")
        return {"is_edge": truth.parameters["is_edge"]}

    def exhibits(
        self, recording: Recording, truth: Truth | None, folder: Path
    ) -> Iterator[Product]:
        """The cells, counted, as a file for other programs."""
        import anndata
        import numpy as np
        import pandas as pd

        run = recording.graph["cell_condition"].numpy()
        day = recording.graph["cell_day"].numpy()
        labels = recording.provenance["conditions"]
        table = log_normalised(
            anndata.AnnData(
                recording.graph["counts"].numpy().astype(np.float32),
                obs=pd.DataFrame(
                    {
                        "perturbation": pd.Categorical([labels[r] for r in run]),
                        "day": recording.time[0].numpy()[day],
                    },
                    index=pd.Index([f"cell{i}" for i in range(len(run))]),
                ),
                var=pd.DataFrame(index=pd.Index(list(recording.names))),
            )
        )
        path = folder / "cells.h5ad"
        table.write_h5ad(path)
        yield Product(
            path,
            "Cells",
            "AnnData: X log-normalised, layers['counts'], obs with perturbation and day.",
            f"{table.n_obs} cells, {table.n_vars} genes",
        )


def settle(network: LogicNetwork, cells: Tensor) -> Tensor:
    """Where cells ``(n_cell, n_gene)`` settle without noise, each end once, ``(n_end, n_gene)``.

    Ends that fewer than 1 % of the cells reach are left out.
    """
    ones = torch.ones_like(cells)
    states, _ = euler_maruyama(
        lambda x: network.rate(x, ones, ones),
        torch.zeros_like,
        cells,
        torch.tensor([0.0, 60.0 / network.gamma], dtype=torch.float64),
        max_step=0.1 / network.gamma,
        generator=torch.Generator().manual_seed(0),
        floor=0.0,
    )
    ends = states[-1]
    pattern = ends > 0.5 * network.maximum
    kinds, inverse, count = pattern.unique(dim=0, return_inverse=True, return_counts=True)
    kept = [k for k in range(len(kinds)) if int(count[k]) >= max(1, 0.01 * len(cells))]
    return torch.stack([ends[inverse == k].mean(0) for k in kept])


def type_names(ends: Tensor, names: tuple[str, ...]) -> list[str]:
    """A name for each end: the genes that are on in the fewest ends, two at most."""
    is_on = ends > 0.5 * float(ends.max())
    found = []
    for row in is_on:
        mine = row.nonzero()[:, 0].tolist()
        mine.sort(key=lambda g: (int(is_on[:, g].sum()), g))
        found.append("·".join(names[g] for g in mine[:2]) or "none")
    return [
        name if found.count(name) == 1 else f"{name} {found[: i + 1].count(name)}"
        for i, name in enumerate(found)
    ]


@dataclass(frozen=True)
class CloudSpec:
    """Sizes and given facts a model is built from; pinned genes are held, without noise."""

    names: tuple[str, ...]
    scale: float
    is_edge: Tensor | None
    is_pinned: bool


@dataclass(frozen=True)
class CloudBatch:
    """Clouds of B conditions; C cells, T days after day 0, G genes.

    Args:
        start: ``(B, C, G)``.
        time: Day 0 and the days, ``(T + 1,)``.
        target: ``(B, T, C, G)``.
        production: u, ``(B, G)``.
    """

    start: Tensor
    time: Tensor
    target: Tensor
    production: Tensor


class CloudData:
    """Clouds of every condition and day; held-out conditions stay apart.

    Args:
        recording: With every cell, the same number in each condition and day.
        given: ``is_edge`` or nothing.
    """

    def __init__(self, recording: Recording, given: Mapping[str, Tensor]) -> None:
        if "cells" not in recording.graph or "production" not in recording.inputs:
            raise DataError("clouds need single cells and interventions: use a lineage simulator")
        n_run, n_time, n_gene = recording.state.shape
        cells = recording.graph["cells"].double().reshape(n_run, n_time, -1, n_gene)
        self.conditions: list[str] = list(recording.provenance["conditions"])
        is_test = recording.is_test
        self.is_test = torch.zeros(n_run, dtype=torch.bool) if is_test is None else is_test
        self._all = CloudBatch(
            start=cells[:, 0],
            time=recording.time[0],
            target=cells[:, 1:],
            production=recording.inputs["production"][:, 0],
        )
        self.train_index = (~self.is_test).nonzero()[:, 0]
        self.spec = CloudSpec(
            names=recording.names,
            scale=float(cells[~self.is_test].mean()),
            is_edge=given.get("is_edge"),
            is_pinned=recording.provenance.get("kind") == "pin",
        )

    def starts(self, horizon: int) -> Tensor:
        """Training conditions."""
        return torch.arange(self.train_index.numel())

    def batch(self, index: Tensor, horizon: int = 1) -> CloudBatch:
        """Training conditions by index."""
        return self.rows(self.train_index[index])

    def everything(self) -> CloudBatch:
        """Every condition, held-out ones too."""
        return self._all

    def rows(self, index: Tensor) -> CloudBatch:
        """Any conditions."""
        index = index.to(self._all.start.device)
        return CloudBatch(
            start=self._all.start[index],
            time=self._all.time,
            target=self._all.target[index],
            production=self._all.production[index],
        )

    def validation(self) -> None:
        """Nothing is chosen here."""
        return None

    def to(self, device: torch.device | str) -> CloudData:
        """A copy on a device."""
        return self._converted(device=device)

    def astype(self, dtype: torch.dtype) -> CloudData:
        """A copy in another float type."""
        return self._converted(dtype=dtype)

    def _converted(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> CloudData:
        copy = object.__new__(CloudData)
        copy.__dict__.update(self.__dict__)
        copy._all = CloudBatch(
            **{k: v.to(device=device, dtype=dtype) for k, v in vars(self._all).items()}
        )
        if self.spec.is_edge is not None:
            copy.spec = replace(self.spec, is_edge=self.spec.is_edge.to(device=device))
        return copy


class LineageField(nn.Module):
    r"""A noisy field of production and decay, one small network for each gene.

    :math:`dx = (u\,\mathrm{softplus}(N_i(x)) - \gamma x)\,dt + \sigma \sqrt{x + \epsilon}\,dW`.
    Each gene's network sees the regulators of the gene alone where the graph is given. A gene that
    is pinned, and not merely no longer produced, is without noise. The draws of the noise are the
    same in every step of training: the loss is a function of the parameters.

    Args:
        spec: Sizes, scale and the graph where it is given.
        n_hidden: Units of each gene's network.
        max_step: Longest Euler–Maruyama step, days.
        is_noisy: Whether σ is fitted; without it cells follow an ordinary equation.
        has_growth: Whether cells divide at a rate that depends on their state.
        generator: Source of the start.

    Source:
        own; noise of Euler–Maruyama as in the simulator.
    """

    def __init__(
        self,
        spec: CloudSpec,
        *,
        n_hidden: Count,
        max_step: Positive,
        is_noisy: bool,
        has_growth: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n = len(spec.names)
        mask = torch.ones(n, n) if spec.is_edge is None else spec.is_edge.float()
        self.register_buffer("mask", mask)
        self.scale, self.max_step, self.is_pinned = spec.scale, max_step, spec.is_pinned

        def start(*shape: int, fan_in: int) -> nn.Parameter:
            return nn.Parameter(
                (torch.rand(*shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)
            )

        self.inner = start(n, n, n_hidden, fan_in=max(1, round(float(mask.sum(1).mean()))))
        self.bias = start(n, n_hidden, fan_in=1)
        self.outer = start(n, n_hidden, fan_in=n_hidden)
        self.base = nn.Parameter(torch.zeros(n))
        self.log_gamma = nn.Parameter(torch.full((n,), math.log(0.7)))
        self.log_spread = nn.Parameter(torch.full((n,), math.log(0.2))) if is_noisy else None
        if has_growth:
            self.growth_inner = start(n, n_hidden, fan_in=n)
            self.growth_outer = nn.Parameter(torch.zeros(n_hidden))

    def drift(self, state: Tensor, production: Tensor) -> Tensor:
        """Drift f of states ``(*n, n_gene)`` under u of the same shape, expression units / day."""
        seen = state / self.scale
        weight = self.inner * self.get_buffer("mask")[..., None]
        n, _, h = weight.shape
        hidden = (seen @ weight.movedim(0, 1).reshape(n, n * h)).unflatten(-1, (n, h))
        made = (torch.tanh(hidden + self.bias) * self.outer).sum(-1) + self.base
        return production * self.scale * functional.softplus(made) - self.log_gamma.exp() * state

    def forward(self, batch: CloudBatch, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Clouds on the days after day 0, ``(B, T, C, G)``, and weights summing to 1."""
        generator = torch_generator(seed, "noise of the field")
        u = batch.production[:, None]
        log_spread = self.log_spread

        def spread(x: Tensor) -> Tensor:
            if log_spread is None:
                return torch.zeros_like(x)
            free = (u > 0).to(x) if self.is_pinned else 1.0
            return log_spread.exp() * (x.clamp_min(0) + FLOOR).sqrt() * free

        states, weights = euler_maruyama(
            lambda x: self.drift(x, u),
            spread,
            batch.start,
            batch.time,
            max_step=self.max_step,
            generator=generator,
            growth=self.growth if hasattr(self, "growth_outer") else None,
            floor=0.0,
        )
        return states[1:].movedim(0, 1), weights[1:].movedim(0, 1).softmax(-1)

    def growth(self, state: Tensor) -> Tensor:
        """Growth h of states ``(*n, n_gene)``, 1 / day."""
        return torch.tanh(state / self.scale @ self.growth_inner) @ self.growth_outer


class CloudObjective:
    """Distance between predicted and measured clouds, mean over conditions and days.

    Args:
        distance: ``energy``, or ``sinkhorn`` (extra ``transport``).
        blur: Entropy of the transport relative to the mean squared distance.
    """

    def __init__(self, *, distance: str, blur: Positive) -> None:
        if distance not in DISTANCES:
            raise ConfigError(f"unknown distance '{distance}': {nearest(distance, DISTANCES)}")
        self.distance, self.blur = distance, blur

    def __call__(self, model: LineageField, batch: CloudBatch) -> Terms:
        """The one term."""
        clouds, weights = model(batch)
        if self.distance == "energy":
            return Terms(energy_distance(clouds, batch.target, weights).mean())
        pairs = zip(
            clouds.flatten(0, 1), batch.target.flatten(0, 1), weights.flatten(0, 1), strict=True
        )
        found = [sinkhorn_divergence(a, b, blur=self.blur, weight_a=w) for a, b, w in pairs]
        return Terms(torch.stack(found).mean())


def fit_clouds(
    session: Any, *, n_epochs: Natural, learning_rate: NotNegative, clip_norm: Positive
) -> None:
    """Every training condition in each step, the learning rate falling to 0 as a cosine.

    Args:
        session: The session to train.
        n_epochs: Steps.
        learning_rate: Step size of Adam at the start.
        clip_norm: Largest gradient norm.
    """
    total = session.budget.epochs(n_epochs)
    with session.phase("clouds", train={"": learning_rate}, clip={"": clip_norm}) as phase:
        for epoch in phase.epochs(n_epochs):
            share = 0.5 * (1 + math.cos(math.pi * epoch / max(1, total)))
            for group in phase.optimizer.param_groups:
                group["lr"] = learning_rate * share
            session.step(session.data.batch(session.data.starts(1)))
