"""A variational autoencoder of single cells whose decoder is the measurement operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralgraph.core.bounds import Count, Natural, Part
from neuralgraph.core.errors import DataError
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.core.seeding import torch_generator
from neuralgraph.core.terms import Terms
from neuralgraph.systems.perturb_ode.glossary import COUNTS
from neuralgraph.systems.perturb_ode.loss import check_counts


@dataclass(frozen=True)
class CountSpec:
    """Sizes a model is built from; ``log_mean`` is the log of the mean share of each gene."""

    names: tuple[str, ...]
    n_batch: int
    n_condition: int
    log_mean: Tensor


@dataclass(frozen=True)
class CountBatch:
    """Cells: counts ``(n_cell, n_gene)``, and batch and condition of each, ``(n_cell,)``."""

    count: Tensor
    batch: Tensor
    condition: Tensor

    @property
    def depth(self) -> Tensor:
        """Counts of each cell, ``(n_cell, 1)``."""
        return self.count.sum(1, keepdim=True)


class CellCounts:
    """Counts of single cells; some cells of every condition are held out.

    Args:
        recording: With ``counts``, ``cell_condition`` and, where batches are known, ``cell_batch``
            (``simulator.batch_column`` of a file); without it all cells are of one batch.
        given: Nothing is needed.
        test_fraction: Cells that are held out.
    """

    def __init__(
        self, recording: Recording, given: Mapping[str, Tensor], *, test_fraction: Part
    ) -> None:
        count = recording.graph.get("counts")
        if count is None or "cell_condition" not in recording.graph:
            raise DataError(
                "an autoencoder of cells needs the counts of every cell, and these data have none: "
                "set simulator.keep_cells=true and, for a file, put counts in layers['counts']"
            )
        check_counts(count, instead="the layer must hold raw counts, not normalised values")
        empty = int((count.sum(1) == 0).sum())
        if empty:
            raise DataError(
                f"{empty} cells without a single count among the {count.shape[1]} genes cannot be "
                "placed: remove them, or raise simulator.max_genes where it is set"
            )
        condition = recording.graph["cell_condition"]
        batch = recording.graph.get("cell_batch", torch.zeros_like(condition))
        draw = torch.rand(len(count), generator=torch_generator(0, "held-out cells"))
        self.conditions: list[str] = list(recording.provenance["conditions"])
        self._all = CountBatch(count.double(), batch, condition)
        self.test_index = (draw < test_fraction).nonzero()[:, 0]
        self.train_index = (draw >= test_fraction).nonzero()[:, 0]
        share = (self._all.count / self._all.depth)[self.train_index].mean(0)
        self.spec = CountSpec(
            recording.names,
            int(batch.max()) + 1,
            int(condition.max()) + 1,
            share.clamp_min(1e-6).log(),
        )

    def starts(self, horizon: int) -> Tensor:
        """Training cells."""
        return torch.arange(len(self.train_index))

    def batch(self, index: Tensor, horizon: int = 1) -> CountBatch:
        """Training cells by index."""
        return self.rows(self.train_index[index])

    def rows(self, index: Tensor) -> CountBatch:
        """Any cells."""
        index = index.to(self._all.batch.device)
        return CountBatch(**{name: value[index] for name, value in vars(self._all).items()})

    def validation(self) -> None:
        """Nothing is chosen here."""
        return None

    def to(self, device: torch.device | str) -> CellCounts:
        """A copy on a device."""
        return self._converted(device=device)

    def astype(self, dtype: torch.dtype) -> CellCounts:
        """A copy in another float type."""
        return self._converted(dtype=dtype)

    def _converted(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> CellCounts:
        copy = object.__new__(CellCounts)
        copy.__dict__.update(self.__dict__)
        copy._all = CountBatch(
            count=self._all.count.to(device=device, dtype=dtype),
            batch=self._all.batch.to(device=device),
            condition=self._all.condition.to(device=device),
        )
        log_mean = self.spec.log_mean.to(device=device, dtype=dtype)
        copy.spec = replace(self.spec, log_mean=log_mean)
        return copy


class CountOperator(nn.Module):
    """From the abundance in a cell to its counts: library size, batch, dropout, dispersion.

    Args:
        spec: Sizes.
        has_dropout: Whether dropout is fitted.
    """

    def __init__(self, spec: CountSpec, *, has_dropout: bool) -> None:
        super().__init__()
        n_gene = len(spec.names)
        self.log_factor = nn.Parameter(torch.zeros(spec.n_batch, n_gene))
        self.log_dispersion = nn.Parameter(torch.full((n_gene,), math.log(0.3)))
        self.drop = nn.Parameter(torch.tensor([1.0, -3.0])) if has_dropout else None

    def factors(self) -> Tensor:
        """Factors r of each batch, those of the first being 1, ``(n_batch, n_gene)``."""
        return (self.log_factor - self.log_factor[:1]).exp()

    def measured(self, abundance: Tensor, batch: CountBatch) -> Tensor:
        """λ of every cell and gene, counts."""
        present = self.factors()[batch.batch] * abundance
        return batch.depth * present / present.sum(1, keepdim=True)

    def log_likelihood(self, count: Tensor, mean: Tensor) -> Tensor:
        """Of counts given λ, with dispersion and dropout, ``(n_cell,)``."""
        phi = self.log_dispersion.exp()
        size = 1 / phi
        found = (
            torch.lgamma(count + size)
            - torch.lgamma(size)
            - torch.lgamma(count + 1)
            - (count + size) * torch.log1p(phi * mean)
            + count * (phi * mean).clamp_min(1e-30).log()
        )
        if self.drop is not None:
            steepness, middle = self.drop
            kept = functional.logsigmoid(steepness * (torch.log1p(mean) - middle))
            lost = functional.logsigmoid(-steepness * (torch.log1p(mean) - middle))
            found = torch.where(count > 0, kept + found, torch.logaddexp(lost, kept + found))
        return found.sum(1)


class ConditionMeans(CountOperator):
    """The operator without a latent cell: one abundance for each condition.

    Args:
        spec: Sizes and the mean share of each gene.
        has_dropout: Whether dropout is fitted.
    """

    def __init__(self, spec: CountSpec, *, has_dropout: bool) -> None:
        super().__init__(spec, has_dropout=has_dropout)
        self.log_mean = nn.Parameter(spec.log_mean.repeat(spec.n_condition, 1))

    def misfit(self, batch: CountBatch) -> Tensor:
        """Minus the log likelihood of cells for each gene, their mean."""
        abundance = torch.softmax(self.log_mean, dim=1)[batch.condition]
        fit = self.log_likelihood(batch.count, self.measured(abundance, batch))
        return -fit.mean() / batch.count.shape[1]

    def fit(self, batch: CountBatch, *, n_steps: Count) -> None:
        """Every parameter by maximum likelihood, kept finite by a unit normal prior at its start.

        The prior weighs as little as one cell; without it a gene that no training cell of a
        condition shows would count as impossible.

        Args:
            batch: Training cells.
            n_steps: Most steps of LBFGS.
        """
        found = list(self.parameters())
        start = [p.detach().clone() for p in found]
        optimizer = torch.optim.LBFGS(
            found, max_iter=n_steps, history_size=20, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            away = sum((p - at).square().sum() for p, at in zip(found, start, strict=True))
            loss = self.misfit(batch) + 0.5 * away / batch.count.numel()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)


class CountVAE(CountOperator):
    r"""Latent cells, and the measurement operator from them to counts.

    :math:`z \sim N(\delta_p, I)` with a shift for each condition (0 for the first), abundance
    :math:`x = \mathrm{softmax}(\mu + D(z))`, and from there
    :math:`\lambda = l\, r_b x / \sum_h r_{bh} x_h`,
    :math:`y \sim k\,\mathrm{NB}(\lambda, \varphi)`, as
    :class:`neuralgraph.systems.perturb_ode.measurement.Measurement` has it: l the counts of the
    cell, r the factors of its batch (1 for the first), k the logistic dropout where it is fitted.

    Args:
        spec: Sizes and the mean share of each gene.
        n_latent: Coordinates of z.
        n_hidden: Units of encoder and decoder.
        has_dropout: Whether dropout is fitted.
        generator: Source of the start.

    Source:
        Kingma & Welling (2014); likelihood as in scVI (Lopez et al. 2018). That a measurement
        operator makes an autoencoder of the framework is said by Kovačević et al. (2025); this one
        is ours.
    """

    def __init__(
        self,
        spec: CountSpec,
        *,
        n_latent: Count,
        n_hidden: Count,
        has_dropout: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__(spec, has_dropout=has_dropout)
        n_gene = len(spec.names)

        def start(*shape: int) -> nn.Parameter:
            drawn = torch.rand(*shape, generator=generator) * 2 - 1
            return nn.Parameter(drawn / math.sqrt(shape[0]))

        self.register_buffer("log_mean", spec.log_mean.clone())
        self.n_latent = n_latent
        self.encoder_in, self.encoder_bias = (
            start(n_gene, n_hidden),
            nn.Parameter(torch.zeros(n_hidden)),
        )
        self.encoder_mean = start(n_hidden, n_latent)
        self.encoder_spread = start(n_hidden, n_latent)
        self.decoder_in, self.decoder_bias = (
            start(n_latent, n_hidden),
            nn.Parameter(torch.zeros(n_hidden)),
        )
        self.decoder_out = start(n_hidden, n_gene)
        self.shift = nn.Parameter(0.01 * start(spec.n_condition, n_latent).detach())

    def encode(self, batch: CountBatch) -> tuple[Tensor, Tensor]:
        """Mean and log spread of z given the counts, each ``(n_cell, n_latent)``."""
        share = torch.log1p(batch.count / batch.depth * 1e3)
        hidden = torch.tanh(share @ self.encoder_in + self.encoder_bias)
        return hidden @ self.encoder_mean, (hidden @ self.encoder_spread).clamp(-6, 3)

    def abundance(self, z: Tensor) -> Tensor:
        """Share x of every gene, ``(n_cell, n_gene)``, summing to 1."""
        change = torch.tanh(z @ self.decoder_in + self.decoder_bias) @ self.decoder_out
        return torch.softmax(self.get_buffer("log_mean") + change, dim=1)

    def shifts(self) -> Tensor:
        """δ of each condition, that of the first being 0, ``(n_condition, n_latent)``."""
        return self.shift - self.shift[:1]

    def bound(self, batch: CountBatch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Log likelihood at a draw of z and divergence from the prior, each ``(n_cell,)``."""
        mean, log_spread = self.encode(batch)
        z = mean + log_spread.exp() * noise
        fit = self.log_likelihood(batch.count, self.measured(self.abundance(z), batch))
        centre = self.shifts()[batch.condition]
        divergence = 0.5 * (
            (mean - centre).square() + (2 * log_spread).exp() - 2 * log_spread - 1
        ).sum(1)
        return fit, divergence


