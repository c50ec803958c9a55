"""Baseline plus gated residual: where it starts, what it may see, when it is kept."""

from __future__ import annotations

import copy
import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.recording import Recording
from neuralgraph.nn.hyperbolic import free_curvature, geometry
from neuralgraph.predict import print_answer
from neuralgraph.systems.hyperbolic_response.dataset import ResponseData, _moved
from neuralgraph.systems.hyperbolic_response.embedding import disk_map, model_distance
from neuralgraph.systems.hyperbolic_response.loop import train_residual
from neuralgraph.systems.hyperbolic_response.loss import ResidualObjective
from neuralgraph.systems.hyperbolic_response.model import ResponseModel, _gate
from neuralgraph.systems.hyperbolic_response.predicting import predict
from neuralgraph.systems.hyperbolic_response.simulator import SimulatedScreen
from neuralgraph.systems.hyperbolic_response.tasks import N_SCALAR, Builder, cell_states
from neuralgraph.training.callbacks import Callback
from neuralgraph.training.session import Session

CONF = Path(__file__).resolve().parents[3] / "conf"


def menu(group: str, stem: str, **changed: Any) -> dict[str, Any]:
    """Arguments of a stem, with some of them changed."""
    stored = yaml.safe_load((CONF / group / f"{stem}.yaml").read_text())
    plain = {k: v for k, v in stored.items() if not k.startswith("_") and k != "seed"}
    assert not set(changed) - set(plain), "an argument that the stem does not have"
    return {**plain, **changed}


@lru_cache
def screen(n_single: int = 12, n_double: int = 26, n_batch: int = 1) -> tuple[Recording, Any]:
    simulator = SimulatedScreen(
        **menu(
            "simulator", "perturb_screen_simulated", n_gene=60, n_single=n_single,
            n_double=n_double, n_cell=40, n_control=120, n_batch=n_batch, branching=2.0,
        )
    )  # fmt: skip
    recording, truth = simulator.simulate(3)
    return recording, simulator.reveal(recording, truth, graph=True)


def cut(recording: Recording, given: Any, **changed: Any) -> ResponseData:
    asked = {"n_fold": 2, "n_control_split": 1, "validation_fraction": 0.0, **changed}
    settings = menu("dataset", "hyperbolic_response_simulated", **asked)
    return ResponseData(recording, given, **settings).astype(torch.float32)


def build(
    data: ResponseData,
    manifold: Any = "poincare",
    seed: int = 0,
    n_member: int = 3,
    learnable_curvature: bool = True,
) -> ResponseModel:
    return ResponseModel(
        data.spec, generator=torch.Generator().manual_seed(seed), manifold=manifold,
        baseline="additive", dim=3, n_layer=1, n_hidden=6, n_loading=3, n_member=n_member,
        n_control_split=data.n_control_split, init_std=0.1,
        learnable_curvature=learnable_curvature,
    )  # fmt: skip


def trained(
    data: ResponseData, *, n_epochs: int = 40, rate: float = 1e-2, n_member: int = 3
) -> Session:
    session = Session(build(data, n_member=n_member), data, ResidualObjective(pull=1e-2), seed=1)
    train_residual(
        session, n_epochs=n_epochs, learning_rate=rate, final_rate=rate / 10, clip_norm=None,
        consider_every=20, penalties=[0.1],
    )  # fmt: skip
    session.model.eval()
    return session


@lru_cache
def finished() -> Session:
    return trained(cut(*screen()), n_epochs=20)


def questions(model: ResponseModel, data: ResponseData):
    return Builder(data, model.settings).test().to("cpu", torch.float32)


@pytest.mark.parametrize("manifold", ["poincare", "lorentz", "euclidean"])
def test_the_residual_is_exactly_zero_at_the_start(manifold):
    data = cut(*screen())
    model = build(data, manifold)
    tasks = questions(model, data)
    with torch.no_grad():
        assert float(model.members(tasks).abs().max()) == 0.0
        said = model(tasks)
    assert torch.equal(said.delta, tasks.base) and torch.equal(said.ungated, tasks.base)


