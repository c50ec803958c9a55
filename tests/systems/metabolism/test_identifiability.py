from __future__ import annotations

import csv
import math
from collections import defaultdict
from itertools import product

import pytest
import torch
import yaml

from neuralgraph.building import build
from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.errors import ConfigError
from neuralgraph.core.seeding import torch_generator
from neuralgraph.numerics.coverage import monte_carlo
from neuralgraph.numerics.information import analyse, relative_noise, residual_noise
from neuralgraph.systems.metabolism.dataset import MetabolismData
from neuralgraph.systems.metabolism.identifiability import MetabolismIdentifiability
from neuralgraph.systems.metabolism.integer_scale import integer_confidence
from neuralgraph.systems.metabolism.kinetics import network_of_truth
from neuralgraph.systems.metabolism.model import Metabolism_Propagation

CYCLES = {"n_met": 9, "n_rxn": 31, "n_frame": 120, "n_run": 3, "n_test_run": 1}
NETWORK = {"n_met": 12, "n_rxn": 20, "n_run": 40, "n_test_run": 2, "n_frame": 5}


def part(**changes):
    with open(f"{CONFIG_FOLDER}/identifiability/metabolism.yaml", encoding="utf-8") as file:
        config = {k: v for k, v in yaml.safe_load(file).items() if not k.startswith("_")}
    return MetabolismIdentifiability(**{**config, **changes})


def simulated(stem, seed, sizes, support=True, roles=True, sto=True, k=False, **changes):
    with open(f"{CONFIG_FOLDER}/simulator/{stem}.yaml", encoding="utf-8") as file:
        config = yaml.safe_load(file)
    simulator = build({**config, **sizes, **changes}, "simulator")
    recording, truth = simulator.simulate(seed)
    given = simulator.reveal(
        recording, truth, support=support, roles=roles, stoichiometry=sto, rate_constants=k
    )
    return MetabolismData(recording, given, validation_fraction=0.0), truth


def model_for(data, **changes):
    arguments = {"kinetics": "mass_action", "homeostasis": True, **changes}
    model = Metabolism_Propagation(data.spec, generator=torch_generator(0, "model"), **arguments)
    return model.to(data.dtype)


def analysis_of(data, truth, model=None, *, identifier=None):
    identifier = identifier or part()
    problem = identifier.problem(model or model_for(data), data, truth, is_fitted=False)
    return analyse(problem, relative_noise(problem, 0.01), rtol=identifier.rtol)


def pairs_of(truth):
    """Reactions of each unordered pair of food and catalyst, with the direction of each."""
    network = network_of_truth(truth)
    found = defaultdict(list)
    for j in range(network.n_rxn):
        edges = network.rxn_all == j
        if not bool(edges.any()):
            continue
        food = int(network.met_all[edges & (network.sto_all < 0)])
        catalyst = int(network.met_all[edges & (network.sto_all > 0)])
        found[min(food, catalyst), max(food, catalyst)].append((j, food < catalyst))
    return network, found


# -- the facts of document 002's generator ------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 42])
def test_reactions_on_one_pair_are_known_as_signed_sums_and_an_empty_one_not_at_all(seed):
    data, truth = simulated("metabolism_oscillatory", seed, CYCLES)
    found = analysis_of(data, truth)
    network, pairs = pairs_of(truth)
    shared = {key: rows for key, rows in pairs.items() if len(rows) > 1}
    assert shared, "the test needs shared pairs"
    expected = set()
    for rows in shared.values():
        (first, forward), *others = rows
        text = f"k({network.reaction_names[first]})"
        for j, direction in others:
            sign = "+" if direction == forward else "-"
            text += f" {sign} k({network.reaction_names[j]})"
        expected.add(text)
    assert {c.text for c in found.combinations} == expected
    status = dict(zip(found.problem.parameters.name, found.status, strict=True))
    alone = {rows[0][0] for rows in pairs.values() if len(rows) == 1}
    for j, name in enumerate(network.reaction_names):
        wanted = "determined" if j in alone else "combination"
        if not bool((network.rxn_all == j).any()):
            wanted = "undetermined"
        assert status[f"k({name})"] == wanted
    assert network.n_rxn % 3 == 1 and status[f"k({network.reaction_names[-1]})"] == "undetermined"
    n_lost = sum(len(rows) - 1 for rows in shared.values()) + 1
    assert found.rank == found.n_par - n_lost and found.gap > 1e4


