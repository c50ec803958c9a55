"""A knock-out screen of a known gene network, measured on several days."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural, NotNegative
from neuralgraph.core.errors import ConfigError, SolverError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import derived_seed, numpy_generator, torch_generator
from neuralgraph.systems.perturb_ode.hill import HillNetwork, draw_network
from neuralgraph.systems.perturb_ode.measurement import Measurement

if TYPE_CHECKING:
    from neuralgraph.viz.figure import Figure

N_DRAW = 50
"""Networks looked at before the settings count as impossible."""

MOVES = 0.05
"""Relative change of another gene from which a knock-out counts as having an effect."""


@dataclass(frozen=True)
class Conditions:
    """What is done to the cells; R conditions.

    Args:
        names: Label of each condition.
        genes: Knocked-out genes of each.
        medium: Medium of each, 0 for the usual one, ``(R,)``.
        production: u, ``(R, n_gene)``.
        added: Constant production by the medium, expression units / day, ``(R, n_gene)``.
        is_test: Held out, ``(R,)``.
    """

    names: list[str]
    genes: list[tuple[int, ...]]
    medium: Tensor
    production: Tensor
    added: Tensor
    is_test: Tensor

    @property
    def regulation(self) -> Tensor:
        """w, ``(R, n_gene)``: knock-outs here stop production."""
        return torch.ones_like(self.production)

    @property
    def target(self) -> Tensor:
        """1 for a knocked-out gene, ``(R, n_gene)``."""
        return 1 - self.production


class HillScreen:
    """Bulk expression of a signed Hill network after knock-outs, cells starting at rest.

    Every condition starts at the attractor of the unperturbed network on day 0, when the knock-out
    stops the production of its target and the medium is changed, at once. Training sees the
    unperturbed cells and some single knock-outs; other singles and pairs of the training knock-outs
    are held out. Each medium adds constant production to one or two genes: unperturbed cells and
    half of the training knock-outs are seen in it, the other half is held out. Networks of which a
    condition does not settle, or in which fewer than half of the knock-outs move another gene by
    5 %, are drawn again; ``redrawn`` in the facts counts them.

    Args:
        n_gene: Genes.
        min_regulators: Fewest regulators of a gene.
        max_regulators: Most regulators of a gene.
        n_train_single: Single knock-outs for training.
        n_test_single: Other single knock-outs, held out.
        n_test_double: Double knock-outs of two training targets, held out.
        n_medium: Media beside the usual one.
        days: Days of measurement after day 0.
        noise: Standard deviation of one replicate relative to the expression; not used where
            ``measurement`` counts.
        n_replicate: Replicates that are averaged.
        has_control: Whether unperturbed cells are measured on every day.
        measurement: Counts replicates as libraries of their own, ``null`` for Gaussian noise. It
            needs a reference, by which counts are turned into expression units.

    Source:
        own; ranges of the parameters in :func:`neuralgraph.systems.perturb_ode.hill.draw_network`.
    """

    def __init__(
        self,
        *,
        n_gene: Count,
        min_regulators: Count,
        max_regulators: Count,
        n_train_single: Count,
        n_test_single: Natural,
        n_test_double: Natural,
        n_medium: Natural,
        days: list[float],
        noise: NotNegative,
        n_replicate: Count,
        has_control: bool,
        measurement: Measurement | None,
    ) -> None:
        if not min_regulators <= max_regulators < n_gene:
            raise ConfigError(
                "regulators must obey min_regulators <= max_regulators < n_gene, got "
                f"{min_regulators}, {max_regulators} and {n_gene}"
            )
        if n_train_single + n_test_single > n_gene:
            raise ConfigError(
                f"{n_train_single} + {n_test_single} single knock-outs need as many genes, got "
                f"n_gene = {n_gene}"
            )
        n_pairs = n_train_single * (n_train_single - 1) // 2
        if n_test_double > n_pairs:
            raise ConfigError(
                f"{n_train_single} training knock-outs form {n_pairs} pairs, n_test_double asks "
                f"for {n_test_double}"
            )
        if not days or min(days) <= 0 or sorted(set(days)) != list(days):
            raise ConfigError(f"days must be positive and increasing, got {days}")
        if measurement is not None and measurement.reference <= 0:
            raise ConfigError(
                "a bulk screen that is counted needs measurement.reference above 0: counts alone "
                "tell relative expression only"
            )
        self.n_gene, self.n_regulator = n_gene, (min_regulators, max_regulators)
        self.n_train_single, self.n_test_single = n_train_single, n_test_single
        self.n_test_double, self.n_medium = n_test_double, n_medium
        self.days = [float(day) for day in days]
        self.noise, self.n_replicate, self.has_control = noise, n_replicate, has_control
        self.measurement = measurement

    def simulate(self, seed: int) -> tuple[Recording, Truth]:
        """Draw a network and its screen; the same seed gives the same bytes."""
        conditions = self.conditions(seed)
        network, rest, attractor, facts = self._accepted_network(seed, conditions)
        n_run = len(conditions.names)
        time = torch.tensor([0.0, *self.days], dtype=torch.float64)
        clean = network.flow(
            rest.expand(n_run, -1),
            time,
            conditions.production,
            conditions.regulation,
            conditions.added,
        )
        state, inputs = (
            self._with_noise(clean, seed)
            if self.measurement is None
            else self._counted(clean, self.measurement, seed)
        )
        state[:, 0] = state[0, 0]  # one measurement of the unperturbed cells serves all
        frames = (n_run, len(time), -1)
        names = tuple(f"G{gene + 1}" for gene in range(self.n_gene))
        is_test = conditions.is_test
        media = f", {self.n_medium} further media" if self.n_medium else ""
        in_media = torch.nn.functional.one_hot(conditions.medium, self.n_medium + 1)[:, 1:]
        recording = Recording(
            time=time.expand(n_run, -1).contiguous(),
            state=state,
            names=names,
            dx_dt_source="none",
            inputs={
                "production": conditions.production[:, None].expand(frames).contiguous(),
                "regulation": conditions.regulation[:, None].expand(frames).contiguous(),
                "medium": in_media.double()[:, None].expand(frames).contiguous(),
                **inputs,
            },
            graph={"target": conditions.target},
            units={"time": "day", "state": "expression units"},
            provenance={
                "design": f"{int((~is_test).sum())} training conditions, {self.n_test_single} "
                f"single and {self.n_test_double} double knock-outs held out{media}, days "
                + ", ".join(f"{day:g}" for day in self.days),
                "conditions": conditions.names,
                "noise": self.noise,
                "seed": seed,
                **facts,
            },
            is_test=is_test,
        )
        truth = Truth(
            parameters={
                **network.tensors(),
                "state": clean,
                "attractor": attractor,
                "added": conditions.added,
            },
            facts={"kind": "signed Hill network", "is_monostable_from_rest": True},
        )
        return recording, truth

    def reveal(
        self, recording: Recording, truth: Truth | None, /, *, edges: bool
    ) -> dict[str, Tensor]:
        """With ``edges``: which gene regulates which, without signs."""
        if not edges:
            return {}
        if truth is None:
            raise ConfigError("prior.edges=true needs a simulated network: set it to false")
        return {"is_edge": truth.parameters["sign"] != 0}

    def exhibits(self, recording: Recording, truth: Truth | None, folder: Path) -> Iterator[Figure]:
        """The branching design, and the causal graphs of one of its protocols."""
        from neuralgraph.systems.perturb_ode import plots
        from neuralgraph.systems.perturb_ode.causal import (
            branching_tree,
            contextual_graph,
            gene_graph,
        )
        from neuralgraph.systems.perturb_ode.operators import Culture, Medium, Perturb

        names, out = recording.names, folder / "figures"
        single = recording.graph["target"].sum(1) == 1
        genes = recording.graph["target"][single].nonzero()[:, 1].unique().tolist()
        media = [
            Medium(tuple(float(m == k) for k in range(self.n_medium))) for m in range(self.n_medium)
        ]
        tree = branching_tree([Perturb(g) for g in genes], media, names)
        yield plots.branching_figure(tree, out / "branching.png")
        if truth is None or not genes:
            return
        protocol = [Perturb(genes[0]), *media[:1], Culture(self.days[0])]
        if len(self.days) > 1:
            protocol.append(Culture(self.days[-1] - self.days[0]))
        moved = truth.parameters["added"].any(0).nonzero()[:, 0].tolist()
        graph = contextual_graph(protocol, names, [names[g] for g in moved])
        yield plots.contextual_figure(graph, out / "contextual.png")
        graph = gene_graph(truth.parameters["sign"], names, protocol)
        yield plots.gene_figure(graph, out / "genes.png")

    def conditions(self, seed: int) -> Conditions:
        """The conditions of a screen, those for training first."""
        generator = torch_generator(seed, "conditions")
        genes = torch.randperm(self.n_gene, generator=generator).tolist()
        train = genes[: self.n_train_single]
        other = genes[self.n_train_single : self.n_train_single + self.n_test_single]
        pairs = list(itertools.combinations(train, 2))
        kept = torch.randperm(len(pairs), generator=generator)[: self.n_test_double].tolist()
        rows: list[tuple[tuple[int, ...], int]] = [((), 0)] if self.has_control else []
        rows += [((gene,), 0) for gene in train]
        held: list[tuple[tuple[int, ...], int]] = [((gene,), 0) for gene in other]
        held += [(pairs[i], 0) for i in kept]
        generator = torch_generator(seed, "media")
        effect = torch.zeros(self.n_medium + 1, self.n_gene, dtype=torch.float64)
        for medium in range(1, self.n_medium + 1):
            n_input = int(torch.randint(1, 3, (1,), generator=generator))
            inputs = torch.randperm(self.n_gene, generator=generator)[:n_input]
            size = torch.rand(n_input, dtype=torch.float64, generator=generator)
            effect[medium, inputs] = 0.5 + size
            order = torch.randperm(len(train), generator=generator).tolist()
            half = (len(train) + 1) // 2
            rows += [((), medium)] if self.has_control else []
            rows += [((train[i],), medium) for i in order[:half]]
            held += [((train[i],), medium) for i in order[half:]]
        every = rows + held
        production = torch.ones(len(every), self.n_gene, dtype=torch.float64)
        for row, (knocked, _) in enumerate(every):
            production[row, list(knocked)] = 0.0
        medium = torch.tensor([m for _, m in every])
        names = ["+".join(f"G{g + 1}" for g in knocked) or "control" for knocked, _ in every]
        return Conditions(
            names=[f"{n} in M{m}" if m else n for n, (_, m) in zip(names, every, strict=True)],
            genes=[knocked for knocked, _ in every],
            medium=medium,
            production=production,
            added=effect[medium],
            is_test=torch.arange(len(every)) >= len(rows),
        )

    def _with_noise(self, clean: Tensor, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of the replicates with Gaussian noise, its variance, and means of two halves."""
        spread = self.noise / self.n_replicate**0.5

        def drawn(name: str) -> Tensor:
            return torch.randn(
                clean.shape, dtype=torch.float64, generator=torch_generator(seed, name)
            )

        state = clean * (1 + spread * drawn("noise"))
        found = {"variance": (spread * state) ** 2}
        if self.n_replicate > 1:
            # two halves of independent noise whose mean is the state
            apart = clean * spread * drawn("halves")
            found["halves"] = torch.stack([state + apart, state - apart], dim=2)
        return state, found

    def _counted(
        self, clean: Tensor, measurement: Measurement, seed: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of counted replicates in expression units, its variance, halves and counts."""
        import numpy as np

        n_run, n_time, n_gene = clean.shape
        repeated = clean[:, :, None].expand(-1, -1, self.n_replicate, -1)
        n_library = n_run * n_time * self.n_replicate
        batch = np.arange(n_library) % self.n_replicate  # a replicate is a batch of its own
        counted = measurement(
            repeated.reshape(n_library, n_gene).numpy(),
            batch,
            np.repeat(np.arange(n_run), n_time * self.n_replicate),
            numpy_generator(seed, "measurement"),
        )
        shape = (n_run, n_time, self.n_replicate)
        count = torch.from_numpy(counted.count).double().reshape(*shape, n_gene)
        reference = torch.from_numpy(counted.reference).double().reshape(*shape, 1)
        if not bool((reference > 0).all()):
            raise ConfigError(
                "a library counted no transcript of the reference: raise measurement.depth or "
                "measurement.reference"
            )
        exposure = reference / measurement.reference
        estimate = count / exposure
        state = estimate.mean(2)
        found = {"count": count, "exposure": exposure}
        if self.n_replicate > 1:
            half = self.n_replicate // 2
            found["halves"] = torch.stack(
                [estimate[:, :, :half].mean(2), estimate[:, :, half:].mean(2)], dim=2
            )
            found["variance"] = estimate.var(2) / self.n_replicate
        else:
            found["variance"] = state / exposure[:, :, 0] + measurement.dispersion * state**2
        return state, found

    def _accepted_network(
        self, seed: int, conditions: Conditions
    ) -> tuple[HillNetwork, Tensor, Tensor, dict[str, int]]:
        """A network that settles, its rest, the attractors of the conditions, and facts."""
        eye = torch.eye(self.n_gene, dtype=torch.float64)
        for attempt in range(N_DRAW):
            network = draw_network(
                derived_seed(seed, f"network {attempt}"),
                n_gene=self.n_gene,
                n_regulator=self.n_regulator,
            )
            one = torch.ones(1, self.n_gene, dtype=torch.float64)
            try:
                rest = network.attractor(one, one, one)
                all_rest = rest.expand(self.n_gene, -1)
                after = network.attractor(all_rest, 1 - eye, torch.ones_like(eye))
                change = ((after - rest).abs() / rest.clamp_min(1e-6)) * (1 - eye)
                moving = int((change.amax(1) > MOVES).sum())
                if 2 * moving < self.n_gene:
                    continue
                attractor = network.attractor(
                    rest.expand(len(conditions.names), -1),
                    conditions.production,
                    conditions.regulation,
                    conditions.added,
                )
            except SolverError:
                continue
            return network, rest, attractor, {"effective_knock_outs": moving, "redrawn": attempt}
        raise ConfigError(
            f"none of {N_DRAW} networks settles with half of its knock-outs effective: raise "
            "max_regulators or change the seed"
        )
