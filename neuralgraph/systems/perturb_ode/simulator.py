"""A knock-out screen of a known gene network, measured on several days."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural, NotNegative
from neuralgraph.core.errors import ConfigError, SolverError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import derived_seed, torch_generator
from neuralgraph.systems.perturb_ode.hill import HillNetwork, draw_network

N_DRAW = 50
"""Networks looked at before the settings count as impossible."""

MOVES = 0.05
"""Relative change of another gene from which a knock-out counts as having an effect."""


class HillScreen:
    """Bulk expression of a signed Hill network after knock-outs, cells starting at rest.

    Every condition starts at the attractor of the unperturbed network on day 0, when the knock-out
    stops the production of its target at once. Training sees the unperturbed cells and some single
    knock-outs; other singles and pairs of the training knock-outs are held out. Networks whose
    cells do not settle, or in which fewer than half of the knock-outs move another gene by 5 %,
    are drawn again.

    Args:
        n_gene: Genes.
        min_regulators: Fewest regulators of a gene.
        max_regulators: Most regulators of a gene.
        n_train_single: Single knock-outs for training.
        n_test_single: Other single knock-outs, held out.
        n_test_double: Double knock-outs of two training targets, held out.
        days: Days of measurement after day 0.
        noise: Standard deviation of one replicate relative to the expression.
        n_replicate: Replicates that are averaged.
        has_control: Whether unperturbed cells are measured on every day.

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
        days: list[float],
        noise: NotNegative,
        n_replicate: Count,
        has_control: bool,
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
        self.n_gene, self.n_regulator = n_gene, (min_regulators, max_regulators)
        self.n_train_single, self.n_test_single = n_train_single, n_test_single
        self.n_test_double = n_test_double
        self.days = [float(day) for day in days]
        self.noise, self.n_replicate, self.has_control = noise, n_replicate, has_control

    def simulate(self, seed: int) -> tuple[Recording, Truth]:
        """Draw a network and its screen; the same seed gives the same bytes."""
        network, rest, settled = self._accepted_network(seed)
        targets, is_test = self._conditions(seed)
        n_run = len(targets)
        production = torch.ones(n_run, self.n_gene, dtype=torch.float64)
        for run, genes in enumerate(targets):
            production[run, list(genes)] = 0.0
        regulation = torch.ones_like(production)
        start = rest.expand(n_run, -1)
        time = torch.tensor([0.0, *self.days], dtype=torch.float64)
        clean = network.flow(start, time, production, regulation)
        attractor = network.attractor(clean[:, -1], production, regulation)

        spread = self.noise / self.n_replicate**0.5
        noise = torch.randn(
            clean.shape, dtype=torch.float64, generator=torch_generator(seed, "noise")
        )
        state = clean * (1 + spread * noise)
        state[:, 0] = state[0, 0]  # one measurement of the unperturbed cells serves all
        names = tuple(f"G{gene + 1}" for gene in range(self.n_gene))
        target = torch.zeros(n_run, self.n_gene, dtype=torch.float64)
        for run, genes in enumerate(targets):
            target[run, list(genes)] = 1.0
        frames = (n_run, len(time), self.n_gene)
        recording = Recording(
            time=time.expand(n_run, -1).contiguous(),
            state=state,
            names=names,
            dx_dt_source="none",
            inputs={
                "production": production[:, None].expand(frames).contiguous(),
                "regulation": regulation[:, None].expand(frames).contiguous(),
                "variance": (spread * state) ** 2,
            },
            graph={"target": target},
            units={"time": "day", "state": "expression units"},
            provenance={
                "design": f"{int((~is_test).sum())} training conditions, {self.n_test_single} "
                f"single and {self.n_test_double} double knock-outs held out, days "
                + ", ".join(f"{day:g}" for day in self.days),
                "conditions": ["+".join(names[g] for g in genes) or "control" for genes in targets],
                "noise": self.noise,
                "effective_knock_outs": settled,
            },
            is_test=is_test,
        )
        truth = Truth(
            parameters={**network.tensors(), "state": clean, "attractor": attractor},
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

    def _conditions(self, seed: int) -> tuple[list[tuple[int, ...]], Tensor]:
        generator = torch_generator(seed, "conditions")
        genes = torch.randperm(self.n_gene, generator=generator).tolist()
        train = genes[: self.n_train_single]
        other = genes[self.n_train_single : self.n_train_single + self.n_test_single]
        pairs = list(itertools.combinations(train, 2))
        kept = torch.randperm(len(pairs), generator=generator)[: self.n_test_double].tolist()
        seen: list[tuple[int, ...]] = [()] if self.has_control else []
        seen += [(gene,) for gene in train]
        held = [(gene,) for gene in other] + [pairs[i] for i in kept]
        is_test = torch.arange(len(seen) + len(held)) >= len(seen)
        return seen + held, is_test

    def _accepted_network(self, seed: int) -> tuple[HillNetwork, Tensor, int]:
        """A network that settles, its state of rest, and how many knock-outs move others."""
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
            except SolverError:
                continue
            change = ((after - rest).abs() / rest.clamp_min(1e-6)) * (1 - eye)
            moving = int((change.amax(1) > MOVES).sum())
            if 2 * moving >= self.n_gene:
                return network, rest, moving
        raise ConfigError(
            f"none of {N_DRAW} networks settles with half of its knock-outs effective: raise "
            "max_regulators or change the seed"
        )
