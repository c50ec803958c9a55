"""Metabolism_Propagation against a plain per-frame reading of its formulas, and its laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.systems.metabolism.dataset import MetabolismSpec
from neuralgraph.systems.metabolism.model import Metabolism_Propagation
from neuralgraph.systems.metabolism.network import ReactionNetwork

N_BATCH = 5
KINETICS = [
    {"kinetics": "learned_rate"},
    {"kinetics": "learned_rate", "n_layers_sub": 3, "homeostasis": True},
    {"kinetics": "mass_action", "homeostasis": True},
    {"kinetics": "mass_action", "substrate_form": "plain"},
    {"kinetics": "mass_action", "substrate_form": "plain", "aggregation": "add", "softplus": True},
    {"kinetics": "mass_action", "softplus": True},
]
IDS = ["-".join(str(v) for v in k.values()) for k in KINETICS]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def edges() -> ReactionNetwork:
    """Random reactions with a catalyst in the first one and an empty last one."""
    met_sub = torch.tensor([0, 3, 1, 2, 4, 5, 0, 6])
    rxn_sub = torch.tensor([0, 0, 1, 2, 2, 3, 4, 5])
    sto_sub = torch.tensor([1.0, 1, 2, 1, 2, 1, 1, 2])
    met_all = torch.tensor([0, 7, 1, 8, 2, 4, 9, 5, 10, 0, 11, 6, 3])
    rxn_all = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5])
    sto_all = torch.tensor([-1.0, 1, -2, 2, -1, -2, 3, -1, 1, -1, 1, -2, 2])
    return ReactionNetwork(
        n_met=12,
        n_rxn=7,
        met_sub=met_sub,
        rxn_sub=rxn_sub,
        sto_sub=sto_sub,
        met_all=met_all,
        rxn_all=rxn_all,
        sto_all=sto_all,
        metabolite_names=tuple(f"M{i}" for i in range(12)),
        reaction_names=tuple(f"R{j}" for j in range(7)),
    )


def spec_of(network: ReactionNetwork, *, given: bool, **changed: Any) -> MetabolismSpec:
    spec = MetabolismSpec(
        n_met=network.n_met,
        n_rxn=network.n_rxn,
        met_sub=network.met_sub,
        rxn_sub=network.rxn_sub,
        met_all=network.met_all,
        rxn_all=network.rxn_all,
        sign_all=network.sto_all.sign(),
        sto_sub=network.sto_sub if given else None,
        sto_all=network.sto_all if given else None,
        order_sub=None,
        log_k=None,
        metabolite_names=network.metabolite_names,
        reaction_names=network.reaction_names,
        concentration_scale=4.0,
        frame_interval=0.1,
        input_mode="none",
        has_roles=True,
        has_support=True,
    )
    return replace(spec, **changed)


def build(spec: MetabolismSpec, **knobs: Any) -> Metabolism_Propagation:
    small = {
        "hidden_dim_sub": 6,
        "message_dim": 3,
        "hidden_dim_rate": 5,
        "hidden_dim_node": 4,
        "generator": rng(1),
    }
    return Metabolism_Propagation(spec, **{**small, **knobs}).double()


def frames(n_met: int = 12) -> Tensor:
    return 0.2 + 4 * torch.rand(N_BATCH, n_met, generator=rng(2), dtype=torch.float64)


def per_frame(model: Metabolism_Propagation, c: Tensor) -> Tensor:
    """One frame, edge by edge, as the formulas in the docstring read."""
    v = []
    order = model.sto_sub.abs()
    for j in range(model.n_rxn):
        at = (model.rxn_sub == j).nonzero().flatten().tolist()
        pairs = [torch.stack([c[model.met_sub[e]], order[e]]) for e in at]
        k = 10 ** model.log_k[j]
        if model.kinetics == "learned_rate":
            h = sum((model.msg_mlp(p) for p in pairs), c.new_zeros(3))
            v.append(k * softplus(model.rate_mlp(h))[0])
            continue
        f = [model.MLP_sub(p)[0] for p in pairs]
        if model.aggregation == "multiply":
            total = c.new_ones(())
            for x in f:
                total = total * x.abs()
        else:
            total = sum(f, c.new_zeros(()))
        v.append(k * (softplus(total) if model.is_softplus else total))
    dx_dt = [c.new_zeros(()) for _ in range(model.n_met)]
    for e in range(model.met_all.numel()):
        i = int(model.met_all[e])
        dx_dt[i] = dx_dt[i] + model.sto_all[e] * v[int(model.rxn_all[e])]
    result = torch.stack(dx_dt)
    if model.has_homeostasis:
        result = result + model.MLP_node(torch.cat([c.unsqueeze(1), model.a], dim=1)).squeeze(1)
    return result


@pytest.mark.parametrize("given", [True, False], ids=["given", "learned"])
@pytest.mark.parametrize("knobs", KINETICS, ids=IDS)
def test_batch_equals_per_frame_reference(knobs: dict[str, Any], given: bool) -> None:
    model = build(spec_of(edges(), given=given), **knobs)
    c = frames()
    batch = model(c)
    expected = torch.stack([per_frame(model, frame) for frame in c])
    torch.testing.assert_close(batch, expected, rtol=1e-10, atol=1e-10)
    parameters = list(model.parameters())
    ours = torch.autograd.grad(batch.square().mean(), parameters)
    theirs = torch.autograd.grad(expected.square().mean(), parameters)
    for (name, _), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("limit", [False, True])
@pytest.mark.parametrize("knobs", KINETICS, ids=IDS)
def test_fused_path_equals_message_passing(knobs: dict[str, Any], limit: bool) -> None:
    out = []
    for fused in (True, False):
        model = build(spec_of(edges(), given=False), fused=fused, flux_limit=limit, **knobs)
        c = frames().requires_grad_()
        y = model(c)
        out.append((y, *torch.autograd.grad(y.square().mean(), [c, *model.parameters()])))
    for a, b in zip(*out, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("knobs", KINETICS, ids=IDS)
def test_gradcheck(knobs: dict[str, Any]) -> None:
    model = build(spec_of(edges(), given=False), **knobs)
    c = frames()[:2].requires_grad_()
    free = model._parameters["sto_all"]

    def at(c: Tensor, *_: Tensor) -> Tensor:
        return model(c)

    assert free is not None
    assert torch.autograd.gradcheck(at, (c, free, model.sto_sub, model.log_k), atol=1e-5)


@pytest.mark.parametrize("roles", [True, False], ids=["roles", "no_roles"])
@pytest.mark.parametrize("knobs", KINETICS, ids=IDS)
def test_every_trained_parameter_gets_a_finite_nonzero_gradient(
    knobs: dict[str, Any], roles: bool
) -> None:
    network = edges()
    changed = {} if roles else {"has_roles": False, "sign_all": None}
    if not roles:
        changed |= {"met_sub": network.met_all, "rxn_sub": network.rxn_all}
    model = build(spec_of(network, given=False, **changed), **knobs)
    model(frames()).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert bool((parameter.grad != 0).any()), name


def test_mass_action_is_k_times_powers_with_the_exact_function() -> None:
    class Power(nn.Module):
        def forward(self, pairs: Tensor) -> Tensor:
            return (pairs[..., :1] ** pairs[..., 1:]).clone()

    network = edges()
    model = build(spec_of(network, given=True), kinetics="mass_action")
    model.MLP_sub = Power()  # type: ignore[assignment]
    c = frames()
    expected = (10**model.log_k).expand(N_BATCH, 7).clone()
    for met, rxn, s in zip(network.met_sub, network.rxn_sub, network.sto_sub, strict=True):
        expected[:, rxn] = expected[:, rxn] * c[:, met] ** s
    torch.testing.assert_close(model.flux(c), expected)
    torch.testing.assert_close(model(c), expected @ model.matrix().T)
    assert torch.equal(model.matrix(), network.matrix())


@pytest.mark.parametrize("knobs", KINETICS[:3], ids=IDS[:3])
def test_permuting_metabolites_and_reactions_permutes_the_answer(knobs: dict[str, Any]) -> None:
    network = edges()
    met, rxn = torch.randperm(12, generator=rng(5)), torch.randperm(7, generator=rng(6))
    moved = replace(
        network,
        met_sub=met[network.met_sub],
        rxn_sub=rxn[network.rxn_sub],
        met_all=met[network.met_all],
        rxn_all=rxn[network.rxn_all],
    )
    one = build(spec_of(network, given=True), **knobs)
    two = build(spec_of(moved, given=True), **knobs)
    with torch.no_grad():
        two.log_k[rxn] = one.log_k
        if one.has_homeostasis:
            two.a[met] = one.a
    c = frames()
    permuted = torch.empty_like(c)
    permuted[:, met] = c
    torch.testing.assert_close(two(permuted)[:, met], one(c))
    torch.testing.assert_close(two.flux(permuted)[:, rxn], one.flux(c))


def test_balanced_columns_conserve_mass() -> None:
    network = edges()
    column = network.matrix().sum(0)
    assert torch.equal(column, torch.zeros(7, dtype=torch.float64))
    for knobs in ({"kinetics": "learned_rate"}, {"kinetics": "mass_action"}):
        total = build(spec_of(network, given=True), **knobs)(frames()).sum(1)
        torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-10, rtol=0)


def test_catalyst_drives_its_reaction_without_net_change() -> None:
    model = build(spec_of(edges(), given=True), kinetics="mass_action")
    c = frames()
    more = c.clone()
    more[:, 3] *= 2  # catalyst of reaction 0, without an edge of net change there
    assert bool((model.flux(more)[:, 0] != model.flux(c)[:, 0]).all())
    assert float(model.matrix()[3, 0]) == 0.0


def test_sto_sub_enters_as_absolute_value() -> None:
    model = build(spec_of(edges(), given=False))
    before = model(frames())
    with torch.no_grad():
        model.sto_sub.mul_(-1)
    torch.testing.assert_close(model(frames()), before)


def test_given_parts_are_out_of_reach_of_optimisers() -> None:
    log_k = torch.linspace(-2, 0, 7)
    network = edges()
    model = build(spec_of(network, given=True, log_k=log_k), kinetics="mass_action")
    names = {name for name, _ in model.named_parameters()}
    assert not names & {"sto_all", "sto_sub", "log_k"}
    assert model.is_stoichiometry_given
    torch.testing.assert_close(model.sto_all, network.sto_all.double())
    torch.testing.assert_close(model.log_k, log_k.double())
    with pytest.raises(ConfigError, match="given"):
        model.set_stoichiometry(sto_all=network.sto_all)


def test_known_signs_hold_through_training() -> None:
    network = edges()
    model = build(spec_of(network, given=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    for _ in range(5):
        optimizer.zero_grad()
        model.sto_all.sub(-5 * network.sto_all).square().sum().backward()
        optimizer.step()
    assert bool((model.sto_all * network.sto_all >= 0).all())


def test_state_dict_holds_the_signed_coefficients() -> None:
    network = edges()
    model = build(spec_of(network, given=False))
    model.set_stoichiometry(sto_all=network.sto_all)
    assert torch.equal(model.state_dict()["sto_all"], network.sto_all.double())
    moved = model._parameters["sto_all"]
    assert moved is not None
    with torch.no_grad():
        moved[0] = 0.25  # of known sign -1: pushed through 0
        moved[1] = 0.0
    assert float(model.sto_all[0].detach()) == -0.25
    assert torch.equal(model.state_dict()["sto_all"], model.sto_all.detach())
    model.sto_all.sum().backward()
    assert moved.grad is not None
    assert moved.grad[:2].tolist() == [-1.0, 1.0]  # an edge at 0 is not held there
    model.train()
    assert float(moved[0].detach()) == -0.25


def test_unknown_sign_among_known_ones_is_free() -> None:
    network = edges()
    sign = network.sto_all.sign()
    sign[0] = 0
    model = build(spec_of(network, given=False, sign_all=sign))
    value = network.sto_all.clone()
    value[0] = 1.5
    model.set_stoichiometry(sto_all=value)
    torch.testing.assert_close(model.sto_all, value.double(), rtol=1e-5, atol=1e-5)


def test_set_stoichiometry_reads_back_and_refuses_a_wrong_sign() -> None:
    network = edges()
    model = build(spec_of(network, given=False))
    model.set_stoichiometry(sto_all=network.sto_all, sto_sub=network.sto_sub)
    torch.testing.assert_close(model.sto_all, network.sto_all.double(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.sto_sub.detach(), network.sto_sub.double())
    with pytest.raises(DataError, match="known sign"):
        model.set_stoichiometry(sto_all=-network.sto_all)
    with pytest.raises(DataError, match="must be"):
        model.set_stoichiometry(sto_all=torch.ones(3))


def test_state_dict_round_trip_with_documented_names() -> None:
    spec = spec_of(edges(), given=False)
    model, other = build(spec), build(spec, generator=rng(9))
    assert {"sto_all", "sto_sub", "log_k"} <= set(dict(model.named_parameters()))
    assert not torch.equal(model(frames()), other(frames()))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(frames()), other(frames()))


def test_same_generator_same_model() -> None:
    spec = spec_of(edges(), given=False)
    before = torch.get_rng_state()
    one, two = build(spec), build(spec)
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_candidate_that_is_no_substrate_leaves_the_rate_untouched() -> None:
    network = edges()
    open_roles = spec_of(
        network,
        given=False,
        has_roles=False,
        met_sub=network.met_all,
        rxn_sub=network.rxn_all,
        sign_all=None,
    )
    for knobs in KINETICS:
        model = build(open_roles, **knobs)
        with torch.no_grad():
            model.sto_sub[1] = 0.0  # metabolite 7 in reaction 0
        c = frames()
        more = c.clone()
        more[:, 7] += 1
        torch.testing.assert_close(model.flux(more)[:, 0], model.flux(c)[:, 0])


def test_kinetic_order_may_differ_from_the_coefficient() -> None:
    network = edges()
    order = torch.ones_like(network.sto_sub)
    model = build(spec_of(network, given=True, order_sub=order), kinetics="mass_action")
    assert torch.equal(model.order_levels, torch.ones(1).double())
    plain = build(spec_of(network, given=True), kinetics="mass_action")
    assert plain.order_levels.tolist() == [1.0, 2.0]


def test_flux_limit_consumes_at_most_what_is_there() -> None:
    network = edges()
    spec = spec_of(network, given=True, log_k=torch.full((7,), 3.0))
    c = frames()
    for knobs in ({"kinetics": "learned_rate"}, {"kinetics": "mass_action"}):
        free = build(spec, **knobs)
        limited = build(spec, flux_limit=True, **knobs)
        consumed = torch.zeros_like(c)
        for met, rxn, s in zip(network.met_sub, network.rxn_sub, network.sto_sub, strict=True):
            consumed[:, met] += s * limited.flux(c)[:, rxn] * 0.1
        assert bool((consumed <= c * (1 + 1e-9)).all())
        assert bool((limited.flux(c) <= free.flux(c) * (1 + 1e-12)).all())
        assert bool((limited.flux(c)[:, 6] == free.flux(c)[:, 6]).all())  # no substrate, no limit


@pytest.mark.parametrize("mode", ["additive", "multiplicative_substrate", "multiplicative_product"])
def test_external_inputs(mode: str) -> None:
    network = edges()
    model = build(spec_of(network, given=True, input_mode=mode))
    plain = build(spec_of(network, given=True))
    c = frames()
    u = torch.rand(N_BATCH, 12, generator=rng(4), dtype=torch.float64)
    if mode == "additive":
        torch.testing.assert_close(model(c, u), plain(c) + u)
    elif mode == "multiplicative_substrate":
        factor = (u[:, 2] + u[:, 4]) / 2  # substrates of reaction 2
        torch.testing.assert_close(model.flux(c, u)[:, 2], plain.flux(c)[:, 2] * factor)
    else:
        torch.testing.assert_close(model.flux(c, u)[:, 2], plain.flux(c)[:, 2] * u[:, 9])
    with pytest.raises(DataError, match="needs inputs"):
        model(c)


def test_each_metabolite_and_coefficient_is_evaluated_once() -> None:
    network = pairs_of(30, 60)
    model = build(spec_of(network, given=True), kinetics="mass_action")
    assert model.met_input.numel() <= 30 < network.met_sub.numel()


def pairs_of(n_met: int, n_rxn: int) -> ReactionNetwork:
    g = rng(3)
    pair = torch.stack([torch.randperm(n_met, generator=g)[:2] for _ in range(n_rxn)])
    rxn = torch.arange(n_rxn).repeat_interleave(2)
    return ReactionNetwork(
        n_met=n_met,
        n_rxn=n_rxn,
        met_sub=pair.flatten(),
        rxn_sub=rxn,
        sto_sub=torch.ones(2 * n_rxn),
        met_all=pair.flatten(),
        rxn_all=rxn,
        sto_all=torch.tensor([-1.0, 1.0]).repeat(n_rxn),
        metabolite_names=tuple(f"M{i}" for i in range(n_met)),
        reaction_names=tuple(f"R{j}" for j in range(n_rxn)),
    )


@pytest.mark.parametrize("form", ["power_law", "plain"])
def test_table_of_the_substrate_function_agrees_with_the_function(form: str) -> None:
    network = pairs_of(60, 90)
    c = 0.01 + 9 * torch.rand(16, 60, generator=rng(2), dtype=torch.float64)
    out = []
    for tabulate in (None, 128):
        model = build(
            spec_of(network, given=True),
            kinetics="mass_action",
            substrate_form=form,
            tabulate=tabulate,
        )
        if form == "plain":  # keep away from zeros, where log |f| has no cubic
            with torch.no_grad():
                model.MLP_sub.last.bias.add_(3)  # type: ignore[union-attr]
        at = c.clone().requires_grad_()
        y = model(at)
        y.square().mean().backward()
        grads = [p.grad for p in model.MLP_sub.parameters()]
        out.append((y.detach(), at.grad, *grads))
    for exact, table in zip(*out, strict=True):
        assert exact is not None and table is not None
        # values and gradients of the network to order 4, slopes in c to order 3
        tolerance = 1e-4 if exact is out[0][1] else 1e-6
        atol = tolerance * float(exact.abs().max())
        torch.testing.assert_close(table, exact, rtol=10 * tolerance, atol=atol)


def test_training_lowers_the_loss() -> None:
    network = edges()
    truth = build(spec_of(network, given=True))
    model = build(spec_of(network, given=False), generator=rng(8))
    c = frames().repeat(4, 1) + 0.1
    target = truth(c).detach()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(c) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_wrong_options_and_shapes_say_what_to_do() -> None:
    spec = spec_of(edges(), given=False)
    with pytest.raises(ConfigError, match="kinetics must be one of"):
        build(spec, kinetics="michaelis")
    with pytest.raises(ConfigError, match="tabulate"):
        build(spec, tabulate=64)
    with pytest.raises(ConfigError, match="initial_scale_S"):
        build(spec, initial_scale_S=0.0)
    model = build(spec)
    with pytest.raises(DataError, match="n_batch, n_met"):
        model(torch.ones(12, 3).double())
    with pytest.raises(DataError, match="astype"):
        model(torch.ones(3, 12))
