"""Vector fields of gene expression, many of them trained side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuralgraph.core.bounds import Count, Positive
from neuralgraph.core.errors import ConfigError, nearest
from neuralgraph.numerics.integrate import integrate
from neuralgraph.systems.perturb_ode.dataset import ScreenBatch, ScreenSpec
from neuralgraph.systems.perturb_ode.messages import RegulatorMessages

FIELDS = ("free", "production_decay", "hill", "signed_hill", "messages")
SOLVERS = ("rk4", "dopri5", "adjoint")
MEDIA = ("additive", "film")
TERMS = (
    "steady_control",
    "steady_perturbed",
    "steady_decay",
    "steady_split",
    "steady_gated",
    "steady_rollout",
    "kinetic",
    "steady_first_day",
    "weight_l2",
)
"""What an arm may add to the data loss (see :class:`.loss.ScreenObjective`)."""

MAX_STEPS = 10_000
"""Adaptive steps between two days; more is a stiff field, which is said."""

ODDS = 4.0
"""Log odds of activation for a weight of 1 in ``signed_hill``."""

FLOOR = 1e-3
"""Added to expression, in units of its typical size, before a logarithm is taken."""


class FieldEnsemble(nn.Module):
    r"""Vector fields $\dot x = f(x; u, w)$ of every arm, seed and fold, as one batched model.

    Parameters carry a leading model axis; ``arm``, ``seed`` and ``fold`` say what each model is.
    No number of one model enters another, so that an ensemble equals the models trained one by
    one. All models of a seed begin with the same parameters: differences between arms are
    differences of the loss.

    Fields, with $\hat x = w \odot x / \text{scale}$ and a tanh network N:

    - ``free``: $u \odot N(\hat x) - (1 - u) \odot \gamma \odot x$, unconstrained but for a gene
      whose production is stopped, which decays;
    - ``production_decay``: $u \odot \mathrm{softplus}(N(\hat x)) - \gamma \odot x$;
    - ``hill``: $u \odot a \odot \sigma(W \log(\hat x + \epsilon) + b) - \gamma \odot x$, one
      weight for each regulator and gene, masked to ``is_edge`` where the graph is given;
    - ``signed_hill``: $u \odot a \odot (\beta + (1 - \beta) \prod_{j \to i} (p_e h_e + (1 - p_e)
      (1 - h_e))) - \gamma \odot x$ with $h_e = \hat x_j^n / (K^n + \hat x_j^n)$ and a number
      $p_e$ in (0, 1), 1 for an edge that activates and 0 for one that represses. Where the data do
      not tell, $p_e$ stays near ½, at which losing the regulator changes nothing;
    - ``messages``: $u \odot \mathrm{softplus}(\beta + \sum_{j \to i} a_e \tanh(w_e \hat x_j + b_e))
      - \gamma \odot x$, messages along the edges of the graph (all pairs where none is given).

    A medium adds constant production to each gene, ``additive``, or multiplies the production,
    ``film``, one number for each medium and gene.

    Args:
        spec: Sizes, scale and the graph where it is given.
        field: One of the fields above.
        arms: What each arm adds to the data loss: name of the arm -> name of a term -> weight.
        n_seed: Starts of the parameters for each arm.
        n_seed_of: Other numbers of starts for some arms, or null.
        n_seed_inner: Starts for each arm in the folds that serve selection alone.
        n_hidden: Units of each hidden layer of N.
        n_layer: Hidden layers of N.
        max_step: Longest Runge–Kutta step, days.
        medium: How media act, ``additive`` or ``film``.
        solver: ``rk4`` in equal steps; ``dopri5`` with adaptive steps (torchdiffeq); ``adjoint``,
            the same with gradients by the adjoint equation. Adaptive steps are shared by all
            models, which then agree with models trained one by one to the tolerance only.
        rtol: Relative tolerance of adaptive steps.
        atol: Absolute tolerance, units of the state.
        generator: Source of the starts.

    Source:
        own; the terms of the arms as read from Kovačević et al. (2025), see the identity card.
    """

    def __init__(
        self,
        spec: ScreenSpec,
        *,
        field: str,
        arms: Mapping[str, Mapping[str, float]],
        n_seed: Count,
        n_seed_of: Mapping[str, int] | None,
        n_seed_inner: Count,
        n_hidden: Count,
        n_layer: Count,
        max_step: Positive,
        medium: str,
        solver: str,
        rtol: Positive,
        atol: Positive,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if field not in FIELDS:
            raise ConfigError(f"unknown field '{field}': {nearest(field, FIELDS)}")
        if solver not in SOLVERS:
            raise ConfigError(f"unknown solver '{solver}': {nearest(solver, SOLVERS)}")
        self.solver, self.rtol, self.atol = solver, rtol, atol
        self.names = spec.names if len(spec.names) == spec.n_state else None
        if medium not in MEDIA:
            raise ConfigError(f"unknown effect of media '{medium}': {nearest(medium, MEDIA)}")
        if field != "free" and not spec.has_interventions:
            raise ConfigError(
                f"the field '{field}' needs genes as coordinates, these data are projected on "
                "components: use field=free"
            )
        _check_arms(arms)
        if not spec.has_interventions:
            decay = [arm for arm, terms in arms.items() if (terms or {}).get("steady_decay")]
            if decay:
                raise ConfigError(
                    f"the arms {decay} measure rest in units of decay, which the field has where "
                    "coordinates are genes: leave steady_decay out"
                )
        unknown = set(n_seed_of or {}) - set(arms)
        if unknown:
            raise ConfigError(f"n_seed_of names arms that are not there: {sorted(unknown)}")
        self.field = field
        self.arms = {name: dict(terms or {}) for name, terms in arms.items()}
        self.max_step = max_step
        rows = [
            (arm, seed, fold)
            for arm, name in enumerate(self.arms)
            for fold in range(spec.n_fold)
            for seed in range(
                n_seed_inner if spec.is_inner[fold] else (n_seed_of or {}).get(name, n_seed)
            )
        ]
        arm, seed, fold = torch.tensor(rows).T
        self.register_buffer("arm", arm)
        self.register_buffer("seed", seed)
        self.register_buffer("fold", fold)
        scale = torch.tensor(spec.state_scale)[fold]
        self.register_buffer("scale", scale[:, None, None])
        table = torch.zeros(len(TERMS), len(self.arms))
        for number, terms in enumerate(self.arms.values()):
            for name, weight in terms.items():
                table[TERMS.index(name), number] = weight
        self.register_buffer("term_weight", table)
        n_start = int(seed.max()) + 1

        def start(*shape: int, fan_in: int) -> nn.Parameter:
            drawn = torch.rand(n_start, *shape, generator=generator) * 2 - 1
            return nn.Parameter((drawn / math.sqrt(fan_in))[seed])

        d = spec.n_state
        if field == "hill":
            self.weights = nn.ParameterList([start(d, d, fan_in=d)])
            self.biases = nn.ParameterList([start(d, fan_in=d)])
            self.log_top = nn.Parameter(start(d, fan_in=d).detach() + scale.log()[:, None])
            mask = torch.ones(d, d) if spec.is_edge is None else spec.is_edge.T.float()
            self.register_buffer("mask", mask)
        elif field == "signed_hill":
            regulator, is_regulated = _regulators(spec)
            self.register_buffer("regulator", regulator)
            self.register_buffer("is_regulated", is_regulated)
            shape = regulator.shape
            drawn = 0.1 * start(3, *shape, fan_in=1).detach()
            self.weights = nn.ParameterList([nn.Parameter(drawn[:, 0] * is_regulated)])
            self.log_threshold = nn.Parameter(drawn[:, 1].clone())
            self.log_exponent = nn.Parameter(math.log(2.0) + drawn[:, 2])
            self.biases = nn.ParameterList([nn.Parameter(0.1 * start(d, fan_in=1).detach() - 2)])
            self.log_top = nn.Parameter(start(d, fan_in=d).detach() + scale.log()[:, None])
        elif field == "messages":
            is_edge = _edges(spec)
            gene, regulator = is_edge.nonzero().T
            self.register_buffer("edge_index", torch.stack([regulator, gene]))
            n_edge = len(gene)
            fan_in = max(1, round(n_edge / d))
            self.weights = nn.ParameterList(
                [start(1, n_edge, fan_in=1), start(1, n_edge, fan_in=fan_in)]
            )
            self.biases = nn.ParameterList([start(1, n_edge, fan_in=1), start(1, d, fan_in=d)])
            self.pass_messages = RegulatorMessages()
        else:
            sizes = [d, *[n_hidden] * n_layer, d]
            pairs = list(itertools.pairwise(sizes))
            self.weights = nn.ParameterList([start(i, o, fan_in=i) for i, o in pairs])
            self.biases = nn.ParameterList([start(o, fan_in=i) for i, o in pairs])
        self.medium = medium
        if spec.n_medium:
            self.of_medium = nn.Parameter(torch.zeros(self.n_model, spec.n_medium, d))
        if spec.has_interventions:
            self.log_gamma = nn.Parameter(torch.full((self.n_model, d), math.log(0.7)))

    @property
    def n_model(self) -> int:
        """Models trained side by side."""
        return self.get_buffer("arm").shape[0]

    def weight_of(self, term: str) -> Tensor:
        """Weight of a loss term in each model, ``(n_model,)``."""
        return self.get_buffer("term_weight")[TERMS.index(term)][self.get_buffer("arm")]

    def of(self, arm: str, fold: int = 0) -> Tensor:
        """Indices of the models of an arm in a fold, by seed."""
        wanted = self.get_buffer("arm") == list(self.arms).index(arm)
        return (wanted & (self.get_buffer("fold") == fold)).nonzero()[:, 0]

    def rate(self, state: Tensor, batch: ScreenBatch) -> Tensor:
        """dx/dt of states under the interventions and media of a batch."""
        return self(state, batch.production, batch.regulation, batch.medium)

    def forward(
        self,
        state: Tensor,
        production: Tensor,
        regulation: Tensor,
        medium: Tensor | None = None,
    ) -> Tensor:
        """dx/dt, units of the state / day.

        Args:
            state: ``(n_model, n_condition, n_state)``.
            production: u, ``(n_condition, n_state)``.
            regulation: w, ``(n_condition, n_state)``.
            medium: ``(n_condition, n_medium)``, ``None`` for the usual one.
        """
        scale = self.get_buffer("scale")
        seen = regulation * state / scale
        if self.field == "hill":
            weight = self.weights[0] * self.get_buffer("mask")
            drive = torch.baddbmm(
                self.biases[0][:, None], (seen.clamp_min(0) + FLOOR).log(), weight
            )
            made = self.log_top.exp()[:, None] * torch.sigmoid(drive)
        elif self.field == "signed_hill":
            made = self.signed_production(seen)
        else:
            made = self.network(seen) if self.field != "messages" else self.messages(seen)
            made = scale * (functional.softplus(made) if self.field != "free" else made)
        if medium is not None and hasattr(self, "of_medium"):
            effect = medium @ self.of_medium
            made = made + scale * effect if self.medium == "additive" else made * (1 + effect)
        if not hasattr(self, "log_gamma"):
            return made
        decay = self.log_gamma.exp()[:, None] * state
        stopped = (1 - production) * decay if self.field == "free" else decay
        return production * made - stopped

    def signed_production(self, seen: Tensor) -> Tensor:
        """Production of each gene by regulators of uncertain sign, same shape as ``seen``."""
        level = (seen.clamp_min(0) + FLOOR).log()[..., self.get_buffer("regulator")]
        steep = self.log_exponent.exp()[:, None]
        hill = torch.sigmoid(steep * (level - self.log_threshold[:, None]))
        activates = torch.sigmoid(ODDS * self.weights[0])[:, None]
        each = activates * hill + (1 - activates) * (1 - hill)
        each = torch.where(self.get_buffer("is_regulated"), each, torch.ones_like(each))
        base = torch.sigmoid(self.biases[0])[:, None]
        return self.log_top.exp()[:, None] * (base + (1 - base) * each.prod(-1))

    def messages(self, seen: Tensor) -> Tensor:
        """Sum of what the regulators of each gene send, and its own base, same shape."""
        weight, top = self.weights
        bias, base = self.biases
        return base + self.pass_messages(seen, self.get_buffer("edge_index"), top, weight, bias)

    def network(self, seen: Tensor) -> Tensor:
        """N of scaled states, same shape."""
        hidden = seen
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias[:, None], hidden, weight)
            if layer < last:
                hidden = torch.tanh(hidden)
        return hidden

    def flow(self, batch: ScreenBatch, time: Tensor | None = None) -> Tensor:
        """States on the days after the first, ``(n_model, n_condition, n_day, n_state)``.

        Classical Runge–Kutta steps of at most ``max_step``, the same step for every model, or the
        adaptive solver.

        Raises:
            SolverError: an adaptive step underflows; names the gene and the day.
        """
        if self.solver != "rk4":
            return self._adaptive(batch, batch.time if time is None else time)
        grid = (batch.time if time is None else time).tolist()
        state = batch.start[self.get_buffer("fold")]
        frames = []
        for begin, end in itertools.pairwise(grid):
            n_step = max(1, math.ceil((end - begin) / self.max_step - 1e-9))
            h = (end - begin) / n_step
            for _ in range(n_step):
                k1 = self.rate(state, batch)
                k2 = self.rate(state + 0.5 * h * k1, batch)
                k3 = self.rate(state + 0.5 * h * k2, batch)
                k4 = self.rate(state + h * k3, batch)
                state = state + (h / 6) * (k1 + 2 * (k2 + k3) + k4)
            frames.append(state)
        return torch.stack(frames, dim=2)

    def _adaptive(self, batch: ScreenBatch, time: Tensor) -> Tensor:
        start = batch.start[self.get_buffer("fold")]
        states = integrate(
            lambda _, x: self.rate(x, batch),
            start,
            time,
            rtol=self.rtol,
            atol=self.atol,
            max_steps=MAX_STEPS,
            names=self.names,
            adjoint=tuple(self.parameters()) if self.solver == "adjoint" else None,
        )
        return states[1:].permute(1, 2, 0, 3)

    def predict(self, batch: ScreenBatch, time: Tensor | None = None) -> Tensor:
        """Genes on the days after the first, ``(n_model, n_condition, n_day, n_gene)``."""
        return batch.decode(self.flow(batch, time), self.get_buffer("fold"))

    def weight_l2(self) -> Tensor:
        """Sum of the squared weights of each model, ``(n_model,)``."""
        return torch.stack([w.square().flatten(1).sum(1) for w in self.weights]).sum(0)


def _edges(spec: ScreenSpec) -> Tensor:
    """The given graph, else all pairs of genes, ``(n_gene, n_gene)`` bool: gene, regulator."""
    if spec.is_edge is not None:
        return spec.is_edge.bool()
    return ~torch.eye(spec.n_state, dtype=torch.bool)


def _regulators(spec: ScreenSpec) -> tuple[Tensor, Tensor]:
    """Regulators of each gene in a table as wide as the most of them, and where it is filled."""
    is_edge = _edges(spec)
    width = max(1, int(is_edge.sum(1).max()))
    regulator = torch.zeros(spec.n_state, width, dtype=torch.long)
    is_regulated = torch.arange(width) < is_edge.sum(1)[:, None].cpu()
    for gene, row in enumerate(is_edge):
        found = row.nonzero()[:, 0]
        regulator[gene, : len(found)] = found
    return regulator, is_regulated


def _check_arms(arms: Mapping[str, Mapping[str, float]]) -> None:
    if "standard" not in arms:
        raise ConfigError(f"arms must hold 'standard' (the data loss alone), got {[*arms]}")
    if arms["standard"]:
        raise ConfigError("the arm 'standard' is the data loss alone: leave it empty, {}")
    for arm, terms in arms.items():
        for name, weight in (terms or {}).items():
            if name not in TERMS:
                raise ConfigError(f"arms.{arm}: unknown term '{name}': {nearest(name, TERMS)}")
            if weight < 0:
                raise ConfigError(f"arms.{arm}.{name} must be 0 or above, got {weight}")
