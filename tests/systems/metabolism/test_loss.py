"""MetabolismObjective: each term against its formula, what is left out, what is refused."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from neuralgraph.core.errors import ConfigError, TrainingError
from neuralgraph.systems.metabolism.dataset import MetabolismBatch, MetabolismSpec
from neuralgraph.systems.metabolism.loss import MetabolismObjective
from neuralgraph.systems.metabolism.model import Metabolism_Propagation

MET = torch.tensor([0, 1, 1, 2, 2, 3])
RXN = torch.tensor([0, 0, 1, 1, 2, 2])
STO = torch.tensor([-1.0, 1.3, -2.0, 0.6, -1.0, 1.0])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model_spec(given: bool = False) -> MetabolismSpec:
    return MetabolismSpec(
        n_met=4,
        n_rxn=3,
        met_sub=torch.tensor([0, 1, 2]),
        rxn_sub=torch.tensor([0, 1, 2]),
        met_all=MET,
        rxn_all=RXN,
        sign_all=None,
        sto_sub=torch.tensor([1.0, 2.0, 1.0]) if given else None,
        sto_all=STO if given else None,
        order_sub=None,
        log_k=None,
        metabolite_names=("A", "B", "C", "D"),
        reaction_names=("r0", "r1", "r2"),
        concentration_scale=3.0,
        frame_interval=0.1,
        input_mode="none",
        has_roles=True,
        has_support=True,
    )


def model_of(given: bool = False, **knobs: Any) -> Metabolism_Propagation:
    knobs = {"kinetics": "mass_action", "substrate_form": "plain", "homeostasis": True, **knobs}
    model = Metabolism_Propagation(model_spec(given), generator=rng(1), **knobs).double()
    if not given:
        model.set_stoichiometry(sto_all=STO)
    return model


def batch_of(horizon: int = 1) -> MetabolismBatch:
    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng(len(shape)), dtype=torch.float64) + 0.5

    index = torch.arange(6)
    return MetabolismBatch(
        concentration=draw(6, 4),
        dx_dt=draw(6, 4) - 1,
        inputs=None,
        future=draw(6, horizon, 4) if horizon > 1 else None,
        future_inputs=None,
        dt=0.1,
        run=index,
        frame=index,
        time=index.double(),
    )


def test_data_term_is_a_mean_squared_error() -> None:
    model, batch = model_of(), batch_of()
    terms = MetabolismObjective()(model, batch)
    expected = (model(batch.concentration) - batch.dx_dt).square().mean()
    torch.testing.assert_close(terms.loss, expected)
    torch.testing.assert_close(terms.total, expected)
    assert list(terms.values) == ["loss"]


def test_l2_norm_is_the_mean_norm_of_a_frame() -> None:
    model, batch = model_of(), batch_of()
    value = MetabolismObjective(loss="l2_norm")(model, batch).loss
    expected = (model(batch.concentration) - batch.dx_dt).norm(dim=1).mean()
    torch.testing.assert_close(value, expected)


def test_rollout_term_sums_every_step() -> None:
    model, batch = model_of(), batch_of(3)
    state, error = batch.concentration, []
    assert batch.future is not None
    for t in range(3):
        state = state + 0.1 * model(state)
        error.append((state - batch.future[:, t]).square())
    expected = torch.stack(error).mean() / (0.1 * 3) ** 2
    torch.testing.assert_close(MetabolismObjective()(model, batch).loss, expected)


def test_rollout_uses_the_inputs_of_each_step() -> None:
    spec_model = model_of()
    spec_model.input_mode = "additive"
    batch = batch_of(2)
    one = torch.ones(6, 4, dtype=torch.float64)
    later = torch.stack([2 * one, 3 * one], dim=1)
    batch = replace(batch, inputs=one, future_inputs=later)
    assert batch.future is not None
    first = batch.concentration + 0.1 * spec_model(batch.concentration, one)
    second = first + 0.1 * spec_model(first, 2 * one)
    error = torch.stack([first, second], dim=1) - batch.future
    expected = error.square().mean() / 0.2**2
    torch.testing.assert_close(MetabolismObjective()(spec_model, batch).loss, expected)


def expected_terms(model: Metabolism_Propagation, batch: MetabolismBatch) -> dict[str, Tensor]:
    s = STO.double()
    column = torch.stack([s[:2].sum(), s[2:4].sum(), s[4:].sum()])
    c = torch.linspace(0.1, 9.0, 100, dtype=torch.float64)
    drops = []
    for level in (1.0, 2.0):
        f = model.MLP_sub(torch.stack([c, torch.full_like(c, level)], dim=1)).abs().flatten()
        drops.append((f[:-1] - f[1:]).relu())
    return {
        "coeff_S_L1": s.abs().sum(),
        "coeff_S_L2": s.norm(),
        "coeff_S_integer": (s - s.round()).square().mean(),
        "coeff_mass_conservation": column.square().sum(),
        "coeff_MLP_sub_diff": torch.stack(drops).norm(),
        "coeff_MLP_node_L1": model.homeostasis(batch.concentration).abs().mean(),
        "coeff_MLP_sub_norm": (model.MLP_sub(torch.ones(1, 2).double()).abs() - 1).square().sum(),
        "coeff_k_floor": (1.0 - model.log_k).relu().square().sum(),
    }


def test_each_regulariser_has_its_documented_value() -> None:
    model, batch = model_of(), batch_of()
    expected = expected_terms(model, batch)
    for name, value in expected.items():
        objective = MetabolismObjective(k_floor_threshold=1.0, **{name: 0.5})
        terms = objective(model, batch)
        assert list(terms.values) == ["loss", name]
        torch.testing.assert_close(terms.values[name], value, rtol=1e-6, atol=1e-9, msg=name)
        torch.testing.assert_close(terms.total, terms.loss + 0.5 * terms.values[name])
        terms.total.backward()


def test_integer_penalty_forms_vanish_at_integers() -> None:
    model, batch = model_of(), batch_of()
    for form in ("nearest", "sin2"):
        objective = MetabolismObjective(coeff_S_integer=1.0, integer_form=form)
        model.set_stoichiometry(sto_all=STO)
        assert float(objective(model, batch).values["coeff_S_integer"].detach()) > 1e-2
        model.set_stoichiometry(sto_all=STO.round())
        assert float(objective(model, batch).values["coeff_S_integer"].detach()) < 1e-12


def test_terms_that_are_off_are_never_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = model_of(), batch_of()

    def refuse(*_: object) -> None:
        raise AssertionError("evaluated")

    for name in ("_grid", "_rollout_error"):
        monkeypatch.setattr(MetabolismObjective, name, refuse)
    MetabolismObjective()(model, batch)
    with pytest.raises(AssertionError, match="evaluated"):
        MetabolismObjective(coeff_MLP_sub_diff=1.0)(model, batch)


def test_terms_of_what_is_given_are_left_out() -> None:
    model = model_of(given=True)
    objective = MetabolismObjective(
        coeff_S_L1=1.0, coeff_S_L2=1.0, coeff_S_integer=1.0, coeff_mass_conservation=1.0
    )
    assert list(objective(model, batch_of()).values) == ["loss"]


def test_first_coefficient_holds_in_the_first_phase() -> None:
    objective = MetabolismObjective(coeff_S_L1=2.0, first_coeff_L1=0.5)
    model, batch = model_of(), batch_of()
    assert objective(model, batch).weights["coeff_S_L1"] == 2.0
    objective.set_first_phase(True)
    assert objective(model, batch).weights["coeff_S_L1"] == 0.5
    objective.set_first_phase(False)
    assert objective(model, batch).weights["coeff_S_L1"] == 2.0


def test_weights_per_metabolite() -> None:
    model, batch = model_of(), batch_of()
    square = (model(batch.concentration) - batch.dx_dt).square()
    objective = MetabolismObjective(metabolite_weights="inverse_participation")
    weight = torch.tensor([1.0, 0.5, 0.5, 1.0], dtype=torch.float64) / 0.75
    torch.testing.assert_close(objective(model, batch).loss, (square * weight).mean())

    objective = MetabolismObjective(metabolite_weights="inverse_variance")
    with pytest.raises(TrainingError, match="prepare"):
        objective(model, batch)
    objective.prepare(SimpleNamespace(train=batch))
    weight = 1 / batch.dx_dt.var(dim=0)
    weight = weight / weight.mean()
    torch.testing.assert_close(objective(model, batch).loss, (square * weight).mean())


def test_power_law_needs_no_norm_term() -> None:
    model = model_of(substrate_form="power_law")
    terms = MetabolismObjective(coeff_MLP_sub_norm=1.0)(model, batch_of())
    assert list(terms.values) == ["loss"]


def test_terms_without_their_part_are_refused() -> None:
    learned = model_of(kinetics="learned_rate", substrate_form="power_law", homeostasis=False)
    for name in ("coeff_MLP_sub_diff", "coeff_MLP_sub_norm", "coeff_MLP_node_L1"):
        with pytest.raises(ConfigError, match=name):
            MetabolismObjective(**{name: 1.0})(learned, batch_of())


@pytest.mark.parametrize(
    "bad",
    [
        {"loss": "huber"},
        {"metabolite_weights": "equal"},
        {"integer_form": "cos"},
        {"coeff_S_L1": -1.0},
        {"coeff_k_floor": float("nan")},
    ],
)
def test_bad_options_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        MetabolismObjective(**bad)


def test_config_lists_every_knob_with_the_default_of_the_signature() -> None:
    path = Path(__file__).parents[3] / "conf" / "loss" / "metabolism.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.pop("_target_").endswith(MetabolismObjective.__name__)
    parameters = list(inspect.signature(MetabolismObjective).parameters.values())
    assert config == {p.name: p.default for p in parameters}


@pytest.mark.parametrize("stem", ["metabolism_learned_rate", "metabolism_mass_action"])
def test_model_configs_name_real_arguments(stem: str) -> None:
    path = Path(__file__).parents[3] / "conf" / "model" / f"{stem}.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.pop("_target_").endswith(Metabolism_Propagation.__name__)
    assert config.pop("_partial_") is True
    config.pop("kinetics")
    model = model_of(**{"kinetics": stem.removeprefix("metabolism_"), **config})
    assert torch.isfinite(model(batch_of().concentration)).all()


def test_a_mass_penalty_on_unbalanced_reactions_is_noted():
    def notes(weight: float, **facts: Any) -> list[str]:
        said: list[str] = []
        spec = replace(model_spec(), **facts)
        data = SimpleNamespace(train=batch_of(), spec=spec, note=said.append)
        MetabolismObjective(coeff_mass_conservation=weight).prepare(data)
        return said

    (sentence,) = notes(0.1, mass_balanced=False)
    assert "coeff_mass_conservation" in sentence and "not mass balanced" in sentence
    for weight, balanced in ((0.0, False), (0.1, True), (0.1, None)):
        assert notes(weight, mass_balanced=balanced) == []
    assert notes(0.1, mass_balanced=False, sto_all=STO) == [], "S is given: the term is left out"
