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
    CountEvaluator,
    CountVAE,
)
from neuralgraph.training.loops import fit
from neuralgraph.training.session import Session

N_GENE, N_CELL = 8, 600
FACTOR = 0.6


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
    judge = CountEvaluator(every=0, primary_metric="test_bound", direction="minimize")
    card = judge(model, data, None, log={"final_loss": 0.0})
    assert card.metrics["test_bound"] < card.metrics["test_bound_no_latent"] - 0.05
    found = model.factors()[1].log().detach()
    batch = data.rows(torch.arange(N_CELL))
    share = (batch.count / batch.depth).clamp_min(1e-4)
    expected = share[batch.batch == 1].mean(0).log() - share[batch.batch == 0].mean(0).log()
    found, expected = found - found.mean(), expected - expected.mean()
    assert float(torch.corrcoef(torch.stack([found, expected]))[0, 1]) > 0.95
    means = model.encode(batch)[0].detach()
    apart = means[batch.condition == 1].mean(0) - means[batch.condition == 0].mean(0)
    assert float(apart.norm()) > 0.2


def test_what_is_no_count_is_refused():
    with pytest.raises(DataError, match="whole numbers"):
        CellCounts(recording(counts=torch.full((4, N_GENE), 0.5)), {}, test_fraction=0.1)
    empty = torch.ones(N_CELL, N_GENE)
    empty[3] = 0
    with pytest.raises(DataError, match="without a single count"):
        CellCounts(recording(counts=empty), {}, test_fraction=0.1)
