"""What a screen determines of a field's parameters."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml

from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.errors import ConfigError
from neuralgraph.numerics.design import score_candidates
from neuralgraph.numerics.information import analyse, relative_noise
from neuralgraph.systems.perturb_ode.dataset import ScreenData
from neuralgraph.systems.perturb_ode.hill import HillNetwork
from neuralgraph.systems.perturb_ode.identifiability import PerturbOdeIdentifiability
from neuralgraph.systems.perturb_ode.model import FieldEnsemble
from neuralgraph.systems.perturb_ode.simulator import HillScreen

SCREEN = {
    "n_gene": 4,
    "min_regulators": 1,
    "max_regulators": 1,
    "n_train_single": 3,
    "n_test_single": 1,
    "n_test_double": 0,
    "days": [0.5, 1.0, 2.0],
    "noise": 0.1,
    "n_replicate": 2,
    "has_control": True,
    "n_medium": 0,
    "measurement": None,
}


@pytest.fixture(scope="module")
def screen():
    return HillScreen(**SCREEN).simulate(3)


def part(**changes):
    with open(f"{CONFIG_FOLDER}/identifiability/perturb_ode.yaml", encoding="utf-8") as file:
        config = {k: v for k, v in yaml.safe_load(file).items() if not k.startswith("_")}
    return PerturbOdeIdentifiability(**{**config, **changes})


def cut(screen, edges=True):
    recording, truth = screen
    given = {"is_edge": truth.parameters["sign"] != 0} if edges else {}
    return ScreenData(
        recording, given, weighting="uniform", start="measured", gate_margin=0.1
    ).astype(torch.float64)


def field(data, name, **changes):
    knobs = {
        "arms": {"standard": {}, "ssP": {"steady_perturbed": 1.0}},
        "n_seed": 1,
        "n_seed_of": None,
        "n_seed_inner": 1,
        "n_hidden": 4,
        "n_layer": 1,
        "max_step": 0.5,
        "medium": "additive",
        "solver": "rk4",
        "rtol": 1e-5,
        "atol": 1e-6,
        **changes,
    }
    generator = torch.Generator().manual_seed(1)
    return FieldEnsemble(data.spec, field=name, generator=generator, **knobs).double()


def test_sensitivities_of_the_truth_are_differences_of_its_flow(screen):
    data, truth = cut(screen), screen[1]
    problem = part().problem(field(data, "hill"), data, truth, is_fitted=False)
    names = problem.parameters.name
    assert names[:1] == ("alpha(G1)",) and len(names) == 3 * 4 + 2 * 4
    p = truth.parameters
    batch = data.batch(data.starts(1))
    found = torch.zeros(problem.n_frame, 4, len(names), dtype=torch.float64)
    for one in problem.design:
        found[:, one.variable, one.columns] = one.jacobian()
    for at, key, index in ((0, "alpha", 0), (8, "gamma", 0)):
        flows = []
        for h in (1e-5, -1e-5):
            moved = p[key].clone()
            moved[index] += h
            network = HillNetwork(**{
                k: (moved if k == key else p[k])
                for k in ("sign", "alpha", "beta", "gamma", "threshold", "exponent")
            })  # fmt: skip
            flow = network.flow(batch.start[0], batch.time, batch.production, batch.regulation)
            flows.append(flow[:, 1:] * (batch.weight > 0))
        slope = ((flows[0] - flows[1]) / 2e-5).flatten(0, 1)
        assert torch.allclose(found[..., at], slope, atol=1e-5)


def test_more_days_and_knock_outs_determine_more_and_the_next_one_is_scored(screen):
    data, truth = cut(screen), screen[1]
    identifier = part()
    problem = identifier.problem(field(data, "hill"), data, truth, is_fitted=False)
    found = analyse(problem, relative_noise(problem, 0.1), rtol=identifier.rtol)
    assert "expression of each gene" in found.noise.source
    candidates = list(problem.candidates())
    done = {names for names in data.conditions[: 1 + SCREEN["n_train_single"]]}
    assert candidates[0].kind == "more"
    for one in candidates[1:]:
        assert one.name.removeprefix("knock-out of ") not in done
    scores = score_candidates(found, candidates)
    assert len(scores) == len(candidates) and all(s.d_factor <= 1 + 1e-9 for s in scores)
    # the exponent of a gene's regulator is seen only where that regulator changes
    few = data.conditions_batch(data.train_index[:1])
    alone = replace(data._all, **{k: v for k, v in vars(few).items()})
    less = cut(screen)
    less._all, less.train_index = alone, torch.tensor([0])
    smaller = identifier.problem(field(less, "hill"), less, None, is_fitted=False)
    larger = identifier.problem(field(data, "hill"), data, None, is_fitted=False)
    ranks = [analyse(x, relative_noise(x, 0.1), rtol=1e-6).rank for x in (smaller, larger)]
    assert ranks[0] < ranks[1]


@pytest.mark.parametrize("name", ["hill", "signed_hill", "production_decay", "free", "messages"])
def test_every_field_with_genes_has_an_answer_and_its_residual(screen, name):
    data = cut(screen)
    model = field(data, name)
    identifier = part()
    problem = identifier.problem(model, data, None, is_fitted=True)
    batch = data.batch(data.starts(1))
    predicted = model.flow(batch)[model.of("standard")[0]].detach()
    seen = (batch.weight > 0).double()
    left = ((batch.target - predicted) * seen).flatten(0, 1)
    assert torch.allclose(problem.residual, left, atol=2e-3)  # other steps of the same flow
    found = analyse(problem, relative_noise(problem, 0.1), rtol=identifier.rtol)
    groups = {row.group for row in found.rows()}
    assert "decay" in groups
    if name == "hill":
        assert problem.nuisance is None and problem.evaluate is not None
        assert {"production", "regulation"} < groups
    else:
        # the freedom of the production is in the error of the decay
        assert problem.nuisance is not None
        assert bool((found.standard_error > found.held_error)[found.is_determined()].all())


def test_what_has_no_meaning_is_refused(screen):
    data = cut(screen)
    model = field(data, "hill")
    with pytest.raises(ConfigError, match="arms"):
        part(arm="nothing").problem(model, data, None, is_fitted=False)
    del model.log_gamma
    with pytest.raises(ConfigError, match="components"):
        part().problem(model, data, None, is_fitted=False)
