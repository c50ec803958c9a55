"""The predictive model: a closed-form baseline, and a gated residual on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from neuralgraph.core.bounds import Count, Natural, Positive
from neuralgraph.core.errors import ConfigError, nearest
from neuralgraph.nn.hyperbolic import (
    ManifoldName,
    bounded_curvature,
    free_curvature,
    geometry,
)
from neuralgraph.systems.hyperbolic_response.baselines import PREDICTORS
from neuralgraph.systems.hyperbolic_response.dataset import ResponseSpec
from neuralgraph.systems.hyperbolic_response.metrics import pearson
from neuralgraph.systems.hyperbolic_response.tasks import (
    FEATURES,
    N_SCALAR,
    Tasks,
    TaskSettings,
    n_state,
)

GROUPS = ("full", "partial")
"""Questions all of whose genes were perturbed alone, and the others: chosen for apart."""
N_NOISE = 3
"""Numbers of the calibrated variance, see :meth:`ResponseModel.spread`."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of questions; V forms, F folds, T questions, G genes.

    Args:
        base: Closed-form baseline, ``(V, F, T, G)``.
        residual: Learned residual before the gate, mean over the ensemble, the same shape.
        gate: Share of it that is kept, ``(V, F, T)``.
        std: Standard deviation of a measured response around the prediction, ``(V, F, T, G)``.
    """

    base: Tensor
    residual: Tensor
    gate: Tensor
    std: Tensor

    @property
    def delta(self) -> Tensor:
        """Predicted response, ``(V, F, T, G)``."""
        return self.base + self.gate[..., None] * self.residual

    @property
    def ungated(self) -> Tensor:
        """With the whole residual."""
        return self.base + self.residual


class ResponseModel(nn.Module):
    r"""Signed response of every gene to a perturbation, as baseline + gate x residual.

    The **baseline** is closed form (additive). The **residual** of a set S of perturbed genes is

    .. math::
        r_S = \sum_k w_k(S)\, f_k + E\, h(S) + \kappa \sum_c (\alpha_{Sc} - \bar\alpha_c)\, y_c

    with gene-wise directions :math:`f_k` (:data:`~.tasks.FEATURES`: reliability shrinkage, the
    perturbed gene itself, the gene graph, symmetric functions of a pair's single responses),
    principal directions E of the responses in training, and attention over the other training
    conditions by geodesic distance, :math:`\alpha_{Sc} = \mathrm{softmax}_c(-d(z_S, z_c) / \tau)`,
    whose responses (departures from additivity, for combinations) are borrowed;
    :math:`\bar\alpha` is the uniform weight for single genes and 0 for combinations.

    Perturbations are **embedded** by graph convolutions on the gene graph on the chosen manifold;
    z_S is the midpoint of the perturbed genes. Weights w and h are read off a symmetric code of S:
    the sum over genes of their embeddings plus a bilinear **interaction** over pairs, their
    distance, scalars of the question, and where its **cell type** lies among the others (principal
    coordinates of the controls; none for one cell type).

    The **curvature** is 1 or learned, for each single model apart: no number is shared between
    folds. Computations run in the space of curvature 1 on :math:`\sqrt c` times the tangent
    vectors, whose distances are :math:`\sqrt c` times those of curvature c.

    All forms (references to controls), folds and members of the ensemble are trained side by side
    as one batch; none feels another. The value at the start is subtracted, so that the residual
    is **exactly 0** there, with a gradient that is not.

    Args:
        spec: Sizes and gene graph.
        generator: Source of the start.
        manifold: ``poincare``, ``lorentz`` or ``euclidean``.
        baseline: Closed-form predictor, ``additive``, ``perturbed_mean``, ``matching_mean`` …
        dim: Dimension of the embedding.
        n_layer: Rounds of graph convolution.
        n_hidden: Width of the code of a perturbation.
        n_loading: Principal directions E.
        n_member: Members of the ensemble; each never learns from its share of the training
            conditions, on which the gate is chosen.
        n_control_split: Cuts of the controls, as in the data.
        init_std: Spread of the embeddings at the start.
        learnable_curvature: Learn c, from 1, within ``CURVATURE_BOUNDS``; in the Euclidean space
            the number is kept, so that parameters are counted alike, with nothing to act on.
    """

    gate: Tensor
    noise: Tensor

    def __init__(
        self,
        spec: ResponseSpec,
        *,
        generator: torch.Generator,
        manifold: ManifoldName,
        baseline: str,
        dim: Count,
        n_layer: Natural,
        n_hidden: Count,
        n_loading: Count,
        n_member: Count,
        n_control_split: Count,
        init_std: Positive,
        learnable_curvature: bool,
    ) -> None:
        super().__init__()
        if baseline not in PREDICTORS:
            raise ConfigError(f"model.baseline '{baseline}': {nearest(baseline, PREDICTORS)}")
        if n_member < 2:
            raise ConfigError(
                f"model.n_member must be at least 2 (each validates a share), got {n_member}"
            )
        self.settings = TaskSettings(baseline, n_loading, n_member)
        self.n_form, self.n_fold, self.n_member = 1 + n_control_split, spec.n_fold, n_member
        self.n_hidden, self.dim, self.n_layer = n_hidden, dim, n_layer
        self.space = geometry(manifold, curvature=1.0, learnable=False)
        index, weight = spec.graph.normalised()
        near = _within(index, spec.perturbation_node.cpu(), spec.n_node, n_layer)
        place = torch.full((spec.n_node,), -1)
        place[near] = torch.arange(len(near))
        inside = (place[index] >= 0).all(0)  # further nodes reach no perturbed gene
        self.register_buffer("edge_index", place[index[:, inside]])
        self.register_buffer("edge_weight", weight[inside].float())
        self.register_buffer("node_code", _node_code(spec, dim)[near])
        self.register_buffer("perturbation_node", place[spec.perturbation_node.cpu()])
        n_feature, m = len(FEATURES), self.n_model
        n_in = cast(Tensor, self.node_code).shape[1]

        def draw(*shape: int, scale: float) -> nn.Parameter:
            # one start for every form and fold, another for every member
            start = torch.randn(n_member, *shape, generator=generator) * scale
            return nn.Parameter(start.repeat(m // n_member, *[1] * len(shape)))

        weights = {"embed": draw(n_in, dim, scale=init_std)}
        for layer in range(n_layer):
            weights[f"mix{layer}"] = draw(dim, dim, scale=dim**-0.5)
        weights["single"] = draw(dim, n_hidden, scale=dim**-0.5)
        weights["left"] = draw(dim, n_hidden, scale=dim**-0.5)
        weights["right"] = draw(dim, n_hidden, scale=dim**-0.5)
        weights["number"] = draw(N_SCALAR + n_state(spec.n_context) + 1, n_hidden, scale=0.3)
        weights["bias"] = draw(n_hidden, scale=0.3)
        weights["direction"] = draw(n_hidden, n_feature, scale=n_hidden**-0.5)
        weights["constant"] = draw(n_feature, scale=0.1)
        weights["loading"] = draw(n_hidden, n_loading, scale=n_hidden**-0.5)
        weights["borrow"] = draw(1, scale=0.1)
        weights["temperature"] = draw(1, scale=0.1)
        if learnable_curvature:
            weights["curvature"] = nn.Parameter(torch.full((m, 1), free_curvature(1.0)))
        self.weight = nn.ParameterDict(weights)
        for name, value in weights.items():
            self.register_buffer(f"start_{name}", value.detach().clone())
            self.register_buffer(f"anchor_{name}", value.detach().clone())
            for group in GROUPS:
                self.register_buffer(f"{group}_{name}", value.detach().clone())
        self._kept: tuple[Tasks, float, tuple[Tensor, Tensor, Tensor]] | None = None
        self.register_buffer("gate", torch.zeros(self.n_form, self.n_fold, 2))
        noise = torch.zeros(self.n_form, self.n_fold, N_NOISE)
        noise[..., 0] = noise[..., 2] = 1.0
        self.register_buffer("noise", noise)

    @property
    def n_model(self) -> int:
        """Models trained side by side."""
        return self.n_form * self.n_fold * self.n_member

    def members(self, tasks: Tasks, weight: dict[str, Tensor] | None = None) -> Tensor:
        """Residual of every member, ``(V, F, M, T, G)``; exactly 0 before training.

        Args:
            tasks: Questions.
            weight: Weights by name; those in training, where ``None``.
        """
        before = self._before(tasks)
        now = self._code(tasks, dict(self.weight.items()) if weight is None else weight)
        direction, loading, borrowed = (a - b for a, b in zip(now, before, strict=True))
        residual = torch.einsum("vfmtk,vftgk->vfmtg", direction, tasks.feature)
        residual = residual + torch.einsum("vfmtl,vfmgl->vfmtg", loading, tasks.loading)
        return residual + torch.einsum("vfmtc,vfcg->vfmtg", borrowed, tasks.value)

    def _before(self, tasks: Tasks) -> tuple[Tensor, Tensor, Tensor]:
        """The code of questions at the start of training; kept while the questions are the same."""
        curvature = float(self.space.curvature.detach())
        if self._kept is None or self._kept[0] is not tasks or self._kept[1] != curvature:
            start = {name: getattr(self, f"start_{name}") for name in self.weight}
            with torch.no_grad():
                self._kept = (tasks, curvature, self._code(tasks, start))
        return self._kept[2]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch."""
        self._kept = None
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch."""
        self._kept = None
        return super()._apply(*args, **kwargs)

    def _code(self, tasks: Tasks, weight: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of directions, of principal directions and of borrowed responses."""
        points = self.embed(weight)  # (B, P, coordinates), B = forms x folds x members
        shape = (self.n_form, self.n_fold, self.n_member)
        root = self._root_curvature(weight)  # (B, 1, 1)
        tangent = (self.space.logmap0(points) / root).unflatten(0, shape)
        root = root.unflatten(0, shape)
        hot = tasks.hot[None, :, None]  # (1, F, 1, T, P)

        def project(name: str) -> Tensor:
            return tangent @ weight[name].unflatten(0, shape)

        left, right = hot @ project("left"), hot @ project("right")
        own = hot.square() @ (project("left") * project("right"))
        pair = left * right - own  # over ordered pairs of different genes: symmetric
        spot = self._midpoint(points, tasks.hot, shape)  # (V, F, M, T, coordinates)
        key = self._midpoint(points, tasks.value_hot, shape)
        apart = self._apart(points, tasks.hot, shape) / root[..., 0]
        number = torch.cat(
            [
                tasks.scalar[:, :, None].expand(*shape, *tasks.scalar.shape[2:]),
                torch.log1p(apart)[..., None],
            ],
            -1,
        )
        code = torch.tanh(
            hot @ project("single")
            + pair
            + number @ weight["number"].unflatten(0, shape)
            + weight["bias"].unflatten(0, shape)[..., None, :]
        )
        constant = weight["constant"].unflatten(0, shape)[..., None, :]
        direction = code @ weight["direction"].unflatten(0, shape) + constant
        loading = code @ weight["loading"].unflatten(0, shape)
        distance = self.space.dist(spot[..., :, None, :], key[..., None, :, :]) / root
        temperature = nn.functional.softplus(weight["temperature"].unflatten(0, shape))
        is_open = tasks.is_open[None, :, None]
        score = (-distance / (0.1 + temperature[..., None])).masked_fill(~is_open, -1e9)
        alpha = score.softmax(-1) * is_open
        # single genes: what neighbours have beyond the mean of all
        uniform = is_open / is_open.sum(-1, keepdim=True).clamp_min(1)
        is_single = (tasks.hot.sum(-1) == 1)[None, :, None, :, None]
        amount = nn.functional.softplus(weight["borrow"].unflatten(0, shape))[..., None]
        return direction, loading, amount * (alpha - uniform * is_single)

    def curvature(self, weight: dict[str, Tensor]) -> Tensor:
        """Curvature c of every single model, ``(n_model,)``; 1 where it is not learned."""
        if "curvature" not in weight or self.space.name == "euclidean":
            return torch.ones(self.n_model).to(weight["embed"])
        return bounded_curvature(weight["curvature"][:, 0])

    def _root_curvature(self, weight: dict[str, Tensor]) -> Tensor:
        """Square roots of the curvatures, ``(n_model, 1, 1)``."""
        return self.curvature(weight).sqrt()[:, None, None]

    def embed(self, weight: dict[str, Tensor] | None = None) -> Tensor:
        r"""Points of the perturbed genes, ``(n_model, P, coordinates(dim))``.

        In the space of curvature 1, where distances are :math:`\sqrt c` times the model's own.
        """
        weight = dict(self.weight.items()) if weight is None else weight
        code = cast(Tensor, self.node_code)
        edge, strength = cast(Tensor, self.edge_index), cast(Tensor, self.edge_weight)
        root = self._root_curvature(weight)
        points = self.space.expmap0(root * (code.to(weight["embed"].dtype) @ weight["embed"]))
        for layer in range(self.n_layer):
            tangent = self.space.logmap0(points) @ weight[f"mix{layer}"]
            mixed = self.space.midpoint_edges(
                self.space.expmap0(tangent), edge, strength, points.shape[-2]
            )
            # what a gene is itself stays visible: neighbours are added along the old place
            points = self.space.add(points, mixed)
        return points[:, cast(Tensor, self.perturbation_node)]

    def _midpoint(self, points: Tensor, hot: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Midpoints of perturbed genes, ``(V, F, M, T, coordinates)``; padding lies anywhere."""
        weight = hot + (hot.sum(-1, keepdim=True) == 0).to(hot.dtype)
        spread = weight[None, :, None].expand(*shape, *weight.shape[1:]).flatten(0, 2)
        return self.space.midpoint(points, spread).unflatten(0, shape)

    def _apart(self, points: Tensor, hot: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Mean distance between the genes of a combination, 0 for one gene, ``(V, F, M, T)``."""
        n_pert = hot.shape[-1]
        pair = torch.triu_indices(n_pert, n_pert, 1, device=hot.device)
        both = (hot[..., pair[0]] > 0) & (hot[..., pair[1]] > 0)  # (F, T, n_pair)
        used = both.flatten(0, 1).any(0)
        if not bool(used.any()):
            return points.new_zeros(*shape, hot.shape[1])
        pair, both = pair[:, used], both[..., used].to(points.dtype)
        distance = self.space.dist(points[:, pair[0]], points[:, pair[1]]).unflatten(0, shape)
        count = both.sum(-1).clamp_min(1)
        return torch.einsum("vfmq,ftq->vfmt", distance, both) / count[None, :, None]

    def kept(self, group: str) -> dict[str, Tensor]:
        """The weights that served held-out questions of a group best."""
        return {name: self.get_buffer(f"{group}_{name}") for name in self.weight}

    @torch.no_grad()
    def descended(self) -> Tensor:
        """Where the kept weights of a group come from descent, ``(group, n_model)`` bool.

        The stage of directions moves ``constant`` alone, and a group without questions keeps the
        start: in both the embedding is that of the start, and cancels.
        """
        found = []
        for group in GROUPS:
            moved = [
                (value != self.get_buffer(f"start_{name}")).flatten(1).any(1)
                for name, value in self.kept(group).items()
                if name != "constant"
            ]
            found.append(torch.stack(moved).any(0))
        return torch.stack(found)

    def descent_kept(self) -> float:
        """Share of forms and folds where descent was kept for some group: geometry plays a role."""
        models = self.descended().any(0).reshape(self.n_form * self.n_fold, self.n_member)
        return float(models.any(1).double().mean())

    @torch.no_grad()
    def kept_curvature(self) -> float:
        """Mean curvature where descent was kept; NaN where it was kept nowhere."""
        every = torch.stack([self.curvature(self.kept(group)) for group in GROUPS])
        return float(every[self.descended()].double().mean())

    def chosen(self, tasks: Tasks) -> Tensor:
        """Residual of every member with the kept weights of each question's group."""
        full, partial = (self.members(tasks, self.kept(group)) for group in GROUPS)
        return torch.where(tasks.is_full[None, :, None, :, None], full, partial)

    def direction_weights(self, tasks: Tasks) -> Tensor:
        """Kept weights of ``FEATURES``, mean over the ensemble, before the gate, (V, F, T, K)."""
        before = self._before(tasks)[0]
        full, partial = (self._code(tasks, self.kept(group))[0] - before for group in GROUPS)
        return torch.where(tasks.is_full[None, :, None, :, None], full, partial).mean(2)

    def forward(self, tasks: Tasks) -> Prediction:
        """Predict questions, with the gate and the noise that validation chose."""
        every = self.chosen(tasks)
        gate = torch.where(
            tasks.is_full[None], self.gate[..., :1], self.gate[..., 1:]
        )  # by how much of a question is known
        residual = every.mean(2)
        delta = tasks.base + gate[..., None] * residual
        spread = gate[..., None].square() * every.var(2)
        return Prediction(
            base=tasks.base,
            residual=residual,
            gate=gate,
            std=self.spread(tasks, delta, spread).sqrt(),
        )

    def spread(self, tasks: Tasks, delta: Tensor, ensemble: Tensor) -> Tensor:
        r"""Variance of a measured response around the prediction, ``(V, F, T, G)``.

        :math:`q\,(a\,s_g + b\,\hat\delta^2 + \frac{(M - 1)^2}{M} \mathrm{var}_{members})` with the
        sampling variance :math:`s_g`; a, b and q are chosen on held-out training conditions. The
        factor of the variance over the M members is that of the jackknife by groups, each member
        lacking one: it cannot be learned, since members agree on most training questions.

        Source:
            Efron & Tibshirani (1993), equation 11.5, with groups in place of single points.
        """
        a, b, q = (self.noise[..., i, None, None] for i in range(N_NOISE))
        level = tasks.noise[:, :, None] + 1e-9
        return q * (a * level + b * delta.square() + self._jackknife * ensemble)

    @property
    def _jackknife(self) -> float:
        return (self.n_member - 1) ** 2 / self.n_member

    def trusted(self) -> Tensor:
        """Weights of the directions by theory, ``(V, 1, 1, K)``: reliability shrinkage in full.

        Against the very controls of the prediction these are exact; else those of the population
        count.
        """
        target = torch.zeros_like(self.weight["constant"][: self.n_form])
        target[0, 0] = 1.0
        target[1:, 1] = 1.0
        return target[:, None, None]

    @torch.no_grad()
    def set_directions(self, value: Tensor) -> None:
        """Weights of the directions for every perturbation alike, ``(V, F, M, K)`` or broadcast;
        everything else as at the start.
        """
        shape = (self.n_form, self.n_fold, self.n_member, len(FEATURES))
        for name, weight in self.weight.items():
            weight.copy_(self.get_buffer(f"start_{name}"))
        self.weight["constant"].add_(value.to(weight.dtype).expand(shape).flatten(0, 2))

    @torch.no_grad()
    def solve_directions(self, tasks: Tasks, *, penalty: float, free: tuple[int, ...]) -> None:
        """Ridge regression on some directions of what the kept weights leave, for every member.

        Args:
            tasks: Training questions.
            penalty: In units of the squared length of a direction.
            free: Columns of the directions that move; the others keep their weights.
        """
        group = self._group(tasks)
        shape = (self.n_form, self.n_fold, self.n_member)
        kept = self.get_buffer(f"{group}_constant") - self.get_buffer("start_constant")
        kept = kept.unflatten(0, shape).double()
        feature, weight = tasks.feature.double(), tasks.weight.double()
        left = (tasks.target - tasks.base).double()
        gram = torch.einsum("vftgk,vftgl,vft->vftkl", feature, feature, weight)
        right = torch.einsum("vftgk,vftg,vft->vftk", feature, left, weight)
        member = torch.arange(self.n_member, device=weight.device)
        learned = (tasks.chunk[:, None] != member[:, None]) & tasks.is_real[:, None]
        share = learned.double()  # (F, M, T)
        gram = torch.einsum("vftkl,fmt->vfmkl", gram, share)
        right = torch.einsum("vftk,fmt->vfmk", right, share)
        right = right - (gram @ kept[..., None])[..., 0]
        column = list(free)
        part = gram[..., column, :][..., column]
        own = part.diagonal(dim1=-2, dim2=-1)
        ridge = penalty * own + 1e-6 * own.mean(-1, keepdim=True) + 1e-12
        moved = torch.linalg.solve(part + torch.diag_embed(ridge), right[..., column])
        value = kept.clone()
        value[..., column] = value[..., column] + moved
        self.set_directions(value)

    def _group(self, tasks: Tasks) -> str:
        """The group of questions that training looks at first."""
        return "full" if bool((tasks.is_full & tasks.is_real).any()) else "partial"

    @torch.no_grad()
    def go_on_from_kept(self, tasks: Tasks) -> None:
        """Take up the kept weights, and let the penalty of the objective pull to them."""
        group = self._group(tasks)
        for name, value in self.weight.items():
            value.copy_(self.get_buffer(f"{group}_{name}"))
            self.get_buffer(f"anchor_{name}").copy_(value)

    @torch.no_grad()
    def consider(self, tasks: Tasks, *, is_theory: bool = False) -> Tensor:
        """Keep the weights of each form, fold and group where held-out questions are served better.

        Better than with the weights kept so far: squared error and correlation both gain on
        average, the correlation by a paired one-sided t-test at 5 % over questions. Weights that
        theory gives, and no data chose, need not pass the test.

        Args:
            tasks: Training questions.
            is_theory: Whether the present weights are those of :meth:`trusted`.
        Returns:
            Mean relative error of held-out questions with the present weights, ``(V, F)``; 1 is
            the baseline's.
        """
        residual = _held_out(tasks, self.members(tasks))
        now = _relative_error(tasks, residual), -_correlation(tasks, residual)
        for group in GROUPS:
            wanted = tasks.is_real & (tasks.is_full == (group == "full"))
            if not bool(wanted.any()):
                continue
            residual = _held_out(tasks, self.members(tasks, self.kept(group)))
            before = _relative_error(tasks, residual), -_correlation(tasks, residual)
            quantile = _t_quantile(wanted.sum(-1))
            is_up = torch.ones_like(now[0][..., 0], dtype=torch.bool)
            is_sure = torch.full_like(is_up, is_theory)
            for old, new in zip(before, now, strict=True):  # the correlation comes last
                mean, error = _mean_and_error(old - new, wanted)
                is_up &= mean > 0
            is_sure |= mean > error * quantile
            which = (is_up & is_sure)[..., None].expand(-1, -1, self.n_member).flatten()
            for name, value in self.weight.items():
                self.get_buffer(f"{group}_{name}")[which] = value.detach()[which]
        return _mean_and_error(now[0], tasks.is_real)[0]

    @torch.no_grad()
    def choose(self, tasks: Tasks) -> None:
        """Gate and noise of each form and fold, from held-out training conditions.

        The gate is the least-squares share of the held-out residual, within [0, 1], times
        max(0, 1 - 1/t²), t being mean gain over its standard error across conditions: a gain that
        one condition makes alone is not believed. It is 0 where the held-out correlation does not
        gain.

        Args:
            tasks: Training questions.
        """
        every = self.chosen(tasks)
        residual = _held_out(tasks, every)
        left = tasks.target - tasks.base
        for group in range(2):
            wanted = tasks.is_real & (tasks.is_full if group == 0 else ~tasks.is_full)
            gate = _gate(left, residual, tasks.weight * wanted[None])
            gained = _correlation(tasks, gate[..., None, None] * residual)
            gained = gained - _correlation(tasks, torch.zeros_like(residual))
            is_up = _mean_and_error(gained, wanted)[0] > 0
            self.gate[..., group] = torch.where(is_up, gate, torch.zeros_like(gate))
        gate = torch.where(tasks.is_full[None], self.gate[..., :1], self.gate[..., 1:])
        delta = tasks.base + gate[..., None] * residual
        error = tasks.target - delta
        ensemble = gate[..., None].square() * every.var(2)
        level = (tasks.noise[:, :, None] + 1e-9).expand_as(error)
        for v in range(self.n_form):
            for f in range(self.n_fold):
                kept = tasks.is_real[f]
                own, moved, apart, missed = (
                    x[v, f, kept].flatten().double().cpu()
                    for x in (level, delta.square(), ensemble, error)
                )
                parts, squared = torch.stack([own, moved], -1), missed.square()
                spread = self._jackknife * apart
                share = _positive_fit(parts, squared - spread, own)
                ratio = squared / (parts @ share + spread).clamp_min(1e-12)
                # 90 % of the held-out genes inside 1.645 standard deviations
                factor = ratio.quantile(0.9) / 1.645**2 if len(ratio) < 1e7 else ratio.mean()
                self.noise[v, f] = torch.cat([share, factor[None]]).to(self.noise)


def _held_out(tasks: Tasks, every: Tensor) -> Tensor:
    """Residual of training questions by the member that never learned them, ``(V, F, T, G)``."""
    index = tasks.chunk[None, :, None, :, None].expand(every.shape[0], -1, 1, -1, every.shape[-1])
    return every.gather(2, index)[:, :, 0]


def _relative_error(tasks: Tasks, residual: Tensor) -> Tensor:
    """Squared error in shares of the baseline's, ``(V, F, T)``."""
    return (tasks.target - tasks.base - residual).square().mean(-1) * tasks.weight


def _correlation(tasks: Tasks, residual: Tensor) -> Tensor:
    """Pearson correlation of prediction and target over genes, 0 where undefined, (V, F, T)."""
    return pearson(tasks.base + residual, tasks.target).nan_to_num(0.0)


def _mean_and_error(values: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over wanted questions, and its standard error (infinite below two), ``(V, F)`` each."""
    share = wanted.to(values.dtype)
    n = share.sum(-1)
    mean = (values * share).sum(-1) / n.clamp_min(1)
    apart = ((values - mean[..., None]).square() * share).sum(-1)
    error = (apart / (n * (n - 1)).clamp_min(1)).sqrt()
    return mean, torch.where(n > 1, error, torch.inf)


def _t_quantile(n: Tensor) -> Tensor:
    """95 % quantile of Student's t for samples of n, infinite below two; the shape of ``n``."""
    from scipy import stats

    count = n.cpu()
    value = torch.from_numpy(stats.t.ppf(0.95, (count - 1).clamp_min(1).numpy()))
    return torch.where(count > 1, value, torch.inf).to(n.device)


def _gate(left: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """Share of the residual that is kept, ``(V, F)``, see :meth:`ResponseModel.choose`."""
    along = (left * residual).sum(-1) * weight
    size = residual.square().sum(-1) * weight
    share = (along.sum(-1) / size.sum(-1).clamp_min(1e-30)).clamp(0, 1)
    gain = 2 * share[..., None] * along - share[..., None].square() * size
    mean, error = _mean_and_error(gain, weight > 0)
    belief = (1 - error.square() / mean.square().clamp_min(1e-30)).clamp(0, 1)
    return torch.where(mean > 0, share * belief, torch.zeros_like(share))


def _positive_fit(parts: Tensor, target: Tensor, level: Tensor) -> Tensor:
    """Weights of 0 or above, least squares relative to ``level``; the first is positive."""
    scaled, wanted = parts / level[:, None], target / level
    share = torch.ones(parts.shape[1], dtype=parts.dtype)
    gram, right = scaled.T @ scaled, scaled.T @ wanted
    for _ in range(200):  # coordinate descent, exact for two numbers
        for i in range(len(share)):
            rest = right[i] - gram[i] @ share + gram[i, i] * share[i]
            share[i] = (rest / gram[i, i].clamp_min(1e-30)).clamp_min(0)
    share[0] = share[0].clamp_min(1e-3)
    return share


def _within(index: Tensor, start: Tensor, n_node: int, n_step: int) -> Tensor:
    """Nodes at most ``n_step`` edges from any of ``start``, sorted."""
    is_near = torch.zeros(n_node, dtype=torch.bool)
    is_near[start] = True
    for _ in range(n_step):
        is_near[index[0][is_near[index[1]]]] = True
    return is_near.nonzero()[:, 0]


def _node_code(spec: ResponseSpec, dim: int) -> Tensor:
    """What is known of each node before any response: its place in the graph, ``(n_node, n)``.

    The first eigenvectors of the normalised adjacency of the nodes that have an edge (scaled to
    unit variance), the log degree, and an indicator of each perturbed gene, so that two genes
    without an edge are still two.
    """
    degree = spec.graph.degree()
    linked = (degree > 0).nonzero()[:, 0]
    n = min(2 * dim, max(len(linked) - 1, 0))
    place = torch.zeros(spec.n_node, n, dtype=torch.float64)
    if n > 0:
        adjacency = spec.graph.adjacency().double()[linked][:, linked]
        vectors = torch.linalg.eigh(adjacency).eigenvectors.flip(1)[:, 1 : n + 1]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        # eigenvectors have no sign of their own
        place[linked] = (vectors * largest.sign() * len(linked) ** 0.5).clamp(-4, 4)
    size = torch.log1p(degree.double())[:, None]
    own = torch.zeros(spec.n_node, spec.n_perturbation, dtype=torch.float64)
    own[spec.perturbation_node.cpu(), torch.arange(spec.n_perturbation)] = 1.0
    return torch.cat([place, size / size.std().clamp_min(1e-6), own], 1).float()
