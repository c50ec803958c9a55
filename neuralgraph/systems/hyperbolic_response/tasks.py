"""Held-out questions made of training conditions: what a residual is learned and chosen on.

A test condition is predicted from the training conditions of its fold. To learn what such a
prediction lacks, every training condition is asked for in the same way: it is taken out of what
is known, the closed-form baseline is made without it, and what is left over is the residual to be
learned. Principal directions (``Tasks.loading``) are made once for each member of the ensemble,
without the conditions it never learns from: what a member is validated on is in none of its own.
It still is among what the member's other questions may know.
Nothing of a test condition enters anything but the names of its genes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from neuralgraph.core.errors import DataError
from neuralgraph.systems.hyperbolic_response.baselines import (
    PREDICTORS,
    Known,
    additive,
    parts,
    perturbed_mean,
    shrunk,
)
from neuralgraph.systems.hyperbolic_response.dataset import ConditionSet, Fold, ResponseData
from neuralgraph.systems.hyperbolic_response.gene_graph import GeneGraph

FEATURES = (
    "shrunk, control exact",
    "shrunk, control of the population",
    "own gene falls to zero",
    "own gene as in the baseline",
    "direct targets in the graph",
    "neighbourhood in the graph",
    "agreeing parts overlap",
    "opposing parts cancel",
    "product of the parts",
    "branch below common regulators",
    "masking along a path",
    "each perturbation counts alike",
    "combinations count too",
)
"""Gene-wise directions a residual is composed of, in the order of ``Tasks.feature``."""
DIRECTION_SETS = ((2, 3), (4, 5), (6, 7, 8), (9, 10), (11, 12), (0, 1), tuple(range(13)))
"""Columns of ``FEATURES`` that are tried together: the own gene, the graph, the parts of a pair,
classical epistasis, other means, shrinkage, everything."""
N_SCALAR = 5
"""Numbers that describe a question as a whole, ``Tasks.scalar``, before those of the cell type."""
N_STATE = 3
"""Coordinates of a cell type at most, see :func:`cell_states`."""


@dataclass(frozen=True)
class Tasks:
    """Questions of every form and fold; V forms, F folds, T questions (padded), G genes.

    Form 0 measures against all controls, for prediction and truth alike; form r > 0 against the
    prediction half of the controls in cut r - 1.

    Args:
        base: Closed-form baseline, ``(V, F, T, G)``.
        target: Measured response, the same shape; 0 for test questions.
        feature: Directions of the residual, ``(V, F, T, G, K)``.
        scalar: Numbers of the question as a whole and of its cell type,
            ``(V, F, T, N_SCALAR + n_state)``.
        value: Responses (of single genes) or departures from additivity (of combinations) of the
            other training conditions, ``(V, F, C, G)``, what attention mixes.
        value_hot: Their perturbed genes, ``(F, C, P)``.
        is_open: Which of them a question may look at, ``(F, T, C)`` bool.
        hot: Perturbed genes of the questions, ``(F, T, P)``.
        loading: Orthonormal directions of the responses in training, for each member those of the
            conditions it may learn from, ``(V, F, M, G, L)``.
        weight: 1 / mean squared residual of the baseline, 0 for padding, ``(V, F, T)``.
        noise: Sampling variance of a measured response, ``(V, F, G)``.
        is_full: Whether every gene of a question was perturbed alone, ``(F, T)`` bool.
        chunk: Member of the ensemble that never learns from a question, ``(F, T)`` long.
        is_real: Padding is False, ``(F, T)`` bool.
    """

    base: Tensor
    target: Tensor
    feature: Tensor
    scalar: Tensor
    value: Tensor
    value_hot: Tensor
    is_open: Tensor
    hot: Tensor
    loading: Tensor
    weight: Tensor
    noise: Tensor
    is_full: Tensor
    chunk: Tensor
    is_real: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Tasks:
        """A copy on a device, in a float type."""
        return replace(
            self,
            **{
                f.name: getattr(self, f.name).to(
                    device=device,
                    dtype=dtype if getattr(self, f.name).is_floating_point() else None,
                )
                for f in fields(self)
            },
        )

    @property
    def n_question(self) -> int:
        """Questions, padding not counted."""
        return int(self.is_real.sum())


@dataclass(frozen=True)
class TaskSettings:
    """How questions are made.

    Args:
        baseline: Closed-form predictor the residual stands on, a name in ``PREDICTORS``.
        n_loading: Directions of the responses in training.
        n_chunk: Members of the ensemble; each never learns from its share of the questions.
    """

    baseline: str
    n_loading: int
    n_chunk: int


def known_conditions(fold: Fold, form: int, chosen: ConditionSet | None = None) -> Known:
    """What a predictor may know in a fold: its training (and validation) conditions.

    Args:
        fold: The fold.
        form: 0 for all controls, r for the prediction half of cut r - 1.
        chosen: Other conditions than the training ones.
    """
    sets = [chosen] if chosen is not None else [fold.train, fold.validation]
    sets = [part for part in sets if part is not None]
    if form == 0:
        control = torch.cat([part.control_shared for part in sets])
    else:
        control = torch.cat([part.control[form - 1] for part in sets])
    mean = torch.cat([part.mean for part in sets])
    context = torch.cat([part.context for part in sets])
    levels = fold.control_mean_shared if form == 0 else fold.control_mean
    level = levels.clone().double()
    for place in context.unique().tolist():  # controls matched by batch: their mean in the type
        level[place] = control[context == place].double().mean(0)
    return Known(
        delta=(mean - control).double(),
        variance=torch.cat([part.variance for part in sets]).double(),
        hot=(torch.cat([part.multi_hot for part in sets]) > 0).double(),
        context=context,
        control=level,
        control_variance=_control_variance(fold, len(level), form),
        gene_of=torch.zeros(0, dtype=torch.long),
    )


def _control_variance(fold: Fold, n_context: int, form: int) -> Tensor:
    """Sampling variance of the control means that a form predicts with, ``(n_context, G)``."""

    def controls(context: int | None = None) -> Tensor:
        if form == 0:
            return fold.control_cells("all", context)
        return fold.prediction_cells(form - 1, context)

    found = []
    for place in range(n_context):
        cells = controls(place)
        if len(cells) < 2:
            cells = controls()
        found.append(cells.double().var(0) / len(cells))
    return torch.stack(found)


def n_state(n_context: int) -> int:
    """Coordinates that tell ``n_context`` cell types apart: 0 for one."""
    return min(n_context - 1, N_STATE)


def cell_states(control: Tensor) -> Tensor:
    """Where each cell type lies among the others, from its unperturbed cells.

    Args:
        control: Mean expression of the controls by cell type, ``(K, G)``.

    Returns:
        Principal coordinates of the centred rows, root mean square 1 for the first,
        ``(K, n_state(K))``.
    """
    n = n_state(len(control))
    left, size, _ = torch.linalg.svd(control - control.mean(0), full_matrices=False)
    at = left[:, :n] * size[:n]
    return at * len(control) ** 0.5 / size[:1].clamp_min(1e-9)


def measured_column(data: ResponseData, fold: Fold) -> Tensor:
    """Column of each perturbed gene among the response genes of a fold, -1 for none, ``(P,)``."""
    place = {name: i for i, name in enumerate(fold.gene_names)}
    return torch.tensor([place.get(name, -1) for name in data.perturbations], dtype=torch.long)


class Builder:
    """Makes questions of a data set, with everything that depends on folds made once.

    Everything is made on the CPU, wherever the data are. With ``split=unseen_cell_type`` a
    training condition is asked for with its perturbation known in the other cell types of training,
    as at test; with two cell types there is no other one, no question of training is like one of
    the test, and the gate stays 0.

    Args:
        data: The data.
        settings: How.
    """

    def __init__(self, data: ResponseData, settings: TaskSettings) -> None:
        data = data.to("cpu")
        self.data, self.settings = data, settings
        self.n_form = 1 + data.n_control_split
        graph = data.graph
        self.reach = _reach(graph)
        self.itself = torch.eye(graph.n_node, dtype=torch.float64)
        self.node = node = data.spec.perturbation_node.cpu()
        self.orders = [
            sorted(set((fold.test.multi_hot > 0).sum(1).tolist())) for fold in data.folds
        ]
        self.direct = [_direct(graph)[node][:, fold.gene_node.cpu()] for fold in data.folds]
        self.near = [self.reach[node][:, fold.gene_node.cpu()] for fold in data.folds]
        self.known = [
            [self._known(fold, form) for fold in data.folds] for form in range(self.n_form)
        ]
        self.rows = [self._asked_rows(fold) for fold in range(len(data.folds))]
        """Known conditions that serve as questions, by fold."""
        self.loadings = [
            [self._loadings(fold, form) for fold in range(len(data.folds))]
            for form in range(self.n_form)
        ]
        """Principal directions of each member, ``(M, G, L)``, by form and fold."""

    def _known(self, fold: Fold, form: int) -> Known:
        known = known_conditions(fold, form)
        return replace(known, gene_of=measured_column(self.data, fold))

    def inner(self, fold: int, form: int) -> tuple[Known, Tensor]:
        """What training questions may know, and the measured responses ``(K, G)`` they ask for.

        In a disjoint form the prediction half of the controls is cut once more: one part for what
        is known, the other for what is asked, as prediction and truth are at test.
        """
        known, of = self.known[form][fold], self.data.folds[fold]
        if form == 0:
            return known, known.delta
        sets = [part for part in (of.train, of.validation) if part is not None]
        mean = torch.cat([part.mean for part in sets]).double()
        cells = [rows.cpu() for part in sets for rows in part.rows]
        inputs, targets = self.data.quarters(form - 1)
        control = self.data.matched_controls(cells, inputs, of.genes.cpu())
        other = self.data.matched_controls(cells, targets, of.genes.cpu())
        level = known.control.clone()
        for place in known.context.unique().tolist():
            level[place] = control[known.context == place].mean(0)
        inner = replace(
            known,
            delta=mean - control,
            control=level,
            control_variance=2 * known.control_variance,
        )
        return inner, mean - other

    def hidden(self, fold: int, asked: Tensor, context: int) -> Tensor:
        """Known conditions ``(K,)`` that a question may not know, as none of a test does.

        The perturbation itself in every cell type, with a gene asked for alone all that touch it;
        where cell types are held out, the perturbation in this cell type.
        """
        known = self.known[0][fold]
        same = (known.hot == asked).all(1)
        if self.data.split == "unseen_cell_type":
            return same & (known.context == context)
        return (known.hot @ asked) > 0 if float(asked.sum()) == 1 else same

    def _asked_rows(self, fold: int) -> list[int]:
        order = self.known[0][fold].hot.sum(1)
        chosen = [i for i in range(len(order)) if int(order[i]) in self.orders[fold]]
        return chosen if len(chosen) > 1 else list(range(len(order)))

    def _loadings(self, fold: int, form: int) -> Tensor:
        """Directions of the conditions that no question of a member's own share may not know.

        Of training and test the same ones: a direction made anew would come with any sign.
        """
        known = self.inner(fold, form)[0]
        n_member, n_loading = self.settings.n_chunk, self.settings.n_loading
        is_open = torch.ones(n_member, len(known.hot), dtype=torch.bool)
        for t, row in enumerate(self.rows[fold]):
            hidden = self.hidden(fold, known.hot[row], int(known.context[row]))
            is_open[t % n_member] &= ~hidden
        found = known.delta.new_zeros(n_member, known.delta.shape[1], n_loading)
        for m in range(n_member):
            vectors = _principal(known.delta[is_open[m]], n_loading)
            found[m, :, : vectors.shape[1]] = vectors
        return found

    def training(self) -> Tasks:
        """Every training condition of the kind that is tested; what is known lacks its response."""
        rows = self.rows
        if max(map(len, rows)) < 2:
            raise DataError("fewer than two training conditions: nothing to learn a residual from")
        hot, context = [], []
        for fold, chosen in enumerate(rows):
            hot.append(self.known[0][fold].hot[chosen])
            context.append(self.known[0][fold].context[chosen])
        return self._tasks(hot, context, rows)

    def asked(self, hot: list[Tensor], context: list[Tensor]) -> Tasks:
        """Any perturbations, by fold: ``(T, P)`` and ``(T,)`` each; no target is needed."""
        return self._tasks([(h > 0).double() for h in hot], context, None)

    def test(self) -> Tasks:
        """The test conditions of every fold."""
        folds = self.data.folds
        return self.asked(
            [fold.test.multi_hot.cpu() for fold in folds],
            [fold.test.context.cpu() for fold in folds],
        )

    def _tasks(
        self, hot: list[Tensor], context: list[Tensor], rows: list[list[int]] | None
    ) -> Tasks:
        n_fold, n_form, spec = len(self.data.folds), self.n_form, self.data.spec
        width = max(max(len(h) for h in hot), 1)
        keys = [self._keys(f, hot[f]) for f in range(n_fold)]
        n_key = max(max(map(len, keys)), 1)
        n_gene, n_pert, n_feature = spec.n_gene, spec.n_perturbation, len(FEATURES)
        zeros = torch.zeros
        double = torch.float64
        base = zeros(n_form, n_fold, width, n_gene, dtype=double)
        target, feature = base.clone(), zeros(*base.shape, n_feature, dtype=double)
        state = n_state(spec.n_context)
        scalar = zeros(n_form, n_fold, width, N_SCALAR + state, dtype=double)
        value = zeros(n_form, n_fold, n_key, n_gene, dtype=double)
        value_hot = zeros(n_fold, n_key, n_pert, dtype=double)
        is_open = zeros(n_fold, width, n_key, dtype=torch.bool)
        all_hot = zeros(n_fold, width, n_pert, dtype=double)
        n_member = self.settings.n_chunk
        loading = zeros(n_form, n_fold, n_member, n_gene, self.settings.n_loading, dtype=double)
        weight = zeros(n_form, n_fold, width, dtype=double)
        noise = zeros(n_form, n_fold, n_gene, dtype=double)
        is_full, is_real = (zeros(n_fold, width, dtype=torch.bool) for _ in range(2))
        chunk = zeros(n_fold, width, dtype=torch.long)
        for f in range(n_fold):
            first = self.known[0][f]
            n, n_here = len(hot[f]), len(keys[f])
            value_hot[f, :n_here] = first.hot[keys[f]]
            all_hot[f, :n] = hot[f]
            is_real[f, :n] = True
            chunk[f, :n] = torch.arange(n) % n_member
            for t in range(n):
                asked = hot[f][t]
                same_order = first.hot.sum(1) == asked.sum()
                is_seen = same_order & ~self.hidden(f, asked, int(context[f][t]))
                is_open[f, t, :n_here] = is_seen[keys[f]]
            for v in range(n_form):
                known, wanted = self.known[v][f], self.known[v][f].delta
                if rows is not None:
                    known, wanted = self.inner(f, v)
                own = additive(known, known.hot, known.context)
                response = torch.where(
                    (known.hot.sum(1) == 1)[:, None], known.delta, known.delta - own
                )
                value[v, f, :n_here] = response[keys[f]]
                where = cell_states(self.known[v][f].control)
                loading[v, f] = self.loadings[v][f]
                noise[v, f] = known.variance.mean(0) + known.control_variance.mean(0)
                for t in range(n):
                    here = known
                    if rows is not None:
                        here = known.rows(~self.hidden(f, hot[f][t], int(context[f][t])))
                    question = self._question(here, hot[f][t : t + 1], context[f][t : t + 1], f, v)
                    base[v, f, t], feature[v, f, t], numbers, full = question
                    scalar[v, f, t] = torch.cat([numbers, where[int(context[f][t])]])
                    is_full[f, t] = full
                    if rows is not None:
                        target[v, f, t] = wanted[rows[f][t]]
                        left = (target[v, f, t] - base[v, f, t]).square().mean()
                        weight[v, f, t] = 1 / (left + 1e-2 * noise[v, f].mean() + 1e-12)
        return Tasks(
            base, target, feature, scalar, value, value_hot, is_open, all_hot, loading, weight,
            noise, is_full, chunk, is_real,
        )  # fmt: skip

    def _keys(self, fold: int, hot: Tensor) -> list[int]:
        """Known conditions that some question may borrow from: those of an order that is asked."""
        orders = set(hot.sum(1).tolist())
        return [i for i, n in enumerate(self.known[0][fold].hot.sum(1).tolist()) if n in orders]

    def _common_branch(self, hot: Tensor, fold: int) -> Tensor:
        """Where the regulators common to a pair reach, nearest ones first, ``(G,)``.

        A regulator counts by the product of its reaches to the two genes, each gene reaching
        itself; weights sum to 1 over regulators.
        """
        total = hot.new_zeros(self.near[fold].shape[1])
        genes = self.node[hot > 0].tolist()
        of = self.data.folds[fold].gene_node.cpu()
        for i, a in enumerate(genes):
            for b in genes[:i]:
                shared = (self.reach[:, a].abs() + self.itself[a]) * (
                    self.reach[:, b].abs() + self.itself[b]
                )
                rows = shared.nonzero()[:, 0]
                if len(rows):
                    weight = shared[rows] / shared[rows].sum()
                    reach = self.reach[rows][:, of] + self.itself[rows][:, of]
                    total = total + weight @ reach
        return total

    def _masking(self, hot: Tensor, pieces: Tensor, fold: int) -> Tensor:
        """Minus the response of a gene above another in the graph, on what the lower one reaches.

        Source:
            epistasis in the sense of Bateson (1909): the upper step no longer passes.
        """
        total = pieces.new_zeros(pieces.shape[1])
        place = (hot > 0).nonzero()[:, 0].tolist()
        of = self.data.folds[fold].gene_node.cpu()
        for a in place:
            for b in place:
                upper, lower = int(self.node[a]), int(self.node[b])
                if a != b and float(self.reach[upper, lower]) != 0:
                    below = (self.reach[lower] != 0) | (self.itself[lower] > 0)
                    total = total - pieces[a] * below[of]
        return total

    def _question(
        self, known: Known, hot: Tensor, context: Tensor, fold: int, form: int
    ) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Baseline ``(G,)``, features ``(G, K)``, scalars and whether all parts are known."""
        base = PREDICTORS[self.settings.baseline](known, hot, context)[0]
        exact = shrunk(known, control_is_exact=True)
        # The controls are shrunk towards the median perturbation where the parts are known. Where
        # they are not, what all perturbations share is the whole prediction, and must stay.
        full = bool((parts(known, hot, context)[1][0] == (hot[0] > 0)).all())
        population = shrunk(known, control_is_exact=False) if full else exact
        clean = exact if form == 0 else population
        pieces, is_known = parts(clean, hot, context)
        column = known.gene_of
        own = torch.zeros_like(base)
        touched = [int(column[p]) for p in hot[0].nonzero()[:, 0] if int(column[p]) >= 0]
        own[touched] = 1.0
        control = known.control[int(context[0])]
        scale = self.data.folds[fold].gene_std.double().cpu()
        direct = (hot @ self.direct[fold])[0] * scale
        near = (hot @ self.near[fold])[0] * scale
        overlap, opposed, product = _pairs(pieces[0][hot[0] > 0])
        features = torch.stack(
            [
                additive(exact, hot, context)[0] - base,
                additive(population, hot, context)[0] - base,
                -own * control,
                -own * base,
                direct,
                near,
                overlap,
                opposed,
                product,
                self._common_branch(hot[0], fold) * scale,
                self._masking(hot[0], pieces[0], fold),
                *_other_means(known if form == 0 else population, hot, context, is_known),
            ],
            dim=-1,
        )
        seen = pieces[0][is_known[0]]
        sizes = seen.norm(dim=-1)
        unit = seen / sizes[:, None].clamp_min(1e-9)
        cosine = (unit @ unit.T).triu(1).sum() if len(seen) > 1 else base.new_zeros(())
        numbers = torch.stack(
            [
                hot.sum() - 1,
                is_known.double().sum() / hot.sum().clamp_min(1),
                cosine,
                torch.log1p(sizes.sum()),
                torch.log1p(sizes.max() - sizes.min()) if len(sizes) else base.new_zeros(()),
            ]
        )
        return base, features, numbers, full


