"""The document's two-headed model: rewards, environment, curriculum, training, saving."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.terms import Terms
from neuralgraph.systems.hyperbolic_response.gene_graph import subgraph
from neuralgraph.systems.hyperbolic_response.policy_value.dataset import PolicyValueData
from neuralgraph.systems.hyperbolic_response.policy_value.environment import (
    PerturbationEnv,
    complexity_at,
)
from neuralgraph.systems.hyperbolic_response.policy_value.evaluation import (
    PolicyValueEvaluator,
    feature_rank,
    top_recall,
    trivial,
)
from neuralgraph.systems.hyperbolic_response.policy_value.figures import in_disk
from neuralgraph.systems.hyperbolic_response.policy_value.loop import policy_value, refuse
from neuralgraph.systems.hyperbolic_response.policy_value.loss import PolicyValueObjective
from neuralgraph.systems.hyperbolic_response.policy_value.model import (
    HyperbolicPerturbationModel,
    HyperPerturbModel,
)
from neuralgraph.systems.hyperbolic_response.policy_value.rewards import (
    easy_first,
    policy_of,
    rewards,
    safe_kl,
    value_of,
)
from neuralgraph.systems.hyperbolic_response.simulator import SimulatedScreen
from neuralgraph.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from neuralgraph.training.riemannian import RiemannianAdam
from neuralgraph.training.session import Session

ROOT = Path(__file__).resolve().parents[3]
MANIFOLDS = ("poincare", "lorentz", "euclidean")
KNOBS = {
    "learning_rate": 5e-3, "batch_size": 1, "clip_norm": 1.0, "period": None, "floor": 0.1,
    "complexity_start": 1.0, "complexity_factor": 1.2, "complexity_every": 10,
}  # fmt: skip


@cache
def screen(n_cell_type: int = 1):
    knobs = yaml.safe_load((ROOT / "conf/simulator/perturb_screen_simulated.yaml").read_text())
    own = {
        "n_gene": 40, "n_single": 8, "n_only_combined": 0, "n_double": 6, "n_cell": 24,
        "n_control": 60, "n_cell_type": n_cell_type, "cell_type_spread": 0.5, "n_batch": 1,
        "knockdown": 1.5, "library_size": 2000.0, "dispersion": 0.1, "missing_edges": 0.0,
        "false_edges": 0.0,
    }  # fmt: skip
    assert own.keys() <= knobs.keys()
    knobs = {k: v for k, v in {**knobs, **own}.items() if k not in ("_target_", "seed")}
    simulator = SimulatedScreen(**knobs)
    recording, truth = simulator.simulate(3)
    return recording, simulator.reveal(recording, truth, graph=True)


def data(n_cell_type: int = 1, source=None, **options) -> PolicyValueData:
    settings = {
        "reward": "cell", "reference": "cell_type", "condition_on_cell_type": True,
        "seed_of_split": 0, "n_top_genes": None, "min_cells_per_gene": 3, "target_sum": 1e4,
        "max_order": None, "graph": "simulator", "graph_path": None, "graph_names_path": None,
        "graph_threshold": None, "graph_bridges": 0,
    }  # fmt: skip
    return PolicyValueData(*(source or screen(n_cell_type)), **{**settings, **options})


def model(spec, manifold: str = "poincare", seed: int = 0, **options) -> HyperPerturbModel:
    settings = {
        "curvature": 1.0, "learnable_curvature": True, "n_embedding": 6, "n_hidden": 16,
        "n_encoded": 12, "n_head": 12, "dropout": 0.1, "skip": True, "signed": True,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    return HyperPerturbModel(
        spec, manifold=manifold, generator=generator, **{**settings, **options}
    )


def objective() -> PolicyValueObjective:
    return PolicyValueObjective(policy_weight=1.0, value_weight=0.5, signed_weight=0.5)


def session(d: PolicyValueData, manifold: str = "poincare", **options) -> Session:
    d = d.astype(torch.float32)
    return Session(
        model(d.spec, manifold, **options), d, objective(), optimizer=RiemannianAdam, seed=1
    )


# ---- rewards -------------------------------------------------------------------------------------


def test_rewards_are_those_of_the_document_section_4_2():
    change = torch.tensor([[1.0, -2.0], [-3.0, 0.0], [0.5, 0.5]])
    label = torch.tensor([0, 0, 1])
    reward = rewards(change, label, 3, "cell")
    assert reward.tolist() == [[2.0, 1.0], [0.5, 0.5], [0.0, 0.0]]
    assert rewards(change, label, 3, "mean").tolist() == [[1.0, 1.0], [0.5, 0.5], [0.0, 0.0]]
    is_open = torch.tensor([True, True, False])
    torch.testing.assert_close(policy_of(reward, is_open)[0], torch.tensor([0.8, 0.2, 0.0]))
    assert value_of(reward, is_open).tolist() == [1.25, 0.75]
    torch.testing.assert_close(
        policy_of(torch.zeros(3, 2), is_open)[0], torch.tensor([0.5, 0.5, 0.0])
    )


def test_safe_kl_is_finite_zero_only_on_the_target_and_the_kl_elsewhere():
    target = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    assert float(safe_kl(target, target)) == pytest.approx(0.0, abs=1e-9)
    hard = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64).requires_grad_()
    value = safe_kl(target, hard)
    value.backward()
    assert 1 < float(value.detach()) < 20 and torch.isfinite(hard.grad).all()
    other = torch.tensor([[0.3, 0.4, 0.3], [0.4, 0.4, 0.2]], dtype=torch.float64)
    exact = (target * (target.clamp_min(1e-12) / other).log()).sum(-1).mean()
    assert float(safe_kl(target, other)) == pytest.approx(float(exact), rel=1e-4)


# ---- data ----------------------------------------------------------------------------------------


def test_the_two_halves_share_no_cell_and_agree_on_what_is_strong():
    d = data()
    assert not torch.equal(d.train.reward, d.held_out.reward)
    a, b = d.train.signed.flatten(), d.held_out.signed.flatten()
    assert float(torch.corrcoef(torch.stack((a, b)))[0, 1]) > 0.6
    torch.testing.assert_close(d.train.policy.sum(-1), torch.ones(1, d.spec.n_gene).double())
    torch.testing.assert_close(d.train.value, d.train.reward.mean(1))


def test_targets_of_the_training_half_do_not_depend_on_held_out_cells():
    """Changing every held-out cell changes no feature, gene, order or training target."""
    recording, given = screen()
    d = data()
    label, kind = recording.graph["condition"], recording.graph["cell_type"]
    from neuralgraph.systems.hyperbolic_response.splits import halves

    first = halves(label * (int(kind.max()) + 1) + kind, seed=0, name="halves of the cells")
    state = recording.state.clone()
    state[~first] = state[~first].flip(-1) + 3
    changed = type(recording)(**{**recording.__dict__, "state": state})
    options = {
        "reward": "cell", "reference": "cell_type", "condition_on_cell_type": True,
        "seed_of_split": 0, "n_top_genes": None, "min_cells_per_gene": 3, "target_sum": 1e4,
        "max_order": None, "graph": "simulator", "graph_path": None, "graph_names_path": None,
        "graph_threshold": None, "graph_bridges": 0,
    }  # fmt: skip
    other = PolicyValueData(changed, given, **options)  # type: ignore[arg-type]
    assert torch.equal(d.train.reward, other.train.reward)
    assert torch.equal(d.train.signed, other.train.signed)
    assert torch.equal(d.order, other.order)
    assert torch.equal(d.spec.node_features, other.spec.node_features)
    assert d.spec.gene_names == other.spec.gene_names
    assert not torch.equal(d.held_out.reward, other.held_out.reward)


def test_features_do_not_collapse_to_rank_one_as_the_document_s_do():
    d = data().astype(torch.float32)
    fresh = model(d.spec)
    with torch.no_grad():
        features = fresh.features(d.train.context)[0]
        first = fresh.space.logmap0(
            fresh.encode_1(fresh.space.expmap0(features), d.spec.edge_index, d.spec.edge_weight)
        )
    assert feature_rank(features) >= 6
    assert feature_rank(first) >= 6
    document = torch.relu(
        torch.nn.functional.layer_norm(features[:, :1] @ torch.randn(1, 16), [16])
    )
    assert int(torch.linalg.matrix_rank(document, rtol=1e-3)) <= 2


def test_cell_types_condition_targets_and_predictions():
    d = data(2).astype(torch.float32)
    assert d.train.reward.shape[0] == d.spec.n_context == 2
    assert not torch.equal(d.spec.node_features[0], d.spec.node_features[1])
    said = model(d.spec).eval()(torch.tensor([0, 1]))
    assert said.logits.shape == (2, d.spec.n_gene, d.spec.n_perturbation)
    assert said.signed is not None
    assert said.signed.shape == (2, d.spec.n_perturbation, d.spec.n_gene)
    assert (said.value[0] - said.value[1]).abs().max() > 1e-4
    assert data(2, condition_on_cell_type=False).train.reward.shape[0] == 1


def test_other_graphs_and_what_is_refused():
    assert data(graph="identity").graph.n_edge == 0
    by_correlation = data(graph="correlation", graph_threshold=0.2)
    assert by_correlation.graph.source.startswith("correlation")
    few = data(n_top_genes=12)
    assert 12 <= few.spec.n_gene <= 14 < few.spec.n_node  # ties stay
    assert few.graph.n_edge < data().graph.n_edge
    with pytest.raises(ConfigError, match="graph_threshold"):
        data(graph="correlation")
    with pytest.raises(ConfigError, match="graph_path"):
        data(graph="trrust")
    whole = data().graph
    assert subgraph(whole, whole.names[:5]).n_node == 5
    recording, given = screen()
    one = dict(recording.provenance)
    with pytest.raises(DataError, match=r"no perturbation screen .it lacks conditions,"):
        data(source=(replace(recording, provenance={}), given))
    one["targets"] = [t if i < 2 else [*t, "x", "y"] for i, t in enumerate(one["targets"])]
    with pytest.raises(DataError, match="2 or more to choose from"):
        data(source=(replace(recording, provenance=one), given), max_order=1, graph="identity")


# ---- environment and curriculum ------------------------------------------------------------------


def test_the_environment_rewards_a_choice_and_opens_with_complexity():
    reward = torch.tensor([[1.0, 3.0], [0.0, 0.0], [4.0, 4.0], [1.0, 1.0]])
    env = PerturbationEnv(reward, torch.tensor([2, 0, 3, 1]), complexity=0.5)
    assert env.is_open().tolist() == [True, False, True, False]
    response, value = env.step(0)
    assert response.tolist() == [1.0, 3.0] and value == 2.0
    with pytest.raises(ConfigError, match="action 3 is not open"):
        env.step(3)
    env.increase_complexity(1.5)
    assert env.n_open == 3 and env.step(3)[1] == 1.0
    env.increase_complexity(9.0)
    assert env.n_open == 4 and env.complexity == 1.0
    assert [action for action, _ in env.history] == [0, 3]
    with pytest.raises(ConfigError, match="share in"):
        PerturbationEnv(reward, torch.arange(4), complexity=0.0)


def test_the_curriculum_begins_with_the_clearest_effects():
    signed = torch.tensor([[[0.1, 0.0], [2.0, -2.0], [0.5, 0.5]]])
    assert easy_first(signed, signed.abs()).tolist() == [1, 2, 0]
    d = data()
    size = d.train.signed[0].square().mean(1).sqrt()[d.order]
    assert (size.diff() <= 1e-6).all()


def test_the_curriculum_changes_the_trajectory_and_ends_with_everything_open():
    weights, opened = [], []
    for start in (1.0, 0.3):
        s = session(data(), dropout=0.0)
        rows: list[int] = []
        s.write_row = lambda row, rows=rows: rows.append(row["n_open"])  # type: ignore[method-assign]
        knobs = {**KNOBS, "complexity_start": start, "complexity_every": 3}
        policy_value(s, n_epochs=24, **knobs)
        weights.append(torch.cat([p.detach().flatten() for p in s.model.parameters()]))
        opened.append(rows)
    n = data().spec.n_perturbation
    assert opened[0] == [n] * 24
    assert opened[1][0] == max(2, -(-3 * n // 10)) and opened[1][-1] == n
    assert sorted(opened[1]) == opened[1]
    assert (weights[0] - weights[1]).abs().max() > 1e-2


def test_complexity_is_a_function_of_the_epoch_alone():
    rows = [complexity_at(e, start=0.25, factor=1.2, every=10) for e in range(200)]
    assert rows[0] == 0.25 and rows[-1] == 1.0 and sorted(rows) == rows
    with pytest.raises(ConfigError, match="above 1"):
        refuse({"loop": {"complexity_start": 0.5, "complexity_factor": 1.0}})


def test_the_loop_wants_its_own_data_and_notes_what_stayed_closed():
    s = session(data())
    policy_value(s, n_epochs=2, **{**KNOBS, "complexity_start": 0.3})
    assert "the curriculum ended" in s.store["notes"][0]

    class Other:
        spec = None

        def to(self, device):
            return self

    bare = Session(torch.nn.Linear(1, 1), Other(), lambda m, b: Terms(torch.zeros(())))
    with pytest.raises(ConfigError, match="PolicyValueData"):
        policy_value(bare, n_epochs=2, **KNOBS)


# ---- training ------------------------------------------------------------------------------------


def test_every_manifold_has_as_many_parameters():
    d = data().astype(torch.float32)
    counts = {m: sum(p.numel() for p in model(d.spec, m).parameters()) for m in MANIFOLDS}
    assert len(set(counts.values())) == 1


def test_200_epochs_at_1e_3_stay_finite_and_beat_the_zero_predictor():
    s = session(data())
    d = s.data
    policy_value(s, n_epochs=200, **{**KNOBS, "learning_rate": 1e-3})
    s.model.eval()
    judge = PolicyValueEvaluator(
        every=0, primary_metric="policy_kld", direction="minimize", n_top=3
    )
    with torch.no_grad():
        said = s.model(d.train.context)
        card = judge(s.model, d, None, log={"final_loss": 0.0})
    assert all(torch.isfinite(p).all() for p in s.model.parameters())
    assert card.metrics["value_mse"] < 0.8 * card.metrics["value_mse_zero"]
    assert card.metrics["signed_mse"] < card.metrics["signed_mse_zero"]
    assert card.metrics["policy_kld"] < card.metrics["policy_kld_uniform"]
    assert card.metrics["policy_mae"] < float(d.train.policy.mean())  # of predicting 0
    assert "curvature" in card.metrics
    assert torch.linalg.matrix_rank(said.policy(d.train.is_open)[0].double(), rtol=1e-3) > 1


def test_save_and_load_predict_the_same(tmp_path):
    s = session(data())
    policy_value(s, n_epochs=5, **KNOBS)
    s.model.eval()
    save_checkpoint(tmp_path / "x.pt", {"model": s.model.state_dict()})
    fresh = model(s.data.spec, seed=9).eval()
    context = s.data.train.context
    assert not torch.equal(fresh(context).logits, s.model(context).logits)
    load_weights(fresh, load_checkpoint(tmp_path / "x.pt")["model"], source="x.pt")
    for a, b in zip(vars(fresh(context)).values(), vars(s.model(context)).values(), strict=True):
        assert torch.equal(a, b)


def test_every_parameter_receives_a_gradient():
    d = data().astype(torch.float32)
    m = model(d.spec, dropout=0.0)
    objective()(m, d.batch(d.starts(1))).total.backward()
    for name, parameter in m.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


def test_terms_are_weighted_as_in_the_document():
    d = data().astype(torch.float32)
    m = model(d.spec, signed=False).eval()
    batch = d.batch(d.starts(1))
    terms = objective()(m, batch)
    said = m(batch.context)
    expected = safe_kl(
        batch.policy, said.policy(batch.is_open)
    ) + 0.5 * torch.nn.functional.mse_loss(said.value, batch.value)
    torch.testing.assert_close(terms.total, expected)


# ---- judge ---------------------------------------------------------------------------------------


def test_trivial_predictions_are_what_they_say():
    d = data()
    judge = PolicyValueEvaluator(
        every=0, primary_metric="policy_kld", direction="minimize", n_top=3
    )
    rows = trivial(d.train)
    table = judge.scores(rows["table"], d.train)
    assert table["policy_kld"] == pytest.approx(0.0, abs=1e-6)
    assert table["value_mse"] == 0.0 and table["top_recall"] == 1.0
    assert table["signed_pearson"] == pytest.approx(1.0)
    uniform = judge.scores(rows["uniform"], d.train)
    entropy = -(d.train.policy * d.train.policy.log()).sum(-1).mean()
    n = d.spec.n_perturbation
    expected = torch.log(torch.tensor(float(n))) - entropy
    assert uniform["policy_kld"] == pytest.approx(float(expected), rel=1e-3)
    held_out = judge.scores(rows["table"], d.held_out)
    assert held_out["policy_kld"] > 0 and held_out["top_recall"] < 1


def test_top_recall_and_rank():
    target = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]])
    assert top_recall(target, target, 2) == 1.0
    assert top_recall(target, target.flip(1), 2) == 0.0
    line = torch.arange(6.0)[:, None] @ torch.ones(1, 4)
    assert feature_rank(line) == 1


@pytest.mark.parametrize("manifold", MANIFOLDS)
def test_points_of_any_dimension_fit_into_the_disk(manifold):
    d = data().astype(torch.float32)
    m = model(d.spec, manifold).eval()
    with torch.no_grad():
        disk = in_disk(m, m.encode(d.train.context)[0])
    assert disk.shape == (d.spec.n_node, 2) and float(disk.norm(dim=-1).max()) < 1


# ---- the simple model ----------------------------------------------------------------------------


@pytest.mark.parametrize("manifold", ["poincare", "euclidean"])
def test_the_simple_model_learns_responses_of_perturbations(manifold):
    d = data()
    target = d.train.signed[0].float()
    used = d.spec.targets.sum(0) > 0
    hot = d.spec.targets[:, used].float()
    m = HyperbolicPerturbationModel(
        int(used.sum()), d.spec.n_gene, manifold=manifold, curvature=1.0,
        learnable_curvature=True, n_embedding=8, n_hidden=(16, 12),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    optimizer = RiemannianAdam(m.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (m(hot) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3 * float(target.square().mean())
    saved = copy.deepcopy(m.state_dict())
    again = HyperbolicPerturbationModel(
        int(used.sum()), d.spec.n_gene, manifold=manifold, curvature=1.0,
        learnable_curvature=True, n_embedding=8, n_hidden=(16, 12),
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    again.load_state_dict(saved)
    assert torch.equal(again(hot), m(hot))


def test_predictions_follow_a_permutation_of_the_genes():
    """The encoder knows genes by their features and edges, not by their place."""
    d = data().astype(torch.float32)
    m = model(d.spec).eval()
    order = torch.randperm(d.spec.n_node, generator=torch.Generator().manual_seed(0))
    place = torch.argsort(order)
    other = copy.deepcopy(m)
    with torch.no_grad():
        other.table.point.copy_(m.table.point[order])
        for name, value in (
            ("node_features", d.spec.node_features[:, order]),
            ("edge_index", place[d.spec.edge_index]),
            ("gene_node", place[d.spec.gene_node]),
        ):
            setattr(other, name, value)
        a: Tensor = m(d.train.context).value
        b: Tensor = other(d.train.context).value
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
