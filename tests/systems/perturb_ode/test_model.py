"""Fields: an ensemble is its models one by one, interventions act, arms say what they add."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from neuralgraph.core.errors import ConfigError
from neuralgraph.systems.perturb_ode.dataset import ScreenData
from neuralgraph.systems.perturb_ode.hill import HillNetwork
from neuralgraph.systems.perturb_ode.loop import train_arms
from neuralgraph.systems.perturb_ode.loss import ScreenObjective
from neuralgraph.systems.perturb_ode.model import FieldEnsemble
from neuralgraph.systems.perturb_ode.simulator import HillScreen
from neuralgraph.training.session import Session

SCREEN = {
    "n_gene": 6,
    "min_regulators": 1,
    "max_regulators": 2,
    "n_train_single": 4,
    "n_test_single": 1,
    "n_test_double": 3,
    "days": [2.0, 3.0, 5.0],
    "noise": 0.1,
    "n_replicate": 2,
    "has_control": True,
    "n_medium": 0,
    "measurement": None,
}
SOLVER = {"solver": "rk4", "rtol": 1e-5, "atol": 1e-6}
ARMS = {"standard": {}, "ssP": {"steady_perturbed": 1.0}, "both": {"steady_control": 0.5}}


@pytest.fixture(scope="module")
def screen():
    return HillScreen(**SCREEN).simulate(3)


@pytest.fixture
def data(screen):
    return ScreenData(screen[0], {}, weighting="uniform", start="measured", gate_margin=0.1)


def ensemble(data, arms=ARMS, n_seed=2, field="free", seed=0, **changed):
    knobs = {
        "n_hidden": 8,
        "n_layer": 1,
        "max_step": 0.5,
        "medium": "additive",
        **SOLVER,
        **changed,
    }
    return FieldEnsemble(
        data.spec,
        field=field,
        arms=arms,
        n_seed=n_seed,
        n_seed_of=None,
        n_seed_inner=1,
        generator=torch.Generator().manual_seed(seed),
        **knobs,
    ).double()


def fit(model, data, n_epochs=15):
    session = Session(
        model, data, ScreenObjective(data_loss="squared", dispersion=0.0, rollout_day=10.0), seed=0
    )
    train_arms(session, n_epochs=n_epochs, learning_rate=1e-2, clip_norm=1.0, curve_every=5)
    return session


@pytest.mark.parametrize("field", ["free", "production_decay", "hill", "signed_hill", "messages"])
def test_an_ensemble_equals_its_models_trained_one_by_one(data, field):
    together = ensemble(data, field=field)
    start = {k: v.clone() for k, v in together.named_parameters()}
    fit(together, data)
    for arm, terms in ARMS.items():
        if arm == "standard":
            continue
        for seed in range(2):
            index = int(together.of(arm)[seed])
            alone = ensemble(data, arms={"standard": {}, arm: terms}, n_seed=1, field=field)
            with torch.no_grad():
                for name, parameter in alone.named_parameters():
                    parameter.copy_(start[name][index].expand_as(parameter))
            fit(alone, data)
            expected = together.predict(data.everything())[index]
            found = alone.predict(data.everything())[int(alone.of(arm)[0])]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_arms_of_a_seed_begin_alike_and_end_apart(data):
    model = ensemble(data)
    first = model.predict(data.everything())
    for seed in range(2):
        same = [first[int(model.of(arm)[seed])] for arm in ARMS]
        assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
    assert not torch.equal(first[0], first[1])
    fit(model, data)
    last = model.predict(data.everything())
    assert not torch.equal(last[int(model.of("standard")[0])], last[int(model.of("ssP")[0])])


def test_training_does_not_read_what_is_held_out(screen):
    recording, _ = screen
    changed = recording.state.clone()
    changed[recording.is_test, 1:] += 5.0
    other = replace(recording, state=changed)
    models = []
    for one in (recording, other):
        data = ScreenData(one, {}, weighting="uniform", start="measured", gate_margin=0.1)
        model = ensemble(data)
        fit(model, data)
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("field", ["free", "production_decay", "hill", "signed_hill", "messages"])
def test_a_gene_without_production_decays(data, field):
    model = ensemble(data, field=field)
    batch = data.everything()
    with torch.no_grad():
        rate = model(batch.start.expand(model.n_model, -1, -1), batch.production, batch.regulation)
    stopped = batch.production == 0
    expected = -(model.log_gamma.exp()[:, None] * batch.start)
    torch.testing.assert_close(rate[:, stopped], expected[:, stopped])


def test_a_small_step_changes_little_and_the_solver_agrees_with_torchdiffeq(data):
    from neuralgraph.numerics.integrate import integrate

    model = ensemble(data, max_step=0.05)
    batch = data.everything()
    with torch.no_grad():
        mine = model.flow(batch)
        start = batch.start.expand(model.n_model, -1, -1)
        other = integrate(
            lambda _, x: model(x, batch.production, batch.regulation), start, batch.time,
            rtol=1e-9, atol=1e-10,
        )  # fmt: skip
    torch.testing.assert_close(mine, other[1:].permute(1, 2, 0, 3), atol=1e-6, rtol=1e-6)


def test_a_field_at_rest_pays_nothing_and_the_wrong_day_pays_on_another_day(data):
    arms = {
        "standard": {},
        "ssP": {"steady_perturbed": 1.0},
        "first": {"steady_first_day": 1.0},
        "all": {"kinetic": 1.0},
    }
    model = ensemble(data, arms=arms, n_seed=1)
    objective = ScreenObjective(data_loss="squared", dispersion=0.0, rollout_day=10.0)
    objective.prepare(data)
    batch = data.batch(data.starts(1))
    terms = objective.arm_terms(model, batch)
    index = {arm: int(model.of(arm)[0]) for arm in arms}
    assert all(values[index["standard"]] == 0 for values in terms.values())
    last = batch.encoded[:, :, -1].expand(model.n_model, -1, -1)
    speed = model(last, batch.production, batch.regulation).square().mean(-1)
    ssp = index["ssP"]
    torch.testing.assert_close(terms["steady_perturbed"][ssp], speed[ssp, ~batch.is_control].mean())
    assert terms["steady_first_day"][index["first"]] != terms["steady_perturbed"][index["ssP"]]


def test_what_cannot_be_asked_is_refused(data, screen):
    with pytest.raises(ConfigError, match="production_decay"):
        ensemble(data, field="production-decay")
    with pytest.raises(ConfigError, match="steady_perturbed"):
        ensemble(data, arms={"standard": {}, "x": {"steady_perturbd": 1.0}})
    with pytest.raises(ConfigError, match="data loss alone"):
        ensemble(data, arms={"standard": {"kinetic": 1.0}})
    with pytest.raises(ConfigError, match="must hold 'standard'"):
        ensemble(data, arms={"ssP": {"steady_perturbed": 1.0}})
    recording, _ = HillScreen(**{**SCREEN, "has_control": False}).simulate(3)
    without = ScreenData(recording, {}, weighting="uniform", start="measured", gate_margin=0.1)
    model = ensemble(without)
    objective = ScreenObjective(data_loss="squared", dispersion=0.0, rollout_day=10.0)
    objective.prepare(without)
    with pytest.raises(ConfigError, match=r"\['both'\].*unperturbed"):
        objective(model, without.batch(without.starts(1)))
    with pytest.raises(ConfigError, match="pairs"):
        HillScreen(**{**SCREEN, "n_test_double": 7})


def test_the_start_is_the_mean_of_unperturbed_training_cells(screen):
    recording, _ = screen
    knobs = {"weighting": "uniform", "gate_margin": 0.1}
    measured = ScreenData(recording, {}, start="measured", **knobs).everything()
    torch.testing.assert_close(measured.start[0], recording.state[:, 0])
    batch = ScreenData(recording, {}, start="unperturbed", **knobs).everything()
    expected = recording.state[0].mean(0)
    torch.testing.assert_close(batch.start[0], expected.expand_as(batch.start[0]))
    assert torch.equal(batch.target, measured.target)
    without = HillScreen(**{**SCREEN, "has_control": False}).simulate(3)[0]
    with pytest.raises(ConfigError, match="there are none"):
        ScreenData(without, {}, start="unperturbed", **knobs)
    with pytest.raises(ConfigError, match="unknown start 'rest'"):
        ScreenData(recording, {}, start="rest", **knobs)


def test_inverse_variance_keeps_the_size_of_the_data_loss(screen):
    recording, _ = screen
    data = ScreenData(
        recording, {}, weighting="inverse_variance", start="measured", gate_margin=0.1
    )
    batch = data.batch(data.starts(1))
    measured = data.knocked_out[data.train_index] == 0
    weight = batch.weight.movedim(1, 2)[measured]
    assert float(weight.mean()) == pytest.approx(1.0)
    assert float(weight.max()) < 110 * float(weight.median())
    assert (batch.weight.movedim(1, 2)[~measured] == 0).all()


def test_a_signed_hill_field_with_known_signs_is_the_network():
    screen = HillScreen(**{**SCREEN, "max_regulators": 1}).simulate(3)
    truth = screen[1].parameters
    sign = truth["sign"]
    data = ScreenData(
        screen[0], {"is_edge": sign != 0}, weighting="uniform", start="measured", gate_margin=0.1
    ).astype(torch.float64)
    model = ensemble(data, n_seed=1, field="signed_hill")
    scale = float(model.get_buffer("scale")[0])
    gene = torch.arange(6)[:, None]
    regulator = model.get_buffer("regulator")
    with torch.no_grad():
        model.weights[0].copy_(10 * sign[gene, regulator].expand_as(model.weights[0]))
        model.log_threshold.copy_((truth["threshold"][gene, regulator] / scale).log())
        model.log_exponent.copy_(truth["exponent"][gene, regulator].log())
        model.biases[0].copy_(torch.logit(truth["beta"]))
        model.log_top.copy_(truth["alpha"].log())
        model.log_gamma.copy_(truth["gamma"].log())
    network = HillNetwork(**{f.name: truth[f.name] for f in fields(HillNetwork)})
    batch = data.everything()
    expected = network.rate(batch.start[0], batch.production, batch.regulation)
    with torch.no_grad():
        found = model.rate(batch.start.expand(model.n_model, -1, -1), batch)[0]
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def test_a_regulator_of_unknown_sign_changes_nothing(screen):
    recording, truth = screen
    given = {"is_edge": truth.parameters["sign"] != 0}
    data = ScreenData(recording, given, weighting="uniform", start="measured", gate_margin=0.1)
    model = ensemble(data, n_seed=1, field="signed_hill")
    state = torch.rand(model.n_model, 2, 6, dtype=torch.float64) + 0.5
    state[:, 1] = state[:, 0]
    state[:, 1, 2] = 0.0
    with torch.no_grad():
        before = model.signed_production(state)
        assert not torch.allclose(before[:, 0], before[:, 1])
        model.weights[0].zero_()
        made = model.signed_production(state)
    torch.testing.assert_close(made[:, 0], made[:, 1])


def test_messages_run_along_the_edges_of_the_graph_alone(screen):
    recording, truth = screen
    edges = truth.parameters["sign"] != 0
    data = ScreenData(
        recording, {"is_edge": edges}, weighting="uniform", start="measured", gate_margin=0.1
    )
    model = ensemble(data, field="messages", n_seed=1)
    batch = data.everything()
    x = batch.start[0, :1]
    ones = torch.ones_like(x)
    jacobian = torch.autograd.functional.jacobian(
        lambda y: model(y.expand(model.n_model, -1, -1), ones, ones)[0, 0], x
    )[:, 0]
    off = ~(edges | torch.eye(6, dtype=torch.bool))
    assert jacobian[off].abs().max() == 0 and jacobian[edges].abs().min() > 0
    blind = ones.clone()
    blind[:, 2] = 0  # a nuclease knock-out: the gene acts on nobody
    other = x.clone()
    other[:, 2] += 1.0
    a, b = (model(y.expand(model.n_model, -1, -1), ones, blind) for y in (x, other))
    kept = torch.arange(6) != 2
    torch.testing.assert_close(a[..., kept], b[..., kept])


def test_gradients_by_the_adjoint_equation_are_those_through_the_steps(data):
    found = {}
    for solver in ("rk4", "dopri5", "adjoint"):
        model = ensemble(
            data, arms={"standard": {}}, n_seed=1, max_step=0.05, solver=solver, rtol=1e-9,
            atol=1e-10,
        )  # fmt: skip
        loss = (model.predict(data.everything()) ** 2).sum()
        loss.backward()
        found[solver] = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(found["rk4"], found["dopri5"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["adjoint"], found["dopri5"], rtol=1e-4, atol=1e-6)


def test_a_field_too_stiff_for_its_steps_is_said_in_words(data, monkeypatch):
    from neuralgraph.core.errors import SolverError

    monkeypatch.setattr("neuralgraph.systems.perturb_ode.model.MAX_STEPS", 200)
    model = ensemble(
        data, arms={"standard": {}}, n_seed=1, solver="dopri5", field="production_decay",
        rtol=1e-6, atol=1e-9,
    )  # fmt: skip
    with torch.no_grad():
        model.log_gamma[:, 3] = 30.0
    with torch.no_grad(), pytest.raises(SolverError, match=r"at t = .*G4"):
        model.predict(data.everything())
    with pytest.raises(ConfigError, match="adjoint"):
        ensemble(data, solver="adjoin")


def test_media_change_what_a_field_makes(screen):
    recording, _ = HillScreen(**{**SCREEN, "n_medium": 1}).simulate(3)
    data = ScreenData(recording, {}, weighting="uniform", start="measured", gate_margin=0.1)
    batch = data.everything()
    for medium in ("additive", "film"):
        model = ensemble(data, arms={"standard": {}}, n_seed=1, medium=medium)
        state = batch.start.expand(1, -1, -1)
        with torch.no_grad():
            model.of_medium.fill_(0.5)
            changed = model.rate(state, batch) - model(state, batch.production, batch.regulation)
        other = batch.medium[:, 0] > 0
        assert changed[:, ~other].abs().max() == 0
        made = changed[0, other] * (batch.production[other] > 0)
        assert made.abs().max() > 0
        stopped = changed[0, other] * (batch.production[other] == 0)
        assert stopped.abs().max() == 0