class BoundObjective:
    """Minus the evidence lower bound of a cell, for each gene.

    The draws of z belong to the places in a batch and are the same in every step; batches are drawn
    anew, so that a cell meets many of them.
    """

    def __call__(self, model: CountVAE, batch: CountBatch) -> Terms:
        """Misfit of the counts, and the divergence from the prior."""
        generator = torch_generator(0, "draws of the latent cells")
        noise = torch.randn(len(batch.count), model.n_latent, generator=generator)
        fit, divergence = model.bound(batch, noise.to(batch.count))
        n_gene = batch.count.shape[1]
        terms = Terms(-fit.mean() / n_gene)
        return terms.add("divergence", divergence.mean() / n_gene, 1.0)


class CountEvaluator:
    """Held-out cells beside what needs no latent cell.

    ``test_bound``: minus the evidence lower bound of held-out cells, for each gene (an upper bound
    of the surprise). ``test_bound_no_latent``: the surprise under :class:`ConditionMeans`, one
    abundance for each condition with batch factors, dispersion and dropout of its own, fitted to
    the training cells; no divergence is in it.

    Args:
        every: 0, nothing is watched.
        primary_metric: The number searches look at.
        direction: ``maximize`` or ``minimize``.
        n_steps: Most steps of the fit without a latent cell.
    """

    meanings = COUNTS

    def __init__(
        self, *, every: Natural, primary_metric: str, direction: str, n_steps: Count
    ) -> None:
        self.every, self.primary_metric, self.direction = every, primary_metric, direction
        self.n_steps = n_steps

    def __call__(
        self, model: CountVAE, data: CellCounts, truth: Truth | None, *, log: Mapping[str, Any]
    ) -> Scorecard:
        """Every score."""
        card = Scorecard()
        if len(data.test_index) == 0:
            card.skip("test_bound", "no cell is held out")
            return card
        test = data.rows(data.test_index)
        exact = data.astype(torch.float64)
        plain = ConditionMeans(exact.spec, has_dropout=model.drop is not None).to(
            exact.spec.log_mean
        )
        plain.fit(exact.rows(data.train_index), n_steps=self.n_steps)
        with torch.no_grad():
            card.add("test_bound_no_latent", float(plain.misfit(exact.rows(data.test_index))))
            card.add("test_bound", float(BoundObjective()(model, test).total))
            if data.spec.n_batch > 1:
                spread = model.factors()[1:].log().std(correction=0)
                card.add("batch_factor_spread", float(spread))
            else:
                card.skip("batch_factor_spread", "all cells are of one batch")
            card.add("median_dispersion", float(model.log_dispersion.exp().median()))
        card.add("final_loss", log["final_loss"])
        card.facts["baselines"] = {
            "test_bound": {"no latent cell": card.metrics["test_bound_no_latent"]}
        }
        return card

    def watch(self, model: CountVAE, data: CellCounts, truth: Truth | None) -> dict[str, float]:
        """Nothing."""
        return {}