def test_every_manifold_has_the_same_number_of_parameters():
    data = cut(*screen())
    counts = {
        name: sum(p.numel() for p in build(data, name).parameters())
        for name in ("poincare", "lorentz", "euclidean")
    }
    assert len(set(counts.values())) == 1, counts


def test_planted_epistasis_is_learned_and_kept():
    data = cut(*screen(14, 80), n_fold=4, fold=0)
    model: Any = trained(data, n_member=2).model
    with torch.no_grad():
        said = model(questions(model, data))
    assert float(model.gate[..., 0].min()) > 0.3
    test = data.folds[0].test
    before = (said.base[0, 0] - test.delta_shared).square().mean()
    after = (said.delta[0, 0] - test.delta_shared).square().mean()
    assert after < 0.92 * before


def test_a_residual_that_does_not_help_is_not_kept():
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(200, 1, 8, 50, generator=generator)
    noise = torch.randn(200, 1, 8, 50, generator=generator)
    weight = torch.ones(200, 1, 8)
    assert float(_gate(left, noise, weight).mean()) < 0.02
    assert float(_gate(left, left, weight).mean()) == pytest.approx(1.0, abs=0.02)
    one = torch.zeros(1, 1, 8)
    one[..., 0] = 1.0  # a single condition has no standard error
    assert float(_gate(left[:1], left[:1], one).max()) == 0.0


@pytest.mark.parametrize("also", ["", "truth"])
def test_nothing_of_a_test_condition_but_its_name_reaches_training(also):
    """Cells of test conditions, and controls of the truth half, may be anything."""
    recording, given = screen()
    data = cut(recording, given, fold=0)
    state = recording.state.clone()
    changed = [*data.folds[0].test.rows, *([data.folds[0].control_rows[also]] if also else [])]
    for rows in changed:
        state[rows] = state[rows].flip(-1)
    other = cut(dataclasses.replace(recording, state=state), given, fold=0)
    a, b = (trained(d, n_epochs=4).model for d in (data, other))
    first = 1 if also else 0  # the shared form is measured against all controls
    for name, value in [*a.named_parameters(), *a.named_buffers()]:
        rest = b.state_dict()[name]
        if value.shape[:1] == (a.n_model,):
            value, rest = (x.unflatten(0, (a.n_form, -1))[first:] for x in (value, rest))
        elif value.shape[:1] == (a.n_form,) and value.shape[1:2] == (a.n_fold,):
            value, rest = value[first:], rest[first:]
        assert torch.equal(value, rest), name


def test_save_and_load_give_identical_predictions(tmp_path):
    session = finished()
    data: Any = session.data
    model: Any = session.model
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    fresh = build(data, seed=9)
    fresh.load_state_dict(torch.load(path))
    with torch.no_grad():
        a, b = model(questions(model, data)), fresh.eval()(questions(fresh, data))
    assert torch.equal(a.delta, b.delta) and torch.equal(a.std, b.std)


class Stop(Callback):
    """Ends a run in the middle, as a killed process does."""

    def on_epoch_end(self, session: Any, row: Any) -> None:
        if row["phase"] == "residual" and row["epoch"] == 5:
            raise KeyboardInterrupt


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(tmp_path):
    data = cut(*screen(), fold=0)
    knobs: dict[str, Any] = {
        "n_epochs": 9, "learning_rate": 1e-2, "final_rate": 1e-3, "clip_norm": 1.0,
        "consider_every": 3, "penalties": [0.2],
    }  # fmt: skip

    def session(folder: Path, callbacks: list[Callback]) -> Session:
        objective = ResidualObjective(pull=1e-2)
        folder.mkdir(exist_ok=True)
        return Session(build(data), data, objective, folder=folder, callbacks=callbacks)

    whole = session(tmp_path / "a", [])
    train_residual(whole, **knobs)
    with pytest.raises(KeyboardInterrupt):
        train_residual(session(tmp_path / "b", [Stop()]), **knobs)
    again = session(tmp_path / "b", [])
    assert again.resume_from(tmp_path / "b" / "checkpoints" / "last.pt")
    train_residual(again, **knobs)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_two_hundred_epochs_stay_finite_and_end_below_the_baseline():
    data = cut(*screen(), fold=0)
    session = trained(data, n_epochs=200, rate=1e-3, n_member=2)
    objective: Any = session.objective
    model: Any = session.model
    tasks = objective.tasks(model)
    with torch.no_grad():
        loss = float(objective(model, tasks).loss) / model.n_model
    assert loss < 0.9  # 1: the error of the baseline
    zero = (tasks.target.square().mean(-1) * tasks.weight)[:, tasks.is_real].mean()
    assert zero > 1.0