def _other_means(
    known: Known, hot: Tensor, context: Tensor, is_known: Tensor
) -> tuple[Tensor, Tensor]:
    """What else could stand in for genes never perturbed alone, minus the perturbed mean, (G,).

    The mean of single responses scaled to one size, so that none outweighs the others; and the mean
    over all conditions, a combination counting for each of its genes.
    """
    near = known.same_context(int(context[0]))
    mean = perturbed_mean(near, hot, context)[0]
    order = near.hot.sum(1)
    single = near.delta[order == 1] if bool((order == 1).any()) else near.delta
    size = single.norm(dim=1, keepdim=True)
    alike = (single / size.clamp_min(1e-9)).mean(0) * size.mean()
    every = near.delta.sum(0) / order.sum().clamp_min(1)
    missing = float(hot.sum() - is_known.sum())
    return missing * (alike - mean), missing * (every - mean)


def _pairs(pieces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Symmetric functions of the responses of pairs, ``(n, G)`` to three ``(G,)``.

    Overlap: minus the smaller of two responses of one sign (redundant pathways). Opposed: minus
    the smaller of two of different sign (the larger wins). Product: a·b / (|a| + |b|).
    """
    zero = pieces.new_zeros(pieces.shape[-1])
    overlap, opposed, product = zero.clone(), zero.clone(), zero.clone()
    for i in range(len(pieces)):
        for j in range(i):
            a, b = pieces[i], pieces[j]
            small = torch.where(a.abs() < b.abs(), a, b)
            agree = a * b > 0
            overlap = overlap - small * agree
            opposed = opposed - small * ~agree
            product = product + a * b / (a.abs() + b.abs()).clamp_min(1e-9)
    return overlap, opposed, product


def _principal(delta: Tensor, n: int) -> Tensor:
    """First principal directions of responses, ``(G, at most n)``; fewer where there are fewer."""
    if len(delta) < 2:
        return delta.new_zeros(delta.shape[1], 0)
    vectors = torch.linalg.svd(delta - delta.mean(0), full_matrices=False).Vh
    return vectors[: min(n, len(delta) - 1)].T


def _direct(graph: GeneGraph) -> Tensor:
    """Signed weights from regulator to target, ``(n_node, n_node)``; both ways if undirected."""
    found = torch.zeros(graph.n_node, graph.n_node, dtype=torch.float64)
    weight = graph.weight.double().cpu()
    if graph.sign is not None:
        sign = graph.sign.double().cpu()
        weight = weight * torch.where(sign == 0, torch.ones_like(sign), sign)
    source, target = graph.edge_index.cpu()
    found.index_put_((source, target), weight, accumulate=True)
    if not graph.is_directed:
        found.index_put_((target, source), weight, accumulate=True)
    return found.clamp(-1, 1)


def _reach(graph: GeneGraph, *, n_step: int = 3, keep: float = 0.5) -> Tensor:
    """Signed spread from each node along the graph, without the node itself, ``(n, n)``.

    Sum over paths of up to ``n_step`` edges of the product of signed weights, halved at each step.
    """
    step = keep * _direct(graph)
    total, power = torch.zeros_like(step), torch.eye(len(step), dtype=step.dtype)
    for _ in range(n_step):
        power = power @ step
        total = total + power
    return total - total.diagonal().diag()
