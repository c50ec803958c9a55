r"""A rate law of its own for each reaction: $\dot c_i = d_i + \sum_j S_{ij} v_j$.

$v_j = \sum_m \theta_{jm} (\phi_m - \bar\phi_m)$ with $\phi_m$ the products, up to a total degree,
of the standardised logarithms of the metabolites that reaction j is known to depend on (and of the
known functions of time in its law). Everything is linear in $\theta$ at given S and in S at given
$\theta$.

The level of a rate is no part of $v_j$: with laws of their own, constant rates around every cycle
of the network leave the derivatives as they are. What is left of them is $d_i$. So a rate may be
negative here: it is the change against its mean over the training frames.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neuralgraph.core.bounds import Count, Natural, NotNegative
from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.numerics.incidence import Incidence
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.training.session import Session

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.dataset import MetabolismBatch, MetabolismSpec

SMALLEST_CONCENTRATION = 1e-8
SMALLEST_COEFFICIENT = 1e-3
"""Size of a coefficient that least squares wants on the other side of its known sign."""
GAIN = 1e-3
"""Relative fall of the squared error over so many sweeps below which S no longer moves."""
LOOK_BACK = 20
TOLERANCES = (0.01, 0.02, 0.04, 0.08)
"""Relative distances within which a coefficient counts as an integer, in turn."""
WORSE = 0.02
"""Relative rise of the squared error from which all ones are refused."""
SURE = 0.02
"""Tolerance up to which the smallest coefficient of a column may be above 1."""
LARGEST_UNIT = 3
"""Largest smallest coefficient of a column."""
MOST_RELATIVE = 3.0
"""Integer from which that distance is absolute: a large one is not told from its neighbours."""


class Metabolism_OwnRates(nn.Module):
    """Right-hand side of a network whose reactions each obey a law of their own.

    Args:
        spec: Sizes and graph (``data.spec``): support and roles must be given. ``met_sub`` are all
            metabolites a rate depends on, ``drive_sub`` the functions of time.
        generator: Source of the initial values.
        degree: Total degree of the products of logarithms.

    Raises:
        ConfigError: a prior or a degree that cannot work.

    Source:
        own.
    """

    kinetics = "own_rates"
    aggregation = "add"
    input_mode = "none"
    is_softplus = False
    flux_limit = False
    has_homeostasis = False
    met_sub: Tensor
    rxn_sub: Tensor
    met_all: Tensor
    rxn_all: Tensor
    sto_sub: Tensor
    log_k: Tensor
    sign_all: Tensor | None
    centre: Tensor
    spread: Tensor
    low: Tensor
    high: Tensor
    feature_mean: Tensor
    feature_index: Tensor
    feature_rxn: Tensor

    def __init__(self, spec: MetabolismSpec, *, generator: torch.Generator, degree: Count) -> None:
        super().__init__()
        if not (spec.has_roles and spec.has_support):
            raise ConfigError(
                "model=metabolism_own_rates needs to know which metabolites each rate depends on "
                "and changes: set prior.support=true and prior.roles=true"
            )
        if degree < 1:
            raise ConfigError(f"model.degree must be at least 1, got {degree}")
        self.n_met, self.n_rxn, self.degree = spec.n_met, spec.n_rxn, int(degree)
        self.n_drive = spec.n_drive
        self.has_roles = True
        self.notes: list[str] = []
        for name, value in (
            ("met_sub", spec.met_sub.long()),
            ("rxn_sub", spec.rxn_sub.long()),
            ("met_all", spec.met_all.long()),
            ("rxn_all", spec.rxn_all.long()),
            ("sign_all", spec.sign_all),
            ("order_levels", torch.ones(1)),
        ):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("sto_sub", torch.ones(spec.met_sub.numel()), persistent=False)
        self.register_buffer("log_k", torch.zeros(spec.n_rxn), persistent=False)
        self.to_metabolite = Incidence(self.met_all, self.rxn_all, spec.n_met, spec.n_rxn)

        known: list[list[int]] = [[] for _ in range(spec.n_rxn)]
        for met, rxn in zip(spec.met_sub.tolist(), spec.rxn_sub.tolist(), strict=True):
            known[rxn].append(met)
        if spec.drive_sub is not None and spec.drive_rxn is not None:
            for d, rxn in zip(spec.drive_sub.tolist(), spec.drive_rxn.tolist(), strict=True):
                known[rxn].append(spec.n_met + d)
        n_input = spec.n_met + self.n_drive
        index, owner = [], []
        for rxn, arguments in enumerate(known):
            for size in range(1, self.degree + 1):
                for product in itertools.combinations_with_replacement(arguments, size):
                    index.append([*product, *[n_input] * (self.degree - size)])  # a column of ones
                    owner.append(rxn)
        n_feature = len(index)
        self.register_buffer(
            "feature_index", torch.tensor(index).view(n_feature, self.degree), persistent=False
        )
        self.register_buffer("feature_rxn", torch.tensor(owner, dtype=torch.long), persistent=False)
        centre = torch.zeros(n_input)
        centre[: spec.n_met] = float(torch.tensor(spec.concentration_scale).log())
        self.register_buffer("centre", centre)
        self.register_buffer("spread", torch.ones(n_input))
        self.register_buffer("low", torch.full((n_input,), -float("inf")))
        self.register_buffer("high", torch.full((n_input,), float("inf")))
        self.register_buffer("feature_mean", torch.zeros(n_feature))
        self.theta = nn.Parameter(0.01 * torch.randn(n_feature, generator=generator))
        self.drift = nn.Parameter(torch.zeros(spec.n_met))
        size = 0.5 + torch.rand(spec.met_all.numel(), generator=generator)
        if spec.sto_all is not None:
            self.register_buffer("sto_all", spec.sto_all.clone())
        else:
            sign = torch.ones_like(size) if spec.sign_all is None else spec.sign_all.float()
            self.sto_all = nn.Parameter(size * torch.where(sign == 0, 1.0, sign))

    @property
    def is_stoichiometry_given(self) -> bool:
        """Whether ``sto_all`` is fixed."""
        return "sto_all" not in self._parameters

    def matrix(self) -> Tensor:
        """Dense stoichiometric matrix, ``(n_met, n_rxn)``."""
        return self.to_metabolite.dense(self.sto_all)

    # -- right-hand side ------------------------------------------------------------------------

    def standardise(self, batch: MetabolismBatch) -> None:
        """Set centre, spread, range and means of the features to those of these frames."""
        log = self._logarithms(batch.concentration, batch.inputs)
        self.centre.copy_(log.mean(0))
        self.spread.copy_(log.std(0).clamp_min(1e-6))
        self.low.copy_(log.amin(0))
        self.high.copy_(log.amax(0))
        self.feature_mean.zero_()
        self.feature_mean.copy_(self.features(batch.concentration, batch.inputs).mean(0))

    def features(self, concentration: Tensor, inputs: Tensor | None) -> Tensor:
        """Centred products of standardised logarithms, ``(n_batch, n_feature)``.

        Beyond the range of the training frames a polynomial means nothing: logarithms stop there.
        """
        log = self._logarithms(concentration, inputs).clamp(self.low, self.high)
        z = (log - self.centre) / self.spread
        z = torch.cat([z, z.new_ones(z.shape[0], 1)], dim=1)
        value = z[:, self.feature_index[:, 0]]
        for place in range(1, self.degree):
            value = value * z[:, self.feature_index[:, place]]
        return value - self.feature_mean

    def _logarithms(self, concentration: Tensor, inputs: Tensor | None) -> Tensor:
        if self.n_drive == 0:
            return concentration.clamp_min(SMALLEST_CONCENTRATION).log()
        if inputs is None or inputs.shape[1] != self.n_drive:
            raise DataError(
                f"the rate laws depend on {self.n_drive} known functions of time, which the batch "
                "does not hold (inputs)"
            )
        both = torch.cat([concentration, inputs.to(concentration)], dim=1)
        return both.clamp_min(SMALLEST_CONCENTRATION).log()

    def flux(self, concentration: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Change of each rate against its mean over the training frames, ``(n_batch, n_rxn)``."""
        value = self.features(concentration, inputs) * self.theta
        return value.new_zeros(value.shape[0], self.n_rxn).index_add(1, self.feature_rxn, value)

    def homeostasis(self, concentration: Tensor) -> Tensor:
        """The constant part of dc/dt, ``(n_batch, n_met)``."""
        return self.drift.expand(concentration.shape[0], -1)

    def forward(self, concentration: Tensor, inputs: Tensor | None = None) -> Tensor:
        """dc/dt, ``(n_batch, n_met)``.

        Args:
            concentration: ``(n_batch, n_met)``.
            inputs: Known functions of time, ``(n_batch, n_drive)``, where there are some.
        """
        v = self.flux(concentration, inputs)
        return self.to_metabolite(self.sto_all, v.t()).t() + self.drift

    def parts(
        self, concentration: Tensor, inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """dc/dt, and no homeostasis beside it."""
        return self(concentration, inputs), None


# -- training --------------------------------------------------------------------------------------


class _Alternation:
    """Alternating least squares of the laws and of S; sums over frames are formed once.

    Args:
        model: Standardised on the frames.
        batch: Every training frame.
        ridge: Added to the diagonal of the column-scaled normal equations of the laws.
    """

    def __init__(self, model: Metabolism_OwnRates, batch: MetabolismBatch, ridge: float) -> None:
        f = model.features(batch.concentration, batch.inputs).double()
        y = batch.dx_dt.double()
        self.weight = 1 / y.square().mean(0).clamp_min(1e-300)
        self.weight[y.abs().amax(0) == 0] = 0
        self.mean = y.mean(0)
        y = y - self.mean
        self.owner, self.ridge = model.feature_rxn, ridge
        self.gram, self.moment = f.T @ f, f.T @ y
        self.square = y.square().sum(0)
        self.total = float((self.weight * self.square).sum())
        shape = (model.n_met, model.n_rxn)
        self.support = torch.zeros(shape, dtype=torch.bool, device=y.device)
        self.support[model.met_all, model.rxn_all] = True
        self.sign = torch.zeros(shape, dtype=torch.float64, device=y.device)
        if model.is_stoichiometry_given or model.sign_all is None:
            self.S = torch.zeros_like(self.sign)
            self.S[model.met_all, model.rxn_all] = model.sto_all.detach().double()
        else:
            self.sign[model.met_all, model.rxn_all] = model.sign_all.double()
            self.S = torch.where(self.support & (self.sign == 0), 1.0, self.sign)
        self.settled = torch.zeros(model.n_rxn, dtype=torch.bool, device=y.device)
        if model.is_stoichiometry_given:
            self.settled[:] = True
        self.theta = f.new_zeros(f.shape[1])

    def laws(self) -> tuple[float, Tensor, Tensor]:
        """Solve for the laws; relative squared error, Gram matrix and moments of the rates."""
        S, owner = self.S, self.owner
        gram = self.gram * ((S.T * self.weight) @ S)[owner][:, owner]
        moment = (self.moment * (self.weight * S[:, owner].T)).sum(1)
        self.theta = _ridge(gram, moment, self.ridge)
        spread = self.theta.new_zeros(S.shape[1], self.theta.numel())
        spread[owner, torch.arange(self.theta.numel(), device=owner.device)] = self.theta
        gram_v, moment_v = spread @ self.gram @ spread.T, spread @ self.moment
        left = self.square - 2 * (S.T * moment_v).sum(0) + ((S @ gram_v) * S).sum(1)
        return float((self.weight * left).sum()) / max(self.total, 1e-300), gram_v, moment_v

    def rows(self, gram: Tensor, moment: Tensor) -> None:
        """Solve every row of S in the columns that are not settled."""
        for i in range(self.S.shape[0]):
            free = self.support[i] & (gram.diagonal() > 0) & ~self.settled
            members = free.nonzero().flatten()
            if not members.numel():
                continue
            rest = torch.where(free, 0.0, self.S[i])
            wanted = moment[members, i] - gram[members] @ rest
            row = _ridge(gram[members][:, members], wanted, 1e-9)
            sign = self.sign[i, members]
            self.S[i, members] = torch.where(row * sign < 0, SMALLEST_COEFFICIENT * sign, row)
        size = self.S.abs().sum(0) / self.support.sum(0).clamp_min(1)
        scale = torch.where(self.settled | (size == 0), 1.0, size)
        self.S = self.S / scale

    def run(self, n_sweep: int) -> float:
        """Sweep until the error no longer falls."""
        errors: list[float] = []
        for _ in range(n_sweep):
            error, gram, moment = self.laws()
            errors.append(error)
            if bool(self.settled.all()):
                break
            if len(errors) > LOOK_BACK and errors[-1 - LOOK_BACK] - error < GAIN * error:
                break
            self.rows(gram, moment)
        return self.laws()[0]

    def settle(self, tolerance: float, max_coefficient: int) -> int:
        """Put columns on the integers that they are near; returns how many."""
        n = 0
        for j in (~self.settled).nonzero().flatten().tolist():
            edges = self.support[:, j].nonzero().flatten()
            size = self.S[edges, j].abs()
            if not edges.numel() or float(size.min()) == 0:
                continue
            found = near_integers(size, tolerance, max_coefficient)
            if found is not None:
                sign, ones = self.S[edges, j].sign(), torch.ones_like(found)
                if float(found.max()) > 1 and not self._is_worse(
                    j, edges, sign * ones, sign * found
                ):
                    found = ones
                self.S[edges, j] = found * sign
                self.settled[j] = True
                n += 1
        return n

    def _is_worse(self, j: int, edges: Tensor, column: Tensor, other: Tensor) -> bool:
        """Whether the data speak against ``column`` in favour of ``other``, the laws free."""
        error = []
        kept = self.S[edges, j].clone()
        for trial in (column, other):
            self.S[edges, j] = trial
            error.append(self.laws()[0])
        self.S[edges, j] = kept
        return error[0] > (1 + WORSE) * error[1]


def near_integers(size: Tensor, tolerance: float, max_coefficient: int) -> Tensor | None:
    """Smallest integers in the ratio of ``size``, each within ``tolerance``, or ``None``.

    Coefficients within ``tolerance`` of each other are taken for equal, so that their mean decides
    where single ones are too large to be told from their neighbours.

    >>> near_integers(torch.tensor([65.2, 1.0, 64.1, 65.1]), 0.08, 65).tolist()
    [65.0, 1.0, 65.0, 65.0]
    >>> near_integers(torch.tensor([1.0, 0.4]), 0.05, 2) is None
    True
    """
    order = torch.argsort(size)
    level = size.clone().double()
    start = 0
    for place in range(1, len(order) + 1):
        is_end = place == len(order)
        if is_end or float(size[order[place]]) > (1 + 2 * tolerance) * float(size[order[start]]):
            members = order[start:place]
            level[members] = size[members].double().mean()
            start = place
    smallest = float(level.min())
    for multiple in range(1, min(LARGEST_UNIT, max_coefficient) + 1):
        if multiple > 1 and tolerance > SURE:
            return None
        ratio = level * (multiple / smallest)
        whole = ratio.round()
        if float(whole.max()) > max_coefficient:
            return None
        near = tolerance * whole.clamp_max(MOST_RELATIVE) / multiple
        if bool(((ratio - whole).abs() <= near).all()):
            return whole
    return None


@torch.no_grad()
def solve_own_rates(
    model: Metabolism_OwnRates,
    batch: MetabolismBatch,
    *,
    n_sweep: int,
    ridge: float,
    max_coefficient: int,
) -> tuple[float, int]:
    """Laws and S by alternating least squares, with columns put on the integers one by one.

    Each metabolite counts by the mean square of its derivative; entries keep their known signs.
    Columns whose ratios are near integers are settled there, the nearest first, and the rest is
    solved again: what is settled frees the others from its errors. A column for which all ones fit
    as well, or that nothing settles (its rate is confused with others), is read as all ones. With S
    given one solution is all there is to do.

    Args:
        model: Changed in place.
        batch: Every training frame.
        n_sweep: Sweeps at most, before the first column is settled.
        ridge: Added to the diagonal of the column-scaled normal equations of the laws.
        max_coefficient: Largest integer considered.

    Returns:
        Weighted mean square of what is not explained, relative to that of dc/dt about its mean;
        and the number of columns that were settled.

    Source:
        own; alternating least squares of a sum of functions of known arguments.
    """
    model.standardise(batch)
    work = _Alternation(model, batch, ridge)
    error = work.run(n_sweep)
    n_settled = 0
    if not model.is_stoichiometry_given:
        for tolerance in TOLERANCES:
            while n := work.settle(tolerance, max_coefficient):
                n_settled += n
                error = work.run(max(1, n_sweep // 10))
        work.S = torch.where(work.settled, work.S, work.S.sign())
        work.settled[:] = True
        error = work.run(1)
        model.sto_all.copy_(work.S[model.met_all, model.rxn_all])
    model.theta.copy_(work.theta)
    model.drift.copy_(work.mean)
    return error, n_settled


def _ridge(gram: Tensor, moment: Tensor, ridge: float) -> Tensor:
    """Solution of column-scaled normal equations."""
    scale = gram.diagonal().clamp_min(1e-300).rsqrt()
    scale = torch.where(gram.diagonal() > 0, scale, 0.0)
    scaled = gram * scale[:, None] * scale
    scaled.diagonal().add_(ridge + (scale == 0).to(scaled))
    return scale * torch.linalg.solve(scaled, scale * moment)


def data_train_own_rates(
    session: Session,
    *,
    n_sweep: Count,
    ridge: NotNegative,
    max_coefficient: Count,
    n_epochs: Natural,
    batch_size: Count,
    n_batches: Count,
    learning_rate: NotNegative,
) -> None:
    """Alternating least squares, then (optionally) Adam on everything.

    Args:
        session: The session to train.
        n_sweep: Sweeps of the alternation at most.
        ridge: Of the laws, relative to unit columns.
        max_coefficient: Largest integer considered.
        n_epochs: Epochs of a gradient phase afterwards; 0 leaves it out.
        batch_size: Frames of a batch.
        n_batches: Batches of an epoch.
        learning_rate: Of the gradient phase.
    """
    model, data = session.model, session.data
    if not isinstance(model, Metabolism_OwnRates):
        raise ConfigError(
            f"this loop trains model=metabolism_own_rates, got {type(model).__name__}"
        )
    if not isinstance(data, MetabolismData):
        raise ConfigError(f"this loop trains on dataset=metabolism, got {type(data).__name__}")
    with session.phase("alternating least squares", train={}) as phase:
        for _ in phase.epochs(1):
            error, n_settled = solve_own_rates(
                model,
                data.train,
                n_sweep=session.budget.rounds(n_sweep),
                ridge=ridge,
                max_coefficient=max_coefficient,
            )
            session.log(relative_error=f"{error:.6g}", n_settled=str(n_settled))
            if not model.is_stoichiometry_given:
                said = f"{n_settled} of {model.n_rxn} columns were read as integers from the data"
                if n_settled < model.n_rxn:
                    said += ", the others are all ones for want of evidence"
                session.note(said)
                session.note(f"assumed: no coefficient above {max_coefficient}")
    if not n_epochs:
        return
    rates = {name: learning_rate for name, _ in model.named_parameters()}
    with session.phase("gradient", train=rates) as phase:
        for _ in phase.epochs(n_epochs):
            for batch in session.batches(batch_size, n_batches=n_batches):
                session.step(batch)


def refuse(config: Any) -> None:
    """Priors this loop cannot work with.

    Raises:
        ConfigError: says what to change.
    """
    prior = config["prior"]
    if not prior.get("stoichiometry", False) and not (
        prior.get("support", False) and prior.get("roles", False)
    ):
        raise ConfigError(
            "loop=metabolism_own_rates needs prior.support=true and prior.roles=true: it must know "
            "which metabolites each rate depends on and changes"
        )


setattr(data_train_own_rates, "refuse", refuse)  # noqa: B010  # a function has no such field