def test_ninety_percent_intervals_hold_about_ninety_percent():
    session = finished()
    data: Any = session.data
    model: Any = session.model
    with torch.no_grad():
        said = model(questions(model, data))
    inside = []
    for f, fold in enumerate(data.folds):
        n = fold.test.n_condition
        error = (said.delta[0, f, :n] - fold.test.delta_shared).abs()
        inside.append((error <= 1.645 * said.std[0, f, :n]).float().mean())
    assert 0.8 < float(torch.stack(inside).mean()) < 0.97


def test_members_that_disagree_widen_an_interval_as_the_jackknife_says():
    session = finished()
    data: Any = session.data
    model: Any = session.model
    tasks = questions(model, data)
    with torch.no_grad():
        every, delta = model.chosen(tasks), model(tasks).delta
        wider = model.spread(tasks, delta, every.var(2))
        wider = wider - model.spread(tasks, delta, torch.zeros_like(delta))
    m = model.n_member
    apart = (every - every.mean(2, keepdim=True)).square().sum(2) * (m - 1) / m
    factor = model.noise[..., -1, None, None]
    assert float(apart.max()) > 0
    assert torch.allclose(wider, factor * apart, rtol=1e-3, atol=1e-6)


def test_a_pair_is_predicted_alike_in_either_order_and_unknown_names_have_neighbours():
    session = finished()
    data: Any = session.data
    model: Any = session.model
    first, second = data.perturbations[:2]
    a = predict(model, data, f"{first}+{second}", cell_type=None)
    b = predict(model, data, f"{second}+{first}", cell_type=None)
    assert torch.equal(a.delta, b.delta) and a.perturbation == b.perturbation
    assert (a.std > 0).all() and len(a.rows()) == len(a.genes)
    with pytest.raises(DataError, match="did you mean"):
        predict(model, data, f"{first}x", cell_type=None)
    with pytest.raises(DataError, match="no cell type"):
        predict(model, data, first, cell_type="moon")


def test_a_held_out_pair_is_answered_by_the_fold_that_never_saw_it(capsys):
    session = finished()
    data: Any = session.data
    model: Any = session.model
    name = data.folds[1].test.names[0]
    answer = predict(model, data, name, cell_type=None)
    assert answer.folds == (1,) and answer.measured is not None
    rows = answer.rows()
    print_answer(answer, rows, 2, Path("all.csv"))
    text = capsys.readouterr().out
    for row, title in ((rows[0], "up"), (rows[-1], "down")):
        line = next(part for part in text.splitlines() if part.startswith(f"{row['gene']} "))
        assert f"[{row['low_90']:+.3f}, {row['high_90']:+.3f}]" in line
        assert f"{row['measured']:+.3f}" in line and title in text.split()
    assert name in text and rows[2]["gene"] not in text.split()


def test_a_baseline_that_does_not_exist_is_refused():
    data = cut(*screen())
    with pytest.raises(ConfigError, match="did you mean 'additive'"):
        ResponseModel(
            data.spec, generator=torch.Generator(), manifold="poincare", baseline="aditive",
            dim=2, n_layer=1, n_hidden=4, n_loading=2, n_member=2, n_control_split=1, init_std=0.1,
            learnable_curvature=True,
        )  # fmt: skip


def test_a_tree_lies_in_the_disk_with_its_leaves_outside():
    edges = [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6)]
    distance = torch.full((7, 7), 99.0, dtype=torch.float64).fill_diagonal_(0)
    for a, b in edges:
        distance[a, b] = distance[b, a] = 1
    for k in range(7):
        distance = torch.minimum(distance, distance[:, k : k + 1] + distance[k : k + 1])
    radius = disk_map(distance).norm(dim=1)
    assert float(radius.max()) < 1
    assert float(radius[3:].min()) > float(radius[:3].max())