def test_structure_is_the_same_at_the_drawn_parameters_as_at_the_truth():
    data, truth = simulated("metabolism_oscillatory", 3, CYCLES)
    model = model_for(data)
    one, two = analysis_of(data, truth, model), analysis_of(data, None, model)
    n = data.spec.n_rxn
    assert one.status[:n] == two.status[:n]
    texts = [{c.text for c in found.combinations} for found in (one, two)]
    assert texts[0] == texts[1]


def test_errors_agree_with_the_stacked_least_squares():
    data, truth = simulated("metabolism_oscillatory", 5, {**CYCLES, "n_rxn": 6})
    found = analysis_of(data, truth)
    assert set(found.status) == {"determined"}
    n = found.n_par
    columns = []
    for at in range(n):  # the prediction is linear: its columns by differences
        value = torch.zeros(n, dtype=torch.float64)
        value[at] = 1
        rows = torch.zeros(found.problem.n_frame, len(found.problem.variable)).double()
        for one in found.problem.design:
            rows[:, one.variable] = one.jacobian() @ value[one.columns]
        columns.append((rows / found.noise.sd).flatten())
    a = torch.stack(columns, 1)
    exact = torch.linalg.inv(a.T @ a).diagonal().sqrt()
    assert torch.allclose(found.standard_error, exact, rtol=1e-6)
    # the prediction at the truth is the recorded derivative
    value = found.problem.parameters.value
    predicted = torch.stack(
        [one.jacobian() @ value[one.columns] for one in found.problem.design], 1
    )
    assert torch.allclose(predicted, data.train.dx_dt, atol=1e-10)
    state = data.train.concentration
    assert torch.allclose(found.problem.rhs(state), data.train.dx_dt, atol=1e-10)


def test_intervals_hold_the_truth_when_k_lines_and_exponent_are_refitted():
    data, truth = simulated("metabolism_oscillatory", 7, {**CYCLES, "n_rxn": 7, "n_frame": 40})
    found = analysis_of(data, truth, identifier=part(law="power"))
    assert found.problem.parameters.name[-1] == "p" and found.status[-1] == "determined"
    covered = monte_carlo(found, 200, torch.Generator().manual_seed(1))
    assert covered.n_failed == 0 and covered.n_replicate == 200
    assert 0.9 < covered.mean < 0.98
    known = analysis_of(data, truth)
    n = data.spec.n_rxn
    alone = known.is_determined()[:n]
    less, more = known.standard_error[:n][alone], found.standard_error[:n][alone]
    assert bool((less <= more * (1 + 1e-9)).all())


# -- recovery of S ------------------------------------------------------------------------------


def network_case(seed=11, **changes):
    options = {"sto": False, **changes}
    return simulated("metabolism_rate_network", seed, NETWORK, **options)


def drawn(data):
    return model_for(data, kinetics="learned_rate", homeostasis=False)


def rows_of(found):
    return {row.parameter: row for row in found.rows()}


def test_without_integers_a_column_and_its_rate_constant_share_a_scale():
    data, truth = network_case()
    found = analysis_of(data, truth, drawn(data), identifier=part(integer=False))
    rows = rows_of(found)
    assert len(rows) == data.spec.n_rxn + data.spec.met_all.numel()
    for row in rows.values():
        assert row.status == "combination" and row.standard_error is None
    met, rxn = int(data.spec.met_all[0]), int(data.spec.rxn_all[0])
    names = data.spec.metabolite_names[met], data.spec.reaction_names[rxn]
    product_name = f"k({names[1]})·S({names[0]},{names[1]})"
    assert rows[f"S({names[0]},{names[1]})"].combination == product_name
    assert product_name in rows[f"k({names[1]})"].combination
    assert "S·a, k/a" in rows[f"k({names[1]})"].note


def test_integers_fix_the_scale_except_where_rates_are_proportional():
    data, truth = network_case(n_rxn=60)
    found = analysis_of(data, truth, drawn(data))
    network = network_of_truth(truth)
    sets = defaultdict(list)
    for j in range(network.n_rxn):
        on = network.rxn_sub == j
        key = tuple(sorted(zip(network.met_sub[on].tolist(), network.sto_sub[on].tolist(),
                               strict=True)))  # fmt: skip
        sets[key].append(j)
    alike = {frozenset(rows) for rows in sets.values() if len(rows) > 1}
    assert alike, "the test needs reactions with the same substrates"
    rows = rows_of(found)
    changed = [set(network.met_all[network.rxn_all == j].tolist()) for j in range(network.n_rxn)]
    for j, name in enumerate(network.reaction_names):
        partners = next((group - {j} for group in alike if j in group), frozenset())
        entangled = set().union(*(changed[j] & changed[p] for p in partners)) if partners else set()
        status = rows[f"k({name})"].status
        assert status == ("combination" if entangled else "determined"), name
        for i in changed[j]:
            row = rows[f"S({network.metabolite_names[i]},{name})"]
            assert row.status == ("combination" if entangled else "determined")
            if i in entangled:
                assert " + " in row.combination or " - " in row.combination
    assert any(r.note.startswith("up to the integer scale") for r in rows.values())


