"""An autoencoder whose decoder is the measurement operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuralgraph.core.errors import DataError
from neuralgraph.core.recording import Recording
from neuralgraph.systems.perturb_ode.measurement import Measurement
from neuralgraph.systems.perturb_ode.vae import (
    BoundObjective,
    CellCounts,
    ConditionMeans,
    CountEvaluator,
    CountVAE,
)
from neuralgraph.training.loops import fit
from neuralgraph.training.session import Session

N_GENE, N_CELL = 8, 600
FACTOR = 0.6
PHI = 0.15


def recording(n_batch: int = 2, seed: int = 0, **changed) -> Recording:
    """Cells of one program that is up or down, in batches that shift genes."""
    rng = np.random.default_rng(seed)
    how = Measurement(
        depth=400.0, depth_spread=0.3, batch_spread=FACTOR, batch_condition_spread=0.0,
        dispersion=0.05, dropout="none", dropout_rate=0.0, dropout_steepness=1.0,
        dropout_percentile=65.0, reference=0.0,
    )  # fmt: skip
    condition = np.arange(N_CELL) % 2
    batch = (np.arange(N_CELL) // 2) % n_batch
    program = rng.standard_normal((N_CELL, 1)) + 1.0 * condition[:, None]
    x = np.exp(program * np.array([[1, 1, 1, -1, -1, -1, 0, 0]]) * 0.6)
    counted = how(x, batch, condition, np.random.default_rng(seed + 1))
    graph = {
        "counts": torch.from_numpy(counted.count).double(),
        "cell_condition": torch.from_numpy(condition),
        "cell_batch": torch.from_numpy(batch),
        **changed,
    }
    state = torch.zeros(2, 2, N_GENE, dtype=torch.float64)
    return Recording(
        time=torch.tensor([[0.0, 1.0]] * 2), state=state, names=tuple("abcdefgh"), graph=graph,
        provenance={"conditions": ["control", "a"]},
    )  # fmt: skip


def judged(model: CountVAE, data: CellCounts) -> dict[str, float]:
    judge = CountEvaluator(every=0, primary_metric="test_bound", direction="minimize", n_steps=100)
    return dict(judge(model, data, None, log={"final_loss": 0.0}).metrics)


def model_of(data: CellCounts, **changed) -> CountVAE:
    knobs = {"n_latent": 2, "n_hidden": 16, "has_dropout": False, **changed}
    return CountVAE(data.spec, generator=torch.Generator().manual_seed(0), **knobs).double()


def test_the_decoder_is_the_measurement_operator():
    data = CellCounts(recording(), {}, test_fraction=0.0)
    model = model_of(data)
    batch = data.rows(torch.arange(6))
    with torch.no_grad():
        model.log_factor[1] = torch.randn(N_GENE, generator=torch.Generator().manual_seed(1))
        x = model.abundance(torch.randn(6, 2).double())
        found = model.measured(x, batch)
        r = model.factors()[batch.batch]
    torch.testing.assert_close(x.sum(1), torch.ones(6).double())
    torch.testing.assert_close(found, batch.depth * r * x / (r * x).sum(1, keepdim=True))
    assert (model.factors()[0] == 1).all()


@pytest.mark.parametrize("has_dropout", [False, True])
def test_the_likelihood_sums_to_one(has_dropout):
    data = CellCounts(recording(), {}, test_fraction=0.0)
    model = model_of(data, has_dropout=has_dropout)
    count = torch.arange(0.0, 400.0).double()[:, None].expand(-1, N_GENE)
    with torch.no_grad():
        each = torch.stack(
            [
                model_of(data, has_dropout=has_dropout).log_likelihood(
                    torch.cat([one[:1], torch.zeros(N_GENE - 1).double()])[None],
                    torch.tensor([[12.0] + [1e-12] * (N_GENE - 1)]).double(),
                )
                for one in count
            ]
        )
        rest = model.log_likelihood(
            torch.zeros(1, N_GENE).double(), torch.full((1, N_GENE), 1e-12).double()
        )
    assert float(each.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(rest) == pytest.approx(0.0, abs=1e-6)


def test_training_describes_unseen_cells_and_finds_the_batches():
    data = CellCounts(recording(), {}, test_fraction=0.2)
    model = model_of(data)
    session = Session(model, data, BoundObjective(), seed=0)
    fit(session, n_epochs=25, learning_rate=2e-2, batch_size=120, clip_norm=5.0)
    scores = judged(model, data)
    assert scores["test_bound"] < scores["test_bound_no_latent"] - 0.05
    found = model.factors()[1].log().detach()
    batch = data.rows(torch.arange(N_CELL))
    share = (batch.count / batch.depth).clamp_min(1e-4)
    expected = share[batch.batch == 1].mean(0).log() - share[batch.batch == 0].mean(0).log()
    found, expected = found - found.mean(), expected - expected.mean()
    assert float(torch.corrcoef(torch.stack([found, expected]))[0, 1]) > 0.95
    means = model.encode(batch)[0].detach()
    apart = means[batch.condition == 1].mean(0) - means[batch.condition == 0].mean(0)
    assert float(apart.norm()) > 0.2


def of_two_abundances(has_dropout: bool = False) -> tuple[CellCounts, torch.Tensor]:
    """Cells of one abundance for each condition, in two batches, and their λ."""
    rng = np.random.default_rng(3)
    condition, batch = np.arange(4000) % 2, (np.arange(4000) // 2) % 2
    x = np.exp(rng.standard_normal((2, N_GENE)))
    r = np.exp(0.8 * rng.standard_normal((2, N_GENE)) * np.array([[0.0], [1.0]]))
    present = r[batch] * x[condition]
    expected = 200.0 * present / present.sum(1, keepdims=True)
    counts = rng.poisson(expected * rng.gamma(1 / PHI, PHI, expected.shape)).astype(float)
    if has_dropout:
        counts *= rng.random(expected.shape) < 1 / (1 + np.exp(-1.5 * (np.log1p(expected) - 2)))
        counts[counts.sum(1) == 0, 0] = 1
    found = recording(
        counts=torch.from_numpy(counts), cell_condition=torch.from_numpy(condition),
        cell_batch=torch.from_numpy(batch),
    )  # fmt: skip
    return CellCounts(found, {}, test_fraction=0.3), torch.from_numpy(expected)


def test_without_a_latent_cell_the_operator_is_fitted_on_its_own():
    """Where one abundance for each condition is the truth, that bound is the truth's surprise."""
    data, expected = of_two_abundances()
    model = model_of(data)
    found = judged(model, data)["test_bound_no_latent"]
    with torch.no_grad():
        truth = model_of(data)
        truth.log_dispersion.fill_(np.log(PHI))
        test = data.rows(data.test_index)
        of_truth = -truth.log_likelihood(test.count, expected[data.test_index]).mean() / N_GENE
        model.log_dispersion += 3.0  # what stands beside the latent cell has no say
        model.log_factor[1] += torch.arange(N_GENE)
    # a library is the counts of its cell, so that it may be a little better than the truth
    assert float(of_truth) - 0.1 < found < float(of_truth) + 0.01
    assert judged(model, data)["test_bound_no_latent"] == found


