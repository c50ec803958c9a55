"""Counts against closed forms, and a simulated file that is read back like a user's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.systems.perturb_ode.cells import CountedScreen
from neuralgraph.systems.perturb_ode.dataset import ScreenData
from neuralgraph.systems.perturb_ode.folds import FoldedSeries
from neuralgraph.systems.perturb_ode.measurement import Measurement
from neuralgraph.systems.perturb_ode.recorded import KnockoutSeries, shifted_batches
from neuralgraph.systems.perturb_ode.simulator import HillScreen
from neuralgraph.systems.perturb_ode.vae import CellCounts

PLAIN = Measurement(
    depth=500.0,
    depth_spread=0.0,
    batch_spread=0.0,
    batch_condition_spread=0.0,
    dispersion=0.0,
    dropout="none",
    dropout_rate=0.0,
    dropout_steepness=1.0,
    dropout_percentile=65.0,
    reference=0.0,
)
SCREEN = {
    "n_gene": 6,
    "min_regulators": 1,
    "max_regulators": 2,
    "n_train_single": 4,
    "n_test_single": 0,
    "n_test_double": 0,
    "n_medium": 0,
    "days": [2.0, 3.0],
    "noise": 0.0,
    "n_replicate": 1,
    "has_control": True,
    "measurement": None,
}


def measured(measurement, n_cell=40_000, batch=None, abundance=None):
    x = np.tile([1.0, 3.0, 6.0] if abundance is None else abundance, (n_cell, 1))
    batch = np.zeros(n_cell, int) if batch is None else batch
    return measurement(x, batch, np.zeros(n_cell, int), np.random.default_rng(1))


@pytest.mark.parametrize("dispersion", [0.0, 0.4])
@pytest.mark.parametrize("rate", [0.0, 0.35])
def test_mean_and_variance_of_counts_have_their_closed_forms(dispersion, rate):
    how = replace(PLAIN, depth=40.0, dispersion=dispersion, dropout="constant", dropout_rate=rate)
    counted = measured(how)
    mean, cv2 = how.moments(counted.expected[0], counted.dropped[0])
    np.testing.assert_allclose(counted.expected[0], 40 * np.array([0.1, 0.3, 0.6]))
    np.testing.assert_allclose(counted.count.mean(0), mean, rtol=0.03)
    found = counted.count.var(0) / counted.count.mean(0) ** 2
    np.testing.assert_allclose(found, cv2, rtol=0.05)


def test_logistic_dropout_keeps_half_at_its_midpoint_and_more_of_what_is_abundant():
    how = replace(PLAIN, dropout="logistic", dropout_percentile=50.0)
    counted = measured(how, n_cell=20_000)
    assert counted.dropped[0, 1] == pytest.approx(0.5)
    assert counted.dropped[0, 0] > 0.5 > counted.dropped[0, 2]
    lost = (counted.count == 0).mean(0)
    np.testing.assert_allclose(lost, counted.dropped[0], atol=0.015)


def test_without_a_reference_only_relative_abundance_is_counted():
    one, twice = (measured(PLAIN, 50, abundance=x) for x in ([1.0, 3.0], [2.0, 6.0]))
    assert (one.count == twice.count).all()
    how = replace(PLAIN, reference=4.0)
    one, twice = (measured(how, 20_000, abundance=x) for x in ([1.0, 3.0], [2.0, 6.0]))
    ratio = [(c.count / np.maximum(c.reference, 1)[:, None]).mean(0) for c in (one, twice)]
    np.testing.assert_allclose(ratio[1] / ratio[0], 2.0, rtol=0.02)


def test_cells_of_a_batch_share_its_factors():
    how = replace(PLAIN, batch_spread=0.5)
    batch = np.repeat([0, 1], 5)
    factors = how.factors(batch, np.zeros(10, int), 4, np.random.default_rng(0))
    assert (factors[:5] == factors[0]).all() and (factors[5:] == factors[5]).all()
    many = how.factors(np.arange(4000), np.zeros(4000, int), 1, np.random.default_rng(0))
    assert np.log(many).std() == pytest.approx(0.5, rel=0.05)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ConfigError, match="logistic"):
        replace(PLAIN, dropout="logistik")
    with pytest.raises(DataError, match="0 or above"):
        measured(PLAIN, 3, abundance=[-1.0, 2.0])
    with pytest.raises(DataError, match="no transcript"):
        measured(PLAIN, 3, abundance=[0.0, 0.0])
    with pytest.raises(ConfigError, match="reference above 0"):
        HillScreen(**{**SCREEN, "measurement": PLAIN})


def counted_screen(screen=None, **changed):
    knobs = {
        "screen": HillScreen(**{**SCREEN, **(screen or {})}),
        "measurement": replace(PLAIN, batch_spread=0.3),
        "n_cell": 30,
        "n_batch": 3,
        "design": "crossed",
        "cell_spread": 0.2,
        "correct_batches": False,
        "min_cells": 20,
        "keep_cells": True,
    }
    return CountedScreen(**{**knobs, **changed})


READ = {
    "perturbation_column": "perturbation",
    "time_column": "day",
    "control_label": "control",
    "gene_column": None,
    "medium_column": None,
    "medium_label": None,
    "batch_column": None,
    "correct_batches": True,
    "edges_path": "trrust/trrust_human.tsv",
    "min_cells": 20,
    "max_genes": None,
    "unmeasured_targets": "refuse",
    "keep_cells": True,
}


def test_a_simulated_file_is_read_back_like_a_users_own(tmp_path):
    simulator = counted_screen()
    recording, truth = simulator.simulate(4)
    (product,) = simulator.exhibits(recording, truth, tmp_path)
    again, none = KnockoutSeries(path=str(product.path), **READ).simulate(0)
    assert none is None
    assert again.provenance["conditions"] == recording.provenance["conditions"]
    torch.testing.assert_close(again.state, recording.state)
    torch.testing.assert_close(again.graph["cells"], recording.graph["cells"])
    data = FoldedSeries(
        again, {}, n_component=2, intervention="nuclease", has_inner=False, gate_margin=0.1
    )
    assert data.everything().is_control.sum() == 1 and len(data.held) == 4
    import anndata

    counts = anndata.read_h5ad(product.path).layers["counts"]
    assert (counts == counts.round()).all() and counts.min() == 0


def test_batches_and_counts_of_a_file_reach_the_recording(tmp_path):
    simulator = counted_screen()
    recording, truth = simulator.simulate(4)
    (product,) = simulator.exhibits(recording, truth, tmp_path)

    def again(**changed):
        return KnockoutSeries(path=str(product.path), **{**READ, **changed}).simulate(0)[0]

    plain = again()
    assert "cell_batch" not in plain.graph
    known = {"batch_column": "batch", "correct_batches": False}
    found = again(**known)
    assert torch.equal(found.graph["cell_batch"], recording.graph["cell_batch"])
    assert found.graph["cell_batch"].unique().tolist() == [0, 1, 2]
    assert torch.equal(found.state, plain.state)
    assert not torch.equal(again(batch_column="batch").state, plain.state)
    assert CellCounts(found, {}, test_fraction=0.2).spec.n_batch == 3
    few = again(**known, max_genes=4)
    columns = [found.names.index(name) for name in few.names]
    assert len(columns) == 4
    assert torch.equal(few.graph["counts"], found.graph["counts"][:, columns])
    with pytest.raises(ConfigError, match="correct_batches=false"):
        again(batch_column="batch", control_label=None)
    with pytest.raises(ConfigError, match="has_control"):
        counted_screen({"has_control": False}, correct_batches=True)


def test_the_truth_of_counted_cells_has_the_conditions_of_the_recording():
    simulator = counted_screen({"n_medium": 1})
    recording, truth = simulator.simulate(2)
    names = recording.provenance["conditions"]
    clean, its_truth = simulator.screen.simulate(2)
    order = [clean.provenance["conditions"].index(name) for name in names]
    assert order != sorted(order)
    for name in ("state", "attractor", "added"):
        assert torch.equal(truth.parameters[name], its_truth.parameters[name][order]), name
    in_medium = recording.inputs["medium"][:, 0, 0] > 0
    assert torch.equal(truth.parameters["added"].any(1), in_medium)
    assert truth.facts["state_unit"] == "expression units" != recording.units["state"]


def test_the_same_seed_gives_the_same_cells():
    simulator = counted_screen()
    a, b, c = (simulator.simulate(seed)[0].graph["cells"] for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_batches_are_shifted_onto_each_other_by_their_unperturbed_cells():
    raw, _ = counted_screen(measurement=replace(PLAIN, depth=5000.0, batch_spread=0.8)).simulate(0)
    mended, _ = counted_screen(
        measurement=replace(PLAIN, depth=5000.0, batch_spread=0.8), correct_batches=True
    ).simulate(0)
    shrunk = mended.inputs["variance"].mean() / raw.inputs["variance"].mean()
    assert shrunk < 0.5
    values = np.ones((4, 1))
    with pytest.raises(DataError, match=r"batch 'b'.*no unperturbed cell"):
        shifted_batches(
            values, np.array(["a", "a", "b", "b"]), np.zeros(4),
            np.array([True, False, False, False]), "lane",
        )  # fmt: skip


def test_media_are_conditions_of_their_own_and_half_of_them_is_held_out():
    simulator = HillScreen(**{**SCREEN, "n_medium": 2, "noise": 0.01, "n_replicate": 2})
    recording, truth = simulator.simulate(5)
    names = recording.provenance["conditions"]
    assert "control in M1" in names and "control in M2" in names
    assert len(names) == (4 + 1) * (2 + 1)
    held = [name for name, flag in zip(names, recording.is_test, strict=True) if flag]
    assert len(held) == 4 and all(" in M" in name for name in held)
    shifted = names.index("control in M1")
    usual = names.index("control")
    moved = truth.parameters["attractor"][shifted] - truth.parameters["attractor"][usual]
    assert moved.abs().max() > 0.1
    data = ScreenData(recording, {}, weighting="uniform", start="measured", gate_margin=0.1)
    assert data.spec.n_medium == 2 and data.everything().is_control.sum() == 1
    found, _ = counted_screen({"n_medium": 1}).simulate(2)
    assert found.provenance["n_control"] == 2
    assert found.inputs["medium"].sum() == 2 * (4 + 1)


def test_halves_are_independent_and_average_to_the_state():
    many = HillScreen(**{**SCREEN, "noise": 0.2, "n_replicate": 4}).simulate(1)
    recording, truth = many
    halves = recording.inputs["halves"][:, 1:]
    torch.testing.assert_close(halves.mean(2), recording.state[:, 1:])
    relative = halves / truth.parameters["state"][:, 1:, None].clamp_min(1e-9) - 1
    a, b = relative.unbind(2)
    seen = truth.parameters["state"][:, 1:] > 1e-6
    assert float(torch.corrcoef(torch.stack([a[seen], b[seen]]))[0, 1]) == pytest.approx(0, abs=0.3)
    assert float(a[seen].std()) == pytest.approx(0.2 / 2**0.5, rel=0.3)


def test_a_counted_bulk_screen_is_in_expression_units():
    how = replace(PLAIN, depth=2e6, reference=5.0, dispersion=1e-4)
    recording, truth = HillScreen(**{**SCREEN, "n_replicate": 3, "measurement": how}).simulate(2)
    seen = truth.parameters["state"] > 0.05
    seen[:, 0] = False
    relative = (recording.state / truth.parameters["state"])[seen]
    assert relative.sub(1).abs().max() < 0.1
    data = ScreenData(
        recording, {}, weighting="uniform", start="measured", gate_margin=0.1
    ).everything()
    assert data.count is not None and data.exposure is not None
    torch.testing.assert_close((data.count / data.exposure).mean(2), data.target)


def test_a_screen_of_which_a_condition_does_not_settle_is_drawn_again(monkeypatch):
    from neuralgraph.core.errors import SolverError
    from neuralgraph.systems.perturb_ode import hill

    simulator = HillScreen(**{**SCREEN, "n_test_double": 2})
    first, _ = simulator.simulate(3)
    assert first.provenance["redrawn"] == 0
    real, calls = hill.HillNetwork.attractor, []

    def once(self, start, production, regulation, added=0.0):
        if bool((production == 0).sum(1).max() == 2) and not calls:
            calls.append(1)
            raise SolverError("the network has not settled after 1,000 days")
        return real(self, start, production, regulation, added)

    monkeypatch.setattr(hill.HillNetwork, "attractor", once)
    second, _ = simulator.simulate(3)
    assert second.provenance["redrawn"] >= 1