def test_errors_of_s_are_those_of_the_product_over_k():
    data, truth = network_case()
    found = analysis_of(data, truth, drawn(data), identifier=part(law="known"))
    rows = rows_of(found)
    k = 10 ** truth.parameters["log_k"]
    names = found.problem.parameters.name
    for at in (0, 5):
        text = names[at].split("·")[1]
        rxn = int(data.spec.rxn_all[at])
        exact = float(found.standard_error[at] / k[rxn])
        assert rows[text].standard_error == pytest.approx(exact)
        assert f"{integer_confidence(exact):.4f}" in rows[text].note
    # k is at least as certain as from its best edge alone
    relative = rows[f"k({data.spec.reaction_names[0]})"].relative_error
    edges = (data.spec.rxn_all == 0).nonzero().flatten()
    product_error = found.standard_error[edges] / found.problem.parameters.value[edges].abs()
    assert relative <= float(product_error.min()) * (1 + 1e-9)


@pytest.mark.parametrize(("support", "roles", "sto", "k"), list(product([True, False], repeat=4)))
def test_every_prior_has_an_answer(support, roles, sto, k):
    sizes = {**NETWORK, "n_met": 6, "n_rxn": 7, "n_run": 12}
    data, truth = simulated(
        "metabolism_rate_network", 2, sizes, support=support, roles=roles, sto=sto, k=k
    )
    model = drawn(data)
    for point in (truth, None):
        found = analysis_of(data, point, model)
        groups = {row.group for row in found.rows()}
        wanted = set()
        if not sto:
            wanted.add("stoichiometry")
        if not k:
            wanted.add("rate constant")
        assert groups == wanted
        assert found.rank > 0 or not wanted


def test_mass_action_with_s_hidden_and_homeostasis():
    data, truth = simulated(
        "metabolism_oscillatory", 4, {**CYCLES, "n_rxn": 9}, support=True, roles=True, sto=False
    )
    groups = {row.group for row in analysis_of(data, truth).rows()}
    assert groups == {"rate constant", "stoichiometry", "homeostasis slope", "homeostasis offset"}


# -- after training, odd data, bad input --------------------------------------------------------


def test_a_fitted_model_shows_its_noise_and_its_values():
    data, truth = simulated("metabolism_oscillatory", 5, {**CYCLES, "n_rxn": 6})
    model = model_for(data)
    with torch.no_grad():
        model.log_k.copy_(truth.parameters["log_k"])
    identifier = part()
    problem = identifier.problem(model, data, None, is_fitted=True)
    left = data.train.dx_dt - model(data.train.concentration).detach()
    assert torch.allclose(problem.residual, left)
    found = analyse(problem, residual_noise(problem), rtol=identifier.rtol)
    rows = rows_of(found)
    names = data.spec.reaction_names
    estimate = torch.tensor([rows[f"k({n})"].estimate for n in names])
    assert torch.allclose(estimate.double(), 10 ** truth.parameters["log_k"], rtol=1e-6)


def test_a_learned_law_widens_the_errors_and_a_power_law_has_one_direction():
    data, truth = network_case(n_rxn=10, n_run=60)
    model = drawn(data)
    known = analysis_of(data, truth, model, identifier=part(law="known"))
    found = analysis_of(data, truth, model)
    assert found.status == known.status
    assert torch.allclose(found.held_error, known.standard_error, equal_nan=True)
    alone = found.is_determined()
    assert bool((found.standard_error >= known.standard_error)[alone].all())
    assert any("directions of its weights" in text for text in found.problem.assumed)
    names = data.spec.reaction_names
    one, two = rows_of(known), rows_of(found)
    law, k = found.learned, 10 ** truth.parameters["log_k"]
    for j, name in enumerate(names):
        # with every column at its integers k alone is better known than from its own edges
        own = min(float(law.free_error[j] / k[j]), one[f"k({name})"].relative_error)
        moved = float(law.free_root[j].norm() / k[j])
        error = two[f"k({name})"].relative_error
        assert error == pytest.approx(math.hypot(own, moved), rel=1e-6) and error > own
        # the scale f a, k / a is no direction: errors stay finite and small
        assert error < 1
    assert "the integers of all columns" in two[f"k({names[0]})"].note

    cycles, truth = simulated("metabolism_oscillatory", 5, {**CYCLES, "n_rxn": 6})
    model = model_for(cycles)
    with torch.no_grad():
        model.MLP_sub.power.fill_(1.0)
        model.MLP_sub.net.last.weight.zero_()
    for law in ("learned", "power"):
        problem = part(law=law).problem(model, cycles, None, is_fitted=True)
        if law == "learned":
            assert problem.nuisance.slope.shape[2] == 1
        else:
            assert problem.nuisance is None and problem.parameters.name[-1] == "p"
    with torch.no_grad():
        model.MLP_sub.net.last.weight.fill_(0.1)
    problem = part(law="power").problem(model, cycles, None, is_fitted=True)
    assert problem.parameters.name[-1] != "p" and problem.nuisance.slope.shape[2] > 5


