"""The geometry keeps its laws in both precisions, and the layers keep theirs."""

from __future__ import annotations

import copy
import math

import geoopt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.nn.hyperbolic import (
    CURVATURE_BOUNDS,
    MAX_TANGENT,
    Geometry,
    HyperbolicAttention,
    HyperbolicDense,
    HyperbolicGraphConv,
    ManifoldEmbedding,
    bounded_curvature,
    free_curvature,
    geometry,
    row_normalised,
)
from neuralgraph.training.riemannian import RiemannianAdam

NAMES = ("poincare", "lorentz", "euclidean")
CURVED = ("poincare", "lorentz")
CURVATURES = (0.5, 1.0, 2.0, 4.0)
DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-7}

fixed = st.sampled_from(CURVATURES)
kinds = st.sampled_from(NAMES)
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 10_000)
radii = st.sampled_from((1e-6, 1e-3, 0.3, 1.0, 2.0))
quick = settings(max_examples=25, deadline=None)


def space(name: str, c: float = 1.0) -> Geometry:
    return geometry(name, curvature=c, learnable=False)  # type: ignore[arg-type]  # drawn


def tangents(seed: int, c: float, dtype: torch.dtype, radius: float, n: int = 6) -> Tensor:
    """Vectors of norms up to ``radius / sqrt(c)``."""
    draw = torch.Generator().manual_seed(seed)
    u = torch.randn(n, 4, generator=draw, dtype=torch.float64)
    size = torch.rand(n, 1, generator=draw, dtype=torch.float64)
    return (u / u.norm(dim=-1, keepdim=True) * size * radius / math.sqrt(c)).to(dtype)


@quick
@given(name=kinds, c=fixed, dtype=dtypes, seed=seeds, radius=radii)
def test_distance_is_a_metric(name, c, dtype, seed, radius):
    g = space(name, c)
    x, y, z = g.expmap0(tangents(seed, c, dtype, radius)).split(2)
    tolerance = TOLERANCE[dtype]
    assert g.dist(x, x).abs().max() < tolerance * radius
    torch.testing.assert_close(g.dist(x, y), g.dist(y, x), rtol=tolerance, atol=tolerance * radius)
    assert (g.dist(x, z) <= g.dist(x, y) + g.dist(y, z) + tolerance * radius).all()
    assert (g.dist(x, y) >= 0).all() and torch.isfinite(g.dist(x, y)).all()


@quick
@given(name=kinds, c=fixed, dtype=dtypes, seed=seeds, radius=radii)
def test_exp_and_log_are_inverse_and_the_distance_from_the_origin_is_twice_the_norm(
    name, c, dtype, seed, radius
):
    g = space(name, c)
    u = tangents(seed, c, dtype, radius)
    x = g.expmap0(u)
    assert x.dtype == dtype and x.shape[-1] == g.coordinates(4)
    torch.testing.assert_close(g.logmap0(x), u, rtol=TOLERANCE[dtype], atol=1e-9 * radius)
    origin = g.expmap0(torch.zeros_like(u))
    torch.testing.assert_close(
        g.dist(origin, x), 2 * u.norm(dim=-1), rtol=TOLERANCE[dtype], atol=1e-7 * radius
    )


@quick
@given(name=kinds, c=fixed, dtype=dtypes, seed=seeds, radius=radii)
def test_left_cancellation(name, c, dtype, seed, radius):
    g = space(name, c)
    x, y = g.expmap0(tangents(seed, c, dtype, min(radius, 1.0))).split(3)
    back = g.add(g.negate(x), g.add(x, y))
    tolerance = 50 * TOLERANCE[dtype]
    torch.testing.assert_close(g.logmap0(back), g.logmap0(y), rtol=tolerance, atol=1e-7)


