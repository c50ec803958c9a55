"""What the terms of rest, the gate, the likelihood and the distances between clouds promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError, SolverError
from neuralgraph.systems.perturb_ode.dataset import ScreenData
from neuralgraph.systems.perturb_ode.distribution import (
    energy_distance,
    euler_maruyama,
    sinkhorn_divergence,
)
from neuralgraph.systems.perturb_ode.loop import note_gate
from neuralgraph.systems.perturb_ode.loss import ScreenObjective, check_counts, negative_binomial
from neuralgraph.systems.perturb_ode.measurement import Measurement
from neuralgraph.systems.perturb_ode.model import FieldEnsemble
from neuralgraph.systems.perturb_ode.simulator import HillScreen
from neuralgraph.systems.perturb_ode.stationarity import last_change, settled

SCREEN = {
    "n_gene": 5,
    "min_regulators": 1,
    "max_regulators": 2,
    "n_train_single": 3,
    "n_test_single": 1,
    "n_test_double": 1,
    "n_medium": 0,
    "days": [2.0, 3.0, 5.0],
    "noise": 0.1,
    "n_replicate": 2,
    "has_control": True,
    "measurement": None,
}
LOSS = {"data_loss": "squared", "dispersion": 0.0, "rollout_day": 10.0}


def screen(gate_margin=0.1, **changed) -> ScreenData:
    recording, _ = HillScreen(**{**SCREEN, **changed}).simulate(3)
    return ScreenData(recording, {}, weighting="uniform", start="measured", gate_margin=gate_margin)


def ensemble(data, arms, field="production_decay"):
    return FieldEnsemble(
        data.spec, field=field, arms={"standard": {}, **arms}, n_seed=1, n_seed_of=None,
        n_seed_inner=1, n_hidden=8, n_layer=1, max_step=0.5, medium="additive",
        solver="rk4", rtol=1e-5, atol=1e-6,
        generator=torch.Generator().manual_seed(0),
    ).double()  # fmt: skip


def prepared(data, **changed) -> ScreenObjective:
    objective = ScreenObjective(**{**LOSS, **changed})
    objective.prepare(data)
    return objective


def test_noise_adds_the_trace_of_jacobian_and_variance_and_halves_do_not():
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(6, 6, generator=generator, dtype=torch.float64) / 2
    rest = torch.zeros(6, dtype=torch.float64)

    def field(x):
        return torch.tanh(x @ w.T)

    def noisy():
        return rest + 0.03 * torch.randn(200_000, 6, generator=generator, dtype=torch.float64)

    jacobian = torch.autograd.functional.jacobian(field, rest)
    bias = 0.03**2 * float((jacobian @ jacobian.T).trace())
    raw = float(field(noisy()).square().sum(1).mean())
    split = float((field(noisy()) * field(noisy())).sum(1).mean())
    assert raw == pytest.approx(bias, rel=0.02)
    assert abs(split) < 0.02 * bias


def test_the_split_term_uses_the_two_halves_and_the_decay_term_counts_in_decay():
    data = screen()
    arms = {"split": {"steady_split": 2.0}, "decay": {"steady_decay": 1.0}}
    model = ensemble(data, arms)
    batch = data.batch(data.starts(1))
    terms = prepared(data).arm_terms(model, batch)
    wanted = ~batch.is_control
    one, two = batch.halves[:, :, -1].unbind(2)
    product = (model.rate(one.expand(3, -1, -1), batch) * model.rate(two, batch)).mean(-1)
    expected = 2 * product[1, wanted].clamp_min(0).mean()
    torch.testing.assert_close(terms["steady_split"][1], expected)
    last = batch.encoded[:, :, -1].expand(3, -1, -1)
    unit = (model.rate(last, batch) / model.log_gamma.exp()[:, None]).square().mean(-1)
    torch.testing.assert_close(terms["steady_decay"][2], unit[2, wanted].mean())
    assert terms["steady_split"][[0, 2]].abs().max() == 0


def test_opposite_fields_at_two_halves_are_not_rewarded():
    """Without the bound a field of opposite signs at the halves lowers the loss without end."""
    data = screen()
    model = ensemble(data, {"split": {"steady_split": 1.0}})
    batch = data.batch(data.starts(1))
    rest = batch.halves.mean(3, keepdim=True)
    far = replace(batch, halves=rest + 1e3 * torch.tensor([1.0, -1.0])[:, None].double())
    a, b = (model.rate(half.expand(2, -1, -1), far) for half in far.halves[:, :, -1].unbind(2))
    assert (a * b).mean(-1).max() < 0, "the case is no case"
    assert prepared(data).arm_terms(model, far)["steady_split"].abs().max() == 0


def test_a_gated_condition_pays_nothing():
    data = screen()
    model = ensemble(data, {"gated": {"steady_gated": 1.0}})
    batch = data.batch(data.starts(1))
    objective = prepared(data)
    closed = replace(batch, gate=torch.zeros_like(batch.gate))
    assert "steady_gated" not in objective.arm_terms(model, closed)
    one = torch.zeros_like(batch.gate)
    one[0, 2] = True
    found = objective.arm_terms(model, replace(batch, gate=one))["steady_gated"][1]
    speed = model.rate(batch.encoded[:, :, -1].expand(2, -1, -1), batch).square().mean(-1)
    torch.testing.assert_close(found, speed[1, 2])


def test_a_gate_that_passes_nothing_is_refused_and_one_that_passes_some_is_noted(caplog):
    from neuralgraph.training.session import Session

    arms = {"gated": {"steady_gated": 1.0}}
    closed = screen(gate_margin=1e-9)
    with pytest.raises(ConfigError, match=r"\['gated'\] .* no perturbed training condition"):
        prepared(closed)(ensemble(closed, arms), closed.batch(closed.starts(1)))
    prepared(closed)(ensemble(closed, {}), closed.batch(closed.starts(1)))  # nobody asks
    data = screen(gate_margin=9.0)
    prepared(data)(ensemble(data, arms), data.batch(data.starts(1)))

    def noted(gate):
        some = screen(gate_margin=9.0)
        some._all = replace(some._all, gate=gate.expand_as(some._all.gate))
        session = Session(ensemble(some, arms), some, prepared(some), seed=0)
        note_gate(session)
        return session.store["notes"]

    count = len(data.everything().is_control)
    assert noted(torch.ones(1, count, dtype=torch.bool)) == [
        "steady_gated acts on the perturbed training conditions that are settled: 3 of 3"
    ]
    assert not caplog.records
    (sentence,) = noted(torch.zeros(1, count, dtype=torch.bool))
    assert "0 of 3; in 1 of 1 folds on none" in sentence and sentence in caplog.text


def test_the_gate_passes_what_is_at_rest_and_stops_what_moves_or_is_unknown():
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(5, 2, 40, dtype=torch.float64)
    truth[:, 1] += 0.5  # shared by all
    truth[1, 1] += 0.3 * torch.randn(40, generator=generator, dtype=torch.float64)
    error = torch.tensor([0.02, 0.02, 0.02, 0.02, 0.5], dtype=torch.float64)[:, None, None]
    state = truth + error * torch.randn(5, 2, 40, generator=generator, dtype=torch.float64)
    everyone = torch.ones(1, 5, dtype=torch.bool)
    everyone[0, 4] = False
    gate = settled(
        *last_change(state, (error**2).expand_as(state)), everyone, torch.ones(5, 40), margin=0.15
    )
    assert gate[0].tolist() == [True, False, True, True, False]
    alone = settled(
        *last_change(state[:, :1], state[:, :1]), everyone, torch.ones(5, 40), margin=9.0
    )
    assert not alone.any()


def test_a_rollout_that_rests_pays_nothing_for_it():
    data = screen()
    model = ensemble(data, {"long": {"steady_rollout": 1.0}})
    objective, batch = prepared(data), data.batch(data.starts(1))
    first = float(objective.arm_terms(model, batch)["steady_rollout"].detach().sum())
    later = prepared(data, rollout_day=60.0)
    second = float(later.arm_terms(model, batch)["steady_rollout"].detach().sum())
    assert 0 < second < first  # a production–decay field of random weights settles


@pytest.mark.parametrize("dispersion", [0.0, 0.3])
def test_the_likelihood_of_counts_is_that_of_the_library(dispersion):
    from scipy import stats

    count = torch.arange(0.0, 30.0, dtype=torch.float64)
    mean = torch.full_like(count, 7.5)
    mine = -negative_binomial(count, mean, dispersion)
    if dispersion == 0:
        theirs = stats.poisson(7.5).logpmf(count)
    else:
        theirs = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * 7.5)).logpmf(count)
    torch.testing.assert_close(mine, torch.from_numpy(theirs))


def test_counts_train_a_field_and_what_is_no_count_is_refused():
    how = Measurement(
        depth=20000.0, depth_spread=0.3, batch_spread=0.0, batch_condition_spread=0.0,
        dispersion=0.01, dropout="none", dropout_rate=0.0, dropout_steepness=1.0,
        dropout_percentile=65.0, reference=5.0,
    )  # fmt: skip
    data = screen(measurement=how)
    model = ensemble(data, {})
    objective = prepared(data, data_loss="negative_binomial", dispersion=0.01)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(model, data.batch(data.starts(1))).total
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < values[0] - 0.1
    with pytest.raises(DataError, match="these data have none"):
        prepared(screen(), data_loss="negative_binomial")
    with pytest.raises(DataError, match="0 or above, got -2"):
        check_counts(torch.tensor([1.0, -2.0]))
    with pytest.raises(DataError, match=r"whole numbers, got 0\.5"):
        check_counts(torch.tensor([1.0, 0.5]))


def test_what_a_loss_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="degenerate"):
        ScreenObjective(**{**LOSS, "data_loss": "none"})
    with pytest.raises(ConfigError, match="negative_binomial"):
        ScreenObjective(**{**LOSS, "data_loss": "negative-binomial"})
    single = screen(n_replicate=1)
    with pytest.raises(ConfigError, match="two halves"):
        prepared(single)(
            ensemble(single, {"a": {"steady_split": 1.0}}), single.batch(single.starts(1))
        )


def test_no_field_is_a_perfect_fit_of_rest_and_no_fit_of_the_data():
    data = screen()
    model = ensemble(data, {"ssP": {"steady_perturbed": 1.0}}, field="free")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.log_gamma.fill_(-60.0)
    terms = prepared(data)(model, data.batch(data.starts(1)))
    assert float(terms.values["steady_perturbed"].detach()) < 1e-12
    assert float(terms.loss.detach()) > 1e-4


def cloud(n, shift=0.0, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, 3, generator=generator, dtype=torch.float64) + shift


def test_clouds_of_one_distribution_are_at_distance_zero_and_shifted_ones_are_not():
    same = [float(energy_distance(cloud(200, seed=i), cloud(150, seed=100 + i))) for i in range(20)]
    mean = torch.tensor(same).mean()
    assert abs(float(mean)) < 0.02
    assert float(energy_distance(cloud(200), cloud(200, 1.0, seed=1))) > 0.5
    # in one dimension: two points at 0 and two at d give 2d
    a, b = torch.zeros(2, 1).double(), torch.full((2, 1), 3.0).double()
    assert float(energy_distance(a, b)) == pytest.approx(6.0, abs=1e-4)
    many = energy_distance(cloud(40).expand(5, -1, -1), cloud(30, 1.0).expand(5, -1, -1))
    torch.testing.assert_close(many, energy_distance(cloud(40), cloud(30, 1.0)).expand(5))


def test_a_weighted_cloud_counts_its_cells_by_weight():
    a = torch.cat([cloud(150, seed=3), cloud(150, 4.0, seed=4)])
    target = cloud(200, seed=5)
    light = torch.cat([torch.full((150,), 1.0), torch.full((150,), 1e-6)]).double()
    even = energy_distance(a, target)
    assert float(energy_distance(a, target, light / light.sum())) < 0.05 < float(even)
    whole = torch.full((300,), 1 / 300, dtype=torch.float64)
    torch.testing.assert_close(energy_distance(a, target, whole), even)


def test_the_sinkhorn_divergence_has_its_closed_form_and_its_gradient():
    pytest.importorskip("ot", reason="POT (extra 'transport') is not installed")
    a = cloud(60, scale=0.5)
    moved = (a + 2.0).requires_grad_()
    value = sinkhorn_divergence(moved, a, blur=0.05)
    assert float(value.detach()) == pytest.approx(12.0, rel=0.01)  # |shift|² of a translation
    value.backward()
    expected = torch.full_like(a, 2 * 2.0 / 60)
    torch.testing.assert_close(moved.grad, expected, rtol=0.05, atol=1e-3)
    assert float(sinkhorn_divergence(a, a, blur=0.05)) == pytest.approx(0, abs=1e-9)


def test_a_noisy_relaxation_has_its_closed_form():
    generator = torch.Generator().manual_seed(0)
    start = torch.full((20_000, 1), 3.0, dtype=torch.float64)
    states, weights = euler_maruyama(
        lambda x: 1.0 - x, lambda x: torch.full_like(x, 0.5), start,
        torch.tensor([0.0, 1.0, 6.0]), max_step=0.02, generator=generator,
        growth=lambda x: 0.3 + 0 * x[..., 0],
    )  # fmt: skip
    assert float(states[1].mean()) == pytest.approx(1 + 2 * 0.3679, abs=0.02)
    assert float(states[2].var()) == pytest.approx(0.25 / 2, rel=0.05)
    torch.testing.assert_close(weights[2], torch.full_like(weights[2], 1.8))
    with pytest.raises(SolverError, match="not finite by day 1"):
        euler_maruyama(
            lambda x: x * 1e200, torch.zeros_like, start[:1], torch.tensor([0.0, 1.0]),
            max_step=0.1, generator=generator,
        )  # fmt: skip
