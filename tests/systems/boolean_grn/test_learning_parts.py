"""Dataset, loss, loop, metrics and evaluator of the learning half."""

from __future__ import annotations

import math

import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.systems.boolean_grn import loop as loops
from neuralgraph.systems.boolean_grn import loss as losses
from neuralgraph.systems.boolean_grn import metrics
from neuralgraph.systems.boolean_grn.evaluation import GRNEvaluator
from neuralgraph.training.budget import Budget
from neuralgraph.training.session import Session

STAGES = [
    {"name": "a", "n_gene": 2, "n_epochs": 1, "tau": 4.0, "rate": 1.0, "factors": {"dynamics": 0}},
    {"name": "b", "n_gene": 16, "n_epochs": 2, "tau": 10.0, "rate": 0.5, "factors": {}},
]
KNOBS = {
    "stages": STAGES, "learning_rate": 5e-3, "batch_size": 128, "clip_norm": 1.0, "n_warmup": 3,
    "weight_of_epochs": {"structure": 0.5}, "exploration": None,
}  # fmt: skip


def test_stages_of_a_curriculum_take_only_circuits_of_their_sizes(small):
    data = small[2].up_to(2)
    assert int(data.n_gene[data.train].max()) == 2
    assert 0 < data.train.numel() < small[2].train.numel()
    with pytest.raises(DataError, match="0 genes"):
        small[2].up_to(0)


def test_a_recording_without_circuits_is_refused(small):
    from dataclasses import replace

    from neuralgraph.systems.boolean_grn.dataset import GRNData

    with pytest.raises(DataError, match="adjacency"):
        GRNData(replace(small[0], graph={}), {}, validation_fraction=0.1)
    with pytest.raises(DataError, match="assayed"):
        GRNData(replace(small[0], state=small[0].state * 0), {}, validation_fraction=0.1)


def test_the_contrastive_loss_agrees_with_a_plain_double_loop():
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(9, 4, generator=generator), dim=-1)
    label = torch.tensor([0, 0, 1, 1, 1, 2, 0, 3, 2])
    total, n_anchor = 0.0, 0
    for i in range(9):
        others = [k for k in range(9) if k != i]
        positive = [p for p in others if label[p] == label[i]]
        if not positive:
            continue
        below = sum(math.exp(float(z[i] @ z[k]) / 0.1) for k in others)
        total -= sum(math.log(math.exp(float(z[i] @ z[p]) / 0.1) / below) for p in positive) / len(
            positive
        )
        n_anchor += 1
    found = float(losses.contrastive(z, label, 0.1))
    assert found == pytest.approx(total / n_anchor, rel=1e-5)


def test_weights_of_zero_leave_a_term_out_and_factors_scale_the_others(learning, small):
    model = learning.rows(small[2].spec)
    batch = small[2].batch(small[2].starts(1)[:16])
    none = learning.objective(
        coeff_contrastive=0, coeff_constraint=0, coeff_dynamics=0, coeff_auxiliary=0
    )
    assert list(none(model, batch).values) == ["loss"]
    every = learning.objective()
    scaled = every.scaled({"dynamics": 0, "contrastive": 2})
    terms = scaled(model, batch)
    assert "coeff_dynamics" not in terms.values
    assert terms.weights["coeff_contrastive"] == 2 * every.coefficients["contrastive"]
    assert "coeff_dynamics" in every(model, batch).values
    with pytest.raises(ConfigError, match="known are"):
        every.scaled({"dynamic": 1})


def test_each_term_gives_a_gradient_to_the_network(learning, small):
    """The ancestor's dynamics term depended on no parameter."""
    model = learning.rows(small[2].spec)
    batch = small[2].batch(small[2].starts(1)[:64])
    values = learning.objective()(model, batch).values
    for name, value in values.items():
        model.zero_grad()
        value.backward(retain_graph=True)
        moved = [p for p in model.row("structure").encode_node.parameters() if p.grad is not None]
        assert moved and max(float(p.grad.abs().max()) for p in moved) > 0, name


def test_every_parameter_receives_a_gradient(learning, small):
    model = learning.rows(small[2].spec)
    learning.objective()(model, small[2].batch(small[2].starts(1)[:256])).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, name