def test_without_a_latent_cell_dropout_is_fitted_too():
    data, _ = of_two_abundances(has_dropout=True)
    with_it, without = (
        judged(model_of(data, has_dropout=flag), data)["test_bound_no_latent"]
        for flag in (True, False)
    )
    assert with_it < without - 0.05


def test_a_gene_that_no_training_cell_of_a_condition_shows_is_not_impossible():
    graph = recording().graph
    counts = graph["counts"].clone()
    counts[graph["cell_condition"] == 1, 0] = 0
    data = CellCounts(recording(counts=counts), {}, test_fraction=0.3)
    plain = ConditionMeans(data.spec, has_dropout=False).double()
    plain.fit(data.rows(data.train_index), n_steps=100)
    share = plain.log_mean.detach().softmax(1)[:, 0]
    assert 1e-6 < float(share[1]) < 1e-2 < float(share[0])


def test_what_is_no_count_is_refused():
    bare = recording()
    del bare.graph["counts"]
    with pytest.raises(DataError, match=r"keep_cells=true.*layers\['counts'\]"):
        CellCounts(bare, {}, test_fraction=0.1)
    with pytest.raises(DataError, match=r"whole numbers.*raw counts"):
        CellCounts(recording(counts=torch.full((4, N_GENE), 0.5)), {}, test_fraction=0.1)
    empty = torch.ones(N_CELL, N_GENE)
    empty[3] = 0
    with pytest.raises(DataError, match="without a single count"):
        CellCounts(recording(counts=empty), {}, test_fraction=0.1)