@lru_cache
def typed_screen() -> tuple[Recording, Any]:
    """Three cell types."""
    simulator = SimulatedScreen(
        **menu(
            "simulator", "perturb_screen_simulated", n_gene=40, n_single=6, n_double=4, n_cell=12,
            n_control=40, n_batch=1, n_cell_type=3,
        )
    )  # fmt: skip
    recording, truth = simulator.simulate(3)
    return recording, simulator.reveal(recording, truth, graph=True)


def test_a_new_cell_type_is_asked_for_in_training_as_in_the_test():
    data = cut(*typed_screen(), split="unseen_cell_type", n_fold=None)
    builder = Builder(data, build(data).settings)
    training, test = builder.training(), builder.test()
    for f in range(3):
        known = builder.known[0][f]
        groups = [set(t.is_full[f, t.is_real[f]].tolist()) for t in (training, test)]
        assert groups == [{True}, {True}], "genes are known alone from the other cell types"
        for t, row in enumerate(builder.rows[f]):
            twin = (known.hot == known.hot[row]).all(1)
            hidden = builder.hidden(f, known.hot[row], int(known.context[row]))
            assert hidden.nonzero()[:, 0].tolist() == [row] and int(twin.sum()) == 2
            assert not training.is_open[f, t, row] and training.is_open[f, t, twin.nonzero()].any()


def test_a_cell_type_is_where_its_controls_lie_among_the_others():
    level = torch.zeros(4, 30, dtype=torch.float64)
    level[1, :10], level[2, :10], level[3, 10:20] = 1.0, 1.0, 3.0
    at = cell_states(level)
    assert at.shape == (4, 3) and torch.allclose(at[1], at[2])
    apart, wanted = torch.pdist(at), torch.pdist(level)  # three coordinates hold all distances
    assert torch.allclose(apart, wanted * apart[2] / wanted[2], atol=1e-9)
    assert cell_states(level[:1]).shape == (1, 0)
    data = cut(*typed_screen(), split="combination")
    model = build(data)
    weight = dict(model.weight.items())
    tasks = questions(model, data)
    first = {tuple(h.tolist()): t for t, h in reversed(list(enumerate(tasks.hot[0])))}
    pairs = [(first[tuple(h.tolist())], t) for t, h in enumerate(tasks.hot[0])]
    a, b = next(pair for pair in pairs if pair[0] != pair[1])  # one pair of genes, two cell types
    assert not torch.equal(tasks.scalar[0, 0, a, N_SCALAR:], tasks.scalar[0, 0, b, N_SCALAR:])
    same = dataclasses.replace(tasks, scalar=tasks.scalar.clone())
    same.scalar[:, :, :, :N_SCALAR] = 0.0
    with torch.no_grad():
        direction, loading, _ = model._code(same, weight)
    for told in (direction, loading):
        assert not torch.allclose(told[0, 0, :, a], told[0, 0, :, b])


def test_a_held_out_perturbation_is_hidden_in_every_cell_type():
    data = cut(*typed_screen(), split="leave_one_out", n_fold=None, fold=0)
    builder = Builder(data, build(data).settings)
    known = builder.known[0][0]
    for row in range(len(known.hot)):
        asked = known.hot[row]
        hidden = builder.hidden(0, asked, int(known.context[row]))
        same = (known.hot == asked).all(1)
        touched = (known.hot @ asked) > 0
        assert int(same.sum()) == 3
        assert torch.equal(hidden, touched if float(asked.sum()) == 1 else same)


def test_questions_are_made_on_the_cpu_wherever_the_data_are(monkeypatch):
    data = cut(*screen(), fold=0)
    settings = build(data).settings
    here = Builder(data, settings).training()
    away: Any = copy.copy(data)
    away.folds = _moved(data.folds, "meta", None)  # another device: no value can be read there
    monkeypatch.setattr(away, "to", lambda device: data)
    there = Builder(away, settings).training()
    for field in dataclasses.fields(here):
        assert torch.equal(getattr(here, field.name), getattr(there, field.name)), field.name