def test_odd_data():
    sizes = {**CYCLES, "n_rxn": 9}
    # fewer frames than unknowns
    data, truth = simulated("metabolism_oscillatory", 1, {**sizes, "n_run": 1, "n_frame": 2})
    found = analysis_of(data, truth)
    assert found.rank <= 2 * 9 and "combination" in found.status
    # all trajectories equal and constant: every metabolite at its baseline, no reaction in balance
    data, truth = simulated("metabolism_oscillatory", 1, {**sizes, "n_run": 5, "n_frame": 4})
    still = data._copy(None, None)
    still._state = still._state[:1].expand_as(still._state).clone()
    one = analysis_of(still, truth)
    assert one.rank <= 9
    # a concentration of zero switches its reactions off
    off = data._copy(None, None)
    off._state = off._state.clone()
    off._state[:, 0] = 0
    found = analysis_of(off, truth)
    network = network_of_truth(truth)
    dead = network.rxn_sub[network.met_sub == 0].unique().tolist()
    assert dead
    assert {found.status[j] for j in dead} == {"undetermined"}


def test_truth_that_cannot_be_evaluated_and_laws_without_meaning_are_refused():
    from dataclasses import replace

    data, truth = network_case()
    other = replace(truth, facts={**truth.facts, "rate_law": "sbml"})
    with pytest.raises(ConfigError, match=r"identify\.at=prior"):
        part().problem(drawn(data), data, other, is_fitted=False)
    with pytest.raises(ConfigError, match="law=known"):
        part(law="power").problem(drawn(data), data, None, is_fitted=False)
    with pytest.raises(ConfigError, match="known, power, learned"):
        part(law="unknown")


def test_the_command_and_the_report_of_a_run(inside, tmp_path):
    small = (
        "+experiment=metabolism_joint",
        "budget=smoke",
        "trainer.progress=false",
        "simulator.n_met=9",
        "simulator.n_rxn=13",
        "simulator.n_frame=60",
    )
    status, message = inside(
        "identify", *small, "identify.at=truth", "identify.replicates=5", "hydra.run.dir=before"
    )
    assert status == 0, message
    status, message = inside("train", *small, "hydra.run.dir=after")
    assert status == 0, message
    for folder, page in (("before", "identifiability.html"), ("after", "report.html")):
        html = (tmp_path / folder / page).read_text()
        assert "What the data determine" in html and "only in combination" in html
        with (tmp_path / folder / "identifiability.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert len(rows) == 13 + 18 + 1
        assert {"determined", "undetermined"} <= {row["status"] for row in rows}
    assert "at the simulator" in (tmp_path / "before" / "identifiability.html").read_text()
    assert "fitted parameters" in (tmp_path / "after" / "report.html").read_text()
    status, message = inside("report", "run=after")
    assert status == 0, message
    assert "What the data determine" in (tmp_path / "after" / "report.html").read_text()


def test_a_real_network_given_s_is_determined_and_its_proportional_reactions_are_named():
    from neuralgraph.core.data_home import find_data
    from neuralgraph.core.errors import MissingDataError

    try:
        find_data("bigg/textbook.xml.gz")
    except MissingDataError as error:
        pytest.skip(str(error))
    sizes = {"n_run": 24, "n_test_run": 1, "n_frame": 6}
    data, truth = simulated("metabolism_sbml", 1, sizes)
    model = model_for(data, homeostasis=False)
    found = analysis_of(data, truth, model)
    assert found.n_par == data.spec.n_rxn and set(found.status) == {"determined"}
    data, truth = simulated("metabolism_sbml", 1, sizes, sto=False)
    found = analysis_of(data, truth, model_for(data, homeostasis=False))
    texts = {c.text for c in found.combinations}
    # malate dehydrogenase and malic enzyme share their substrates
    assert "k(MDH)·S(nad_c,MDH) + k(ME1)·S(nad_c,ME1)" in texts