def test_a_frozen_row_is_not_evaluated(learning, small):
    model = learning.rows(small[2].spec)
    model.row("informed").requires_grad_(False)
    assert model.trained() == ["structure"]
    model.row("structure").requires_grad_(False)
    assert model.trained() == ["informed", "structure"]


def test_the_curriculum_learns_and_ends_at_the_final_temperature(learning, small):
    _, truth, data = small
    model = learning.rows(data.spec)
    session = Session(model, data, learning.objective(), seed=0)
    before = float(session.objective(model, data.batch(data.starts(1))).loss.detach())
    loops.curriculum(session, **KNOBS)
    with torch.no_grad():
        after = float(session.objective(model, data.batch(data.starts(1))).loss)
    assert after < 0.75 * before
    assert float(model.row("informed").tau) == 10.0
    n_batch = math.ceil(data.train.numel() / KNOBS["batch_size"])
    assert session.n_steps == (1 + 2 * n_batch) + (1 + n_batch)
    evaluator = GRNEvaluator(
        every=0, primary_metric="accuracy_4", direction="maximize", sizes=[3, 4, 6, 8],
        batch_size=64, n_proposal=20,
    )  # fmt: skip
    card = evaluator(model.eval(), data, truth, log={"final_loss": after})
    assert card.metrics["accuracy_3"] > card.metrics["majority_3"]
    assert 0 <= card.metrics["accuracy_structure_only_6"] <= 1
    assert card.not_computed["accuracy_8"] == "no test circuit has 8 genes"
    assert all(0 <= v <= 1 for k, v in card.metrics.items() if k != "final_loss")
    names = {f"recall_4_{name}" for name in data.spec.phenotypes}
    assert names <= set(card.metrics)
    blind = evaluator(model, data, None, log={"final_loss": after})
    assert "no truth" in blind.not_computed["accuracy_4"]
    assert set(blind.metrics) == {"final_loss"}


def test_an_interrupted_curriculum_goes_on_to_the_same_bytes(learning, small, tmp_path):
    data = small[2].thinned(300)

    def session(folder, stop=None):
        model = learning.rows(data.spec, structure=False)
        s = Session(model, data, learning.objective(), seed=0, folder=folder)
        step, count = s.step, 0

        def counted(batch):
            nonlocal count
            count += 1
            if count == stop:
                raise KeyboardInterrupt
            return step(batch)

        s.step = counted  # type: ignore[method-assign]
        return s

    whole = session(None)
    loops.curriculum(whole, **KNOBS)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(KeyboardInterrupt):
        loops.curriculum(session(tmp_path, stop=6), **KNOBS)
    again = session(tmp_path)
    assert again.resume_from(tmp_path / "checkpoints" / "last.pt")
    loops.curriculum(again, **KNOBS)
    for (name, a), b in zip(
        whole.model.state_dict().items(), again.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_smoke_budget_thins_the_circuits(learning, small):
    session = Session(
        learning.rows(small[2].spec, structure=False), small[2], learning.objective(), seed=0,
        budget=Budget(max_epochs=1, max_steps=4),
    )  # fmt: skip
    loops.curriculum(session, **{**KNOBS, "stages": STAGES[1:]})
    assert session.data.train.numel() == 64 and session.data.test_index(4).numel() <= 64


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "empty"),
        ([{**STAGES[0], "temperature": 1}], "temperature"),
        ([{**STAGES[0], "tau": 0}], "tau > 0"),
    ],
)
def test_stages_that_cannot_work_are_refused_before_any_work(stages, words):
    with pytest.raises(ConfigError, match=words):
        loops.refuse({"loop": {"stages": stages, "exploration": None}, "model": {}})


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_present():
    label, predicted = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([0, 0, 0, 1, 2])
    counts = metrics.confusion_matrix(label, predicted, 3)
    assert counts.sum() == 5 and metrics.recalls(counts) == {0: 0.75, 2: 1.0}
    assert metrics.balanced_accuracy(counts) == 0.875


def test_a_calibrated_classifier_has_no_calibration_error():
    probability = torch.tensor([[0.75, 0.25]] * 4)
    good = metrics.calibration(probability, torch.tensor([0, 0, 0, 1]))
    bad = metrics.calibration(probability, torch.tensor([1, 1, 1, 1]))
    assert good.error == pytest.approx(0) and bad.error == pytest.approx(0.75)