@quick
@given(c=fixed, seed=seeds, radius=radii)
def test_the_two_charts_are_one_space(c, seed, radius):
    """Distance, sum, product and midpoint of the hyperboloid are those of the ball."""
    u = tangents(seed, c, torch.float64, radius)
    weights = torch.rand(3, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    seen = []
    for name in CURVED:
        g = space(name, c)
        x = g.expmap0(u)
        a, b = x.split(3)
        seen.append(
            (
                g.dist(a, b),
                g.logmap0(g.add(a, b)),
                g.logmap0(g.matvec(matrix, x)),
                g.logmap0(g.midpoint(x, weights)),
                g.disk(x),
            )
        )
    for poincare, lorentz in zip(*seen, strict=True):
        torch.testing.assert_close(poincare, lorentz, rtol=1e-6, atol=1e-6 * radius)


@pytest.mark.parametrize("name", CURVED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_vanishing_curvature_is_flat_space(name, dtype):
    g, flat = space(name, 1e-8), space("euclidean")
    u = tangents(1, 1.0, dtype, 2.0)
    weights = torch.rand(2, 6, generator=torch.Generator().manual_seed(2)).to(dtype)
    x, y = g.expmap0(u), flat.expmap0(u)
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(g.logmap0(x), u, **close)
    torch.testing.assert_close(g.dist(x[:3], x[3:]), flat.dist(y[:3], y[3:]), **close)
    torch.testing.assert_close(g.logmap0(g.add(x[:3], x[3:])), y[:3] + y[3:], **close)
    torch.testing.assert_close(
        g.logmap0(g.midpoint(x, weights)), flat.midpoint(y, weights), **close
    )


def test_values_that_the_public_implementation_gets_wrong():
    """There: d(x, x) = 0.663, d = 0.994, log = (−1.099, 0), exp = 0.149, and exp(log x) = −x."""
    g = space("poincare")
    x = torch.tensor([0.5, 0.0], dtype=torch.float64)
    y = torch.tensor([0.3, 0.4], dtype=torch.float64)
    assert float(g.dist(x, x)) == 0.0
    assert float(g.dist(x, y)) == pytest.approx(1.131, abs=5e-4)
    assert g.logmap0(x).tolist() == pytest.approx([0.549, 0.0], abs=5e-4)
    assert g.expmap0(torch.tensor([0.3, 0.0])).tolist() == pytest.approx([0.291, 0.0], abs=5e-4)
    assert g.expmap0(g.logmap0(y)).tolist() == pytest.approx(y.tolist())


@pytest.mark.parametrize("c", CURVATURES)
def test_the_ball_is_the_closed_form_and_geoopt(c):
    g, theirs = space("poincare", c), geoopt.PoincareBall(torch.tensor(c, dtype=torch.float64))
    x, y = g.expmap0(tangents(3, c, torch.float64, 1.0)).split(3)
    xy, x2, y2 = (x * y).sum(-1, True), (x * x).sum(-1, True), (y * y).sum(-1, True)
    above = (1 + 2 * c * xy + c * y2) * x + (1 - c * x2) * y
    torch.testing.assert_close(g.add(x, y), above / (1 + 2 * c * xy + c**2 * x2 * y2))
    torch.testing.assert_close(g.dist(x, y), theirs.dist(x, y))
    matrix = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(g.matvec(matrix, x), theirs.mobius_matvec(matrix, x))
    weights = torch.rand(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mid = theirs.weighted_midpoint(x, weights, reducedim=[0], posweight=True)
    torch.testing.assert_close(g.midpoint(x, weights[None])[0], mid)


def test_why_two_lorentz_formulas_are_our_own():
    """Just beside the origin geoopt's logmap0 shortens a vector to a fraction."""
    point = geoopt.Lorentz(torch.tensor(1.0, dtype=torch.float64)).expmap0(
        torch.tensor([0.0, 1e-5], dtype=torch.float64)
    )
    theirs = geoopt.Lorentz(torch.tensor(1.0, dtype=torch.float64)).logmap0(point)
    assert float(theirs[1]) < 0.2e-5
    assert float(2 * space("lorentz").logmap0(point)[0]) == pytest.approx(1e-5, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("c", (0.5, 2.0))
def test_gradcheck(name, c):
    g = space(name, c)
    u = tangents(5, c, torch.float64, 1.0, n=4).requires_grad_()
    v = tangents(6, c, torch.float64, 1.0, n=4).requires_grad_()
    weights = torch.rand(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def everything(u: Tensor, v: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        x, y = g.expmap0(u), g.expmap0(v)
        return g.dist(x, y), g.logmap0(g.add(x, y)), g.logmap0(g.midpoint(x, weights))

    assert torch.autograd.gradcheck(everything, (u, v, weights.requires_grad_()))


@pytest.mark.parametrize("name", NAMES)
def test_a_learnable_curvature_has_a_right_gradient(name):
    g = geometry(name, curvature=1.3)
    assert float(g.curvature.detach()) == pytest.approx(1.3)
    u = tangents(7, 1.0, torch.float64, 1.0)

    def distance(raw: Tensor) -> Tensor:
        old = g.raw_curvature.data
        del g.raw_curvature
        g.raw_curvature = raw  # type: ignore[assignment]  # to be differentiated
        x, y = g.expmap0(u).split(3)
        value = g.dist(x, y)
        del g.raw_curvature
        g.raw_curvature = torch.nn.Parameter(old)
        return value

    if name == "euclidean":
        assert not g.raw_curvature.requires_grad
    else:
        raw = g.raw_curvature.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(distance, (raw,))


def test_curvature_stays_in_its_bounds_and_can_return():
    raw = torch.tensor([-40.0, -3.0, 0.0, 5.0, 14.0], dtype=torch.float64, requires_grad=True)
    c = bounded_curvature(raw)
    assert (c >= CURVATURE_BOUNDS[0] - 1e-12).all() and (c <= CURVATURE_BOUNDS[1] + 1e-12).all()
    assert (c.diff() > 0).all()
    assert torch.autograd.grad(c.sum(), raw)[0][1:].min() > 0
    for value in (0.2, 1.0, 9.0):
        raw = torch.tensor(free_curvature(value), dtype=torch.float64)
        assert float(bounded_curvature(raw)) == pytest.approx(value)
    with pytest.raises(ConfigError, match="learnable curvature starts inside"):
        geometry("poincare", curvature=20.0)
    with pytest.raises(ConfigError, match="above 0"):
        geometry("poincare", curvature=0.0, learnable=False)
    with pytest.raises(ConfigError, match="did you mean 'poincare'"):
        geometry("poincarre")  # type: ignore[arg-type]  # misspelt on purpose


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", (0.0, 1e-20, 1e-8, 1.0, MAX_TANGENT, 1e3))
def test_gradients_are_finite_at_the_origin_and_at_the_boundary(name, dtype, size):
    g = space(name, 2.0)
    u = (torch.ones(3, 4) / 2 * size / math.sqrt(2.0)).to(dtype).requires_grad_()
    x = g.expmap0(u)
    other = g.expmap0(tangents(8, 2.0, dtype, 1.0, n=3))
    mid = g.midpoint(x, torch.ones(1, 3, dtype=dtype))
    value = (
        g.dist(x, other).sum()
        + g.dist(x, x.flip(0)).sum()
        + g.logmap0(g.add(x, other)).sum()
        + g.logmap0(mid).sum()
    )
    (gradient,) = torch.autograd.grad(value, u)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()
    if size < 1e-3:
        (gradient,) = torch.autograd.grad(g.logmap0(g.expmap0(u)).sum(), u)
        torch.testing.assert_close(gradient, torch.ones_like(u), rtol=0.12, atol=0.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_points_stay_on_the_manifold_and_reach_their_targets(name, dtype):
    """Also where steps are far too long and targets beyond the cap."""
    g = geometry(name, curvature=1.0).to(dtype)
    table = ManifoldEmbedding(g, 12, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    goal = g.expmap0(tangents(9, 1.0, dtype, 1.5, n=12)[:, :3]).detach()
    start = float(g.dist(table(), goal).pow(2).mean().detach())
    optimizer = RiemannianAdam([table.point], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        g.dist(table(), goal).pow(2).mean().backward()
        optimizer.step()
        if name == "poincare":
            assert table.point.norm(dim=-1).max() < 1 / g.curvature.sqrt()
    assert float(g.dist(table(), goal).pow(2).mean().detach()) < 1e-2 * start
    optimizer = RiemannianAdam([table.point], lr=3.0)
    for _ in range(30):
        optimizer.zero_grad()
        (-g.dist(table(), goal).mean()).backward()
        optimizer.step()
        assert torch.isfinite(table.point).all()
        if name != "euclidean":
            reach = (g.logmap0(table()).norm(dim=-1).max() * g.curvature.sqrt()).detach()
            assert reach <= MAX_TANGENT * 1.001


def test_riemannian_adam_is_not_adam_on_the_manifold_and_is_adam_elsewhere():
    g = geometry("poincare", learnable=False)
    draw = torch.Generator().manual_seed(1)
    table = ManifoldEmbedding(g, 5, 2, generator=draw, init_std=0.5)
    goal = g.expmap0(tangents(4, 1.0, torch.float32, 1.0, n=5)[:, :2])
    plain = torch.nn.Parameter(torch.randn(5, 2, generator=draw))
    ends = []
    for maker in (RiemannianAdam, torch.optim.Adam):
        mine, other = copy.deepcopy(table), torch.nn.Parameter(plain.detach().clone())
        assert mine.point.manifold is not table.point.manifold
        optimizer = maker([mine.point, other], lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            (g.dist(mine(), goal).sum() + (other**2).sum()).backward()
            optimizer.step()
        ends.append((mine.point.detach(), other.detach()))
    assert (ends[0][0] - ends[1][0]).abs().max() > 1e-2
    torch.testing.assert_close(ends[0][1], ends[1][1])


def test_the_sheet_steps_as_the_ball_does():
    """One small Riemannian gradient step moves both charts to the same point."""
    ends = []
    for name in CURVED:
        g = space(name, 2.0)
        u = tangents(11, 2.0, torch.float64, 1.0)
        point = g.parameter(u)
        goal = g.expmap0(tangents(12, 2.0, torch.float64, 1.0))
        g.dist(g.points(point), goal).sum().backward()
        with torch.no_grad():
            manifold = point.manifold
            rgrad = manifold.egrad2rgrad(point, point.grad)
            # a metric 4 times as large at the origin is the same one: lengths agree
            length = manifold.inner(point, rgrad, keepdim=True).sqrt()
            moved = manifold.retr(point, -1e-5 * rgrad)
        ends.append((length, g.disk(g.points(moved))))
    torch.testing.assert_close(ends[0][0], ends[1][0])
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=0.0, atol=1e-8)


def test_transport_on_the_sheet_keeps_lengths():
    g = space("lorentz", 2.0)
    manifold = g.parameter(tangents(1, 2.0, torch.float64, 1.0)).manifold
    x, y = (g.expmap0(tangents(s, 2.0, torch.float64, 1.0))[..., 1:] for s in (1, 2))
    u, v = (torch.randn(6, 4, generator=torch.Generator().manual_seed(s)).double() for s in (3, 4))
    moved = manifold.transp(x, y, u), manifold.transp(x, y, v)
    torch.testing.assert_close(manifold.inner(y, *moved), manifold.inner(x, u, v))
    torch.testing.assert_close(manifold.transp(x, x, u), u)


# ---- layers --------------------------------------------------------------------------------------


def layers(g: Geometry) -> dict[str, torch.nn.Module]:
    draw = torch.Generator().manual_seed(3)
    return {
        "dense": HyperbolicDense(g, 4, 6, activation=torch.tanh, generator=draw),
        "conv": HyperbolicGraphConv(g, 4, 6, activation=torch.tanh, generator=draw),
        "attention": HyperbolicAttention(g, 4, n_head=2, generator=draw),
        "embedding": ManifoldEmbedding(g, 7, 4, generator=draw),
    }


EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 5, 2], [0, 1, 2, 3, 4, 5, 1, 2, 0, 4]])
WEIGHTS = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 2.0, 0.3, 0.7])


def apply(layer: torch.nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, HyperbolicGraphConv):
        return layer(x, EDGES, WEIGHTS.to(x.dtype))
    return layer(x, x) if isinstance(layer, HyperbolicAttention) else layer(x)


def test_every_space_has_as_many_parameters():
    counts = {
        name: {k: sum(p.numel() for p in m.parameters()) for k, m in layers(geometry(name)).items()}
        for name in NAMES
    }
    assert counts["poincare"] == counts["lorentz"] == counts["euclidean"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", ("dense", "conv", "attention"))
def test_layers_go_over_into_the_euclidean_layer(layer, dtype):
    u = tangents(2, 1.0, dtype, 1.0)
    out = {}
    for name, c in (("euclidean", 1.0), ("poincare", 1e-7), ("lorentz", 1e-7), ("poincare", 1.0)):
        g = space(name, c)
        module = layers(g)[layer].to(dtype)
        for p in module.parameters():
            if p.ndim == 1:
                torch.nn.init.constant_(p, 0.3)
        out[name, c] = g.logmap0(apply(module, g.expmap0(u)))
    for name in CURVED:
        torch.testing.assert_close(out[name, 1e-7], out["euclidean", 1.0], rtol=1e-4, atol=1e-5)
    assert (out["poincare", 1.0] - out["euclidean", 1.0]).abs().max() > 1e-3


def test_the_euclidean_layers_are_the_usual_ones():
    g = space("euclidean")
    x = tangents(2, 1.0, torch.float32, 1.0)
    found = layers(g)
    dense, conv, attention = found["dense"], found["conv"], found["attention"]
    torch.nn.init.constant_(dense.bias, 0.2)
    torch.testing.assert_close(dense(x), torch.tanh(x @ dense.weight.T + dense.bias))
    adjacency = torch.zeros(6, 6).index_put((EDGES[1], EDGES[0]), WEIGHTS)
    adjacency = adjacency / adjacency.sum(1, keepdim=True)
    linear = x @ conv.dense.weight.T + conv.dense.bias
    torch.testing.assert_close(apply(conv, x), torch.tanh(adjacency @ linear))
    alpha = attention.weights(x, x)
    torch.testing.assert_close(alpha.sum(-1), torch.ones(2, 6))
    q, k = x @ attention.query.T, x @ attention.key.T
    score = -2 * torch.cdist(q[:, :2], k[:, :2]) / attention.tau[0]
    torch.testing.assert_close(alpha[0], score.softmax(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_attention_looks_at_the_nearest_and_obeys_its_mask(name):
    g = space(name)
    attention = HyperbolicAttention(g, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for matrix in (attention.query, attention.key):
            matrix.copy_(torch.eye(4))
        attention.raw_tau.fill_(-5.0)
    x = g.expmap0(tangents(0, 1.0, torch.float32, 1.0))
    alpha = attention.weights(x, x)[0]
    assert (alpha.argmax(-1) == torch.arange(6)).all() and alpha.diagonal().min() > 0.9
    is_open = ~torch.eye(6, dtype=torch.bool)
    assert attention.weights(x, x, is_open)[0].diagonal().abs().max() == 0.0
    assert torch.isfinite(attention(x, x, is_open)).all()


@pytest.mark.parametrize("name", NAMES)
def test_graph_conv_is_equivariant_and_blind_to_the_scale_of_a_row(name):
    g = space(name)
    conv = layers(g)["conv"]
    x = g.expmap0(tangents(2, 1.0, torch.float32, 1.0))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    place = torch.argsort(order)
    y = apply(conv, x)
    permuted = conv(x[order], place[EDGES], WEIGHTS)
    torch.testing.assert_close(permuted, y[order], rtol=1e-5, atol=1e-5)
    scaled = conv(x, EDGES, row_normalised(EDGES, WEIGHTS, 6))
    torch.testing.assert_close(scaled, y, rtol=1e-5, atol=1e-5)
    batch = conv(torch.stack((x, x.flip(0))), EDGES, WEIGHTS)
    torch.testing.assert_close(batch[0], y)


@pytest.mark.parametrize("name", CURVED)
def test_edges_and_dense_midpoints_agree_and_stay_inside_their_hull(name):
    g = space(name, 4.0)
    x = g.expmap0(tangents(2, 4.0, torch.float64, 2.0))
    adjacency = torch.zeros(6, 6).index_put((EDGES[1], EDGES[0]), WEIGHTS).double()
    by_edges = g.midpoint_edges(x, EDGES, WEIGHTS, 6)
    torch.testing.assert_close(by_edges, g.midpoint(x, adjacency))
    many = torch.stack((torch.arange(6).repeat(40), torch.zeros(240, dtype=torch.long)))
    hub = g.midpoint_edges(x, many, torch.ones(240), 1)
    torch.testing.assert_close(hub, g.midpoint(x, torch.ones(1, 6)))
    radius = g.logmap0(hub).norm(dim=-1).max()
    assert radius < g.logmap0(x).norm(dim=-1).max()


def test_row_normalisation_refuses_signs():
    weights = row_normalised(EDGES, WEIGHTS, 6)
    total = torch.zeros(6).index_add(0, EDGES[1], weights)
    torch.testing.assert_close(total, torch.ones(6))
    with pytest.raises(DataError, match="magnitude of signed edges"):
        row_normalised(EDGES, -WEIGHTS, 6)


@pytest.mark.parametrize("name", NAMES)
def test_an_embedding_starts_near_the_origin_and_never_on_it(name):
    g = geometry(name)
    table = ManifoldEmbedding(g, 50, 3, generator=torch.Generator().manual_seed(0))
    assert isinstance(table.point, geoopt.ManifoldParameter)
    norm = g.logmap0(table()).norm(dim=-1)
    assert norm.min() > 0 and norm.max() < 0.1, norm
    assert table(torch.tensor([3, 3])).shape == (2, g.coordinates(3))
    with pytest.raises(ConfigError, match="never start on the origin"):
        ManifoldEmbedding(g, 5, 3, generator=torch.Generator(), init_std=0.0)
    with pytest.raises(ConfigError, match="cannot be shared by 3 heads"):
        HyperbolicAttention(g, 4, n_head=3, generator=torch.Generator())


@pytest.mark.parametrize("name", NAMES)
def test_a_stack_of_layers_trains_with_finite_gradients_everywhere(name):
    g = geometry(name)
    draw = torch.Generator().manual_seed(0)
    table = ManifoldEmbedding(g, 6, 4, generator=draw)
    conv = HyperbolicGraphConv(g, 4, 4, activation=torch.relu, generator=draw)
    attention = HyperbolicAttention(g, 4, generator=draw)
    model = torch.nn.ModuleList([table, conv, attention])
    optimizer = RiemannianAdam(model.parameters(), lr=0.05)
    goal = tangents(3, 1.0, torch.float32, 1.0)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        x = g.add(table(), attention(table(), conv(table(), EDGES, WEIGHTS)))
        loss = (g.logmap0(x) - goal).pow(2).mean()
        loss.backward()
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert torch.isfinite(parameter.grad).all(), parameter_name
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