def test_what_a_member_is_validated_on_is_in_none_of_its_principal_directions(monkeypatch):
    data = cut(*screen(), fold=0)
    builder = Builder(data, build(data).settings)
    before = builder.training()
    question = 4
    member, row = int(before.chunk[0, question]), builder.rows[0][question]
    known = builder.known[0][0]
    delta = known.delta.clone()
    delta[row] = 5 * delta[row].flip(0)
    monkeypatch.setattr(
        Builder,
        "_known",
        lambda self, fold, form: dataclasses.replace(known, delta=delta),
    )
    after = Builder(data, build(data).settings).training()
    assert torch.equal(before.loading[0, 0, member], after.loading[0, 0, member])
    for other in set(range(3)) - {member}:
        assert not torch.allclose(before.loading[0, 0, other], after.loading[0, 0, other])
    gram = before.loading[0, 0].mT @ before.loading[0, 0]
    assert torch.allclose(gram, torch.eye(3, dtype=gram.dtype).expand_as(gram))


def test_principal_directions_of_the_test_are_those_of_training_sign_included():
    data = cut(*screen(n_batch=2), fold=0, reference="batch")  # other controls, other directions
    builder = Builder(data, build(data).settings)
    assert torch.equal(builder.training().loading, builder.test().loading)
    assert bool((builder.training().value != builder.test().value).any())


@pytest.mark.parametrize("manifold", ["poincare", "lorentz", "euclidean"])
def test_curvature_is_learned_by_each_model_apart_and_does_what_it_says(manifold):
    data = cut(*screen(), fold=0)
    model = build(data, manifold)
    weight = {name: value.detach().clone() for name, value in model.weight.items()}
    weight["curvature"].fill_(free_curvature(3.0))
    bent = model.curvature(weight)
    is_flat = manifold == "euclidean"
    assert torch.allclose(bent, torch.tensor(1.0 if is_flat else 3.0))
    space = geometry(manifold, curvature=3.0, learnable=False)
    tangent = model.space.logmap0(model.embed(weight)) / bent.sqrt()[:, None, None]
    points = space.expmap0(tangent.double())
    own = model.space.dist(*model.embed(weight)[:, :2].unbind(1)) / bent.sqrt()
    assert torch.allclose(own.double(), space.dist(points[:, 0], points[:, 1]), atol=1e-4)
    objective = ResidualObjective(pull=0.0)
    objective.prepare(data)
    objective(model, objective.tasks(model)).loss.backward()
    slope = model.weight["curvature"].grad
    assert slope is None if is_flat else bool((slope != 0).all())
    fixed = build(data, manifold, learnable_curvature=False)
    assert "curvature" not in fixed.weight
    assert torch.allclose(fixed.embed(), build(data, manifold).embed())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_run_on_the_gpu_says_what_one_on_the_cpu_says():
    data = cut(*screen(), fold=0)
    model: Any = build(data)
    session = Session(model, data, ResidualObjective(pull=1e-2), seed=1, device="cuda")
    train_residual(
        session, n_epochs=2, learning_rate=1e-3, final_rate=1e-4, clip_norm=None,
        consider_every=1, penalties=[0.1],
    )  # fmt: skip
    with torch.no_grad():
        near = session.model(Builder(session.data, model.settings).test().to("cuda", torch.float32))
        far = trained(data, n_epochs=2, rate=1e-3).model(questions(model, data))
    assert torch.allclose(near.delta.cpu(), far.delta, atol=1e-3)


def test_the_map_shows_what_descent_kept():
    data = cut(*screen(), fold=0)
    model: Any = build(data)
    assert model.descent_kept() == 0.0
    start = model_distance(model)
    model.get_buffer("full_constant").add_(1.0)  # a direction in closed form moves no point
    assert model.descent_kept() == 0.0 and torch.equal(model_distance(model), start)
    for name in ("embed", "single"):
        model.get_buffer(f"full_{name}")[0].add_(0.3)
    assert model.descent_kept() == pytest.approx(0.5), "one of two forms"
    points = model.embed(model.kept("full"))[:1].double()
    own = model.space.dist(points[:, :, None], points[:, None, :])[0]
    assert torch.allclose(model_distance(model), own / own.mean(), atol=1e-6)
