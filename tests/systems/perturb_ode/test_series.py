"""A measured time series: reading it, the closed forms on it, and what a fold may see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, DataError, MissingDataError
from neuralgraph.systems.perturb_ode.folds import FoldedSeries
from neuralgraph.systems.perturb_ode.recorded import KnockoutSeries
from neuralgraph.systems.perturb_ode.reference import (
    Series,
    Shrunk,
    kernel_field,
    median_path,
    nested,
    persistence,
)
from neuralgraph.systems.perturb_ode.series_evaluation import bootstrap_interval, sign_flip

READ = {
    "perturbation_column": "ko",
    "time_column": "t",
    "control_label": None,
    "gene_column": None,
    "min_cells": 5,
    "max_genes": None,
    "unmeasured_targets": "refuse",
    "medium_column": None,
    "medium_label": None,
    "batch_column": None,
    "correct_batches": True,
    "edges_path": "trrust/trrust_human.tsv",
    "keep_cells": False,
}


@pytest.fixture
def cells(tmp_path):
    """Four knock-outs on three days; G0 and G1 answer alike."""
    import anndata
    import pandas as pd

    rng = np.random.default_rng(0)
    rows, kos, days = [], [], []
    effect = {"G0": (1, 1, 0, 0), "G1": (1, 0.8, 0, 0), "G2": (0, 0, 1, 0), "G3": (0, 0, -1, 0.5)}
    for ko, direction in effect.items():
        for day in (2, 3, 4):
            mean = 2 + 0.1 * day + 0.3 * (day - 1) * np.array([*direction, 0, 0])
            rows.append(np.clip(mean + 0.4 * rng.standard_normal((30, 6)), 0, None))
            kos += [ko] * 30
            days += [day] * 30
    table = anndata.AnnData(
        np.concatenate(rows).astype(np.float32),
        obs=pd.DataFrame({"ko": kos, "t": days}, index=[f"c{i}" for i in range(len(kos))]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(6)]),
    )
    path = tmp_path / "cells.h5ad"
    table.write_h5ad(path)
    return path, table


def read(path, **changed):
    return KnockoutSeries(path=str(path), **{**READ, **changed}).simulate(0)[0]


def series_of(recording) -> Series:
    return Series(
        recording.state,
        recording.inputs["covariance"],
        recording.inputs["n_cell"],
        1 - recording.graph["target"],
    )


def test_means_variances_and_targets_are_those_of_the_cells(cells):
    path, table = cells
    recording = read(path)
    assert recording.state.shape == (4, 3, 6) and recording.time[0].tolist() == [2, 3, 4]
    chosen = table.X[(table.obs["ko"] == "G2") & (table.obs["t"] == 3)].astype(float)
    np.testing.assert_allclose(recording.state[2, 1], chosen.mean(0))
    np.testing.assert_allclose(recording.inputs["variance"][2, 1], chosen.var(0, ddof=1) / 30)
    assert recording.graph["target"].argmax(1).tolist() == [0, 1, 2, 3]


def test_the_local_field_uses_a_neighbour_and_persists_without_one(cells):
    series = series_of(read(cells[0]))
    with_partner = Shrunk(series, [1, 2, 3], path="median", n_component=3)
    grown = kernel_field(with_partner, 0, ridge=0.1, power=2.0)
    still = persistence(with_partner, 0)
    assert series.error(grown, 0) < series.error(still, 0)
    # a direction in which no training condition ever points
    lonely = Shrunk(series, [1, 2, 3], path="median", n_component=3)
    lonely.score[:, :, 2] = 0
    lonely.score[0, 0] = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        kernel_field(lonely, 0, ridge=0.1, power=2.0), persistence(lonely, 0).expand(2, -1)
    )


def test_a_deviation_without_signal_is_shrunk_to_nothing(cells):
    series = series_of(read(cells[0]))
    noisy = Series(series.mean, series.covariance * 1e6, series.n_cell, series.measured)
    flat = Shrunk(noisy, [1, 2, 3], path="mean", n_component=2)
    assert flat.score.abs().max() == 0
    kept = Shrunk(series, [1, 2, 3], path="mean", n_component=2)
    raw = (series.mean - kept.path) @ kept.basis
    assert (kept.score.abs() <= raw.abs() + 1e-12).all() and kept.score.abs().max() > 0.1


def test_the_median_path_ignores_one_large_response():
    paths = torch.zeros(7, 2, 3, dtype=torch.float64)
    paths[:6] = 0.01 * torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    paths[6] = 10.0
    assert median_path(paths).abs().max() < 0.02 < paths.mean(0).abs().min()


def test_nothing_of_a_held_out_condition_but_its_first_day_enters_its_prediction(cells):
    series = series_of(read(cells[0]))
    mean, covariance = series.mean.clone(), series.covariance.clone()
    mean[2, 1:] += 3.0
    covariance[2, 1:] *= 4.0
    other = Series(mean, covariance, series.n_cell, series.measured)
    grid = {"path": ["median"], "n_component": [2, 3], "ridge": [0.1, 1.0], "power": [2.0]}
    for family, its in (("kernel_field", grid), ("persistence", dict(list(grid.items())[:2]))):
        a, b = (nested(one, family, its, range(4))[2] for one in (series, other))
        torch.testing.assert_close(a.prediction, b.prediction)
        assert a.settings == b.settings


def test_folds_hold_out_one_and_two_and_see_nothing_of_them(cells):
    recording = read(cells[0])
    data = FoldedSeries(
        recording, {}, n_component=3, intervention="nuclease", has_inner=True, gate_margin=0.1
    )
    assert len(data.left_out) == 4 + 6 and sum(data.spec.is_inner) == 6
    fold = data.left_out.index((1, 3))
    assert data.everything().is_train[fold].tolist() == [True, False, True, False]
    from dataclasses import replace

    changed = recording.state.clone()
    changed[1] += 1.0
    without = [i for i, rows in enumerate(data.left_out) if 1 in rows]
    moved = FoldedSeries(
        replace(recording, state=changed),
        {},
        n_component=3,
        intervention="nuclease",
        has_inner=True,
        gate_margin=0.1,
    )
    torch.testing.assert_close(moved.everything().decoder[fold], data.everything().decoder[fold])
    torch.testing.assert_close(
        moved.everything().encoded[fold, [0, 2]], data.everything().encoded[fold, [0, 2]]
    )
    for i in without:
        assert moved.spec.state_scale[i] == pytest.approx(data.spec.state_scale[i])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"perturbation_column": "KO"}, "no column 'KO'.*columns: ko, t.*perturbation_column=NAME"),
        (
            {"time_column": "tim", "batch_column": "lane", "control_label": "G0"},
            "'tim'.*'lane'.*columns: ko, t.*time_column=NAME and simulator.batch_column=NAME",
        ),
        ({"time_column": "ko"}, "days as numbers"),
        ({"control_label": "ntc"}, "no cell is labelled 'ntc'"),
        ({"gene_column": "symbol"}, r"var of .*no column 'symbol' .*gene_column=NAME"),
        ({"min_cells": 31}, r"'G0' has 30 cells on day 2, .*\(12 in all\), at least 31 are needed"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(cells, changed, message):
    with pytest.raises(DataError, match=message):
        read(cells[0], **changed)


def test_a_single_day_and_unknown_genes_are_refused(cells, tmp_path):
    _, table = cells
    one = table[table.obs["t"] == 2].copy()
    one.write_h5ad(tmp_path / "one.h5ad")
    with pytest.raises(DataError, match="day 2 alone"):
        read(tmp_path / "one.h5ad")
    other = table.copy()
    other.var_names = [f"ENSG{i}" for i in range(6)]
    other.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(DataError, match="none of the perturbed genes"):
        read(tmp_path / "other.h5ad", control_label="G3")
    gaps = table.copy()
    gaps.obs["ko"] = gaps.obs["ko"].astype(object).where(gaps.obs["t"] < 4)
    gaps.write_h5ad(tmp_path / "gaps.h5ad")
    with pytest.raises(DataError, match="120 cells have no label"):
        read(tmp_path / "gaps.h5ad")


def test_a_perturbed_gene_that_is_not_measured_is_refused_or_kept_on_demand(cells, tmp_path):
    _, table = cells
    other = table.copy()
    other.obs["ko"] = other.obs["ko"].astype(str).replace("G3", "NTC")
    other.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(DataError, match=r"perturbs NTC, .*simulator\.control_label"):
        read(tmp_path / "other.h5ad")
    named = read(tmp_path / "other.h5ad", control_label="NTC")
    assert named.provenance["n_control"] == 1
    kept = read(tmp_path / "other.h5ad", unmeasured_targets="keep")
    assert kept.provenance["n_control"] == 0
    assert kept.graph["target"].sum(1).tolist() == [1, 1, 1, 0]
    with pytest.raises(ConfigError, match="unknown unmeasured_targets 'drop'"):
        read(tmp_path / "other.h5ad", unmeasured_targets="drop")


def test_perturbed_genes_are_kept_before_variable_ones(cells, tmp_path):
    _, table = cells
    flat = table.copy()
    flat.X[:, 3] = 1.0
    flat.write_h5ad(tmp_path / "flat.h5ad")
    found = read(tmp_path / "flat.h5ad", max_genes=5)
    assert "G3" in found.names and len(found.names) == 5
    with pytest.raises(ConfigError, match="at least 4"):
        read(tmp_path / "flat.h5ad", max_genes=3)


def test_statistics_over_perturbations():
    better = torch.tensor([-1.0, -2.0, -0.5, -1.5])
    assert sign_flip(better) == 1 / 16
    assert sign_flip(-better) == 1.0
    many = torch.full((23,), -1.0)
    assert 0 < sign_flip(many) < 1e-4
    low, high = bootstrap_interval(better, 4000)
    assert -2 <= low < float(better.mean()) < high <= -0.5


def test_the_closed_forms_reach_the_measured_numbers_on_real_knockouts():
    """Numbers of experiments/perturb_ode; target noise and no-change are those of the data."""
    try:
        find_data("renge_hipsc/hipsc.h5ad")
    except MissingDataError as error:
        pytest.skip(str(error))
    recording = read("renge_hipsc/hipsc.h5ad", gene_column="gene", min_cells=20)
    series = series_of(recording)
    rows = range(8)
    assert np.mean([series.noise(h) for h in rows]) == pytest.approx(0.0029, abs=5e-5)
    raw = np.mean([series.error(series.mean[h, :1].expand(3, -1), h) for h in rows])
    assert raw == pytest.approx(0.0226, abs=5e-5)
    baseline = nested(
        series, "persistence", {"path": ["median"], "n_component": [12, 16, 20, 30]}, rows
    )
    errors = [series.error(baseline[h].prediction, h) for h in rows]
    assert np.mean(errors) < 0.0140
    grid = {"path": ["median"], "n_component": [16], "ridge": [0.1, 0.3, 1.0, 3.0], "power": [2.0]}
    field = nested(series, "kernel_field", grid, rows)
    better = [series.error(field[h].prediction, h) for h in rows]
    assert np.mean(better) < 0.0128
    assert sum(a < b for a, b in zip(better, errors, strict=True)) >= 6


def test_a_series_in_genes_takes_interventions_and_a_published_graph(cells, tmp_path):
    from neuralgraph.systems.perturb_ode.prior_graph import prior_edges

    table = tmp_path / "edges.tsv"
    table.write_text("G0\tG3\tActivation\t1\nG5\tG5\tUnknown\t2\nX\tG1\tRepression\t3\n")
    recording = read(cells[0])
    edges = prior_edges(str(table), recording.names)
    assert edges.nonzero().tolist() == [[3, 0]]
    knobs = {"n_component": None, "has_inner": False, "gate_margin": 0.1}
    data = FoldedSeries(recording, {"is_edge": edges}, intervention="nuclease", **knobs)
    batch = data.everything()
    assert data.spec.n_state == 6 and data.spec.has_interventions and data.spec.is_edge is edges
    assert (batch.production == 1).all() and batch.regulation[1].tolist() == [1, 0, 1, 1, 1, 1]
    torch.testing.assert_close(batch.start[2], recording.state[:, 0])
    other = FoldedSeries(recording, {}, intervention="knockout", **knobs).everything()
    assert other.production[1].tolist() == [1, 0, 1, 1, 1, 1] and (other.regulation == 1).all()
    table.write_text("A\tB\tActivation\t1\n")
    with pytest.raises(DataError, match="no edge between the 6 measured genes"):
        prior_edges(str(table), recording.names)


def test_the_neural_twin_reads_nothing_of_a_held_out_condition_but_its_first_day(cells):
    from neuralgraph.systems.perturb_ode.directional import DirectionalNetwork

    twin = DirectionalNetwork(
        path="median", n_component=[2, 3], n_hidden=[4, 8], n_seed=2, n_epochs=20,
        learning_rate=[0.02], weight_decay=0.0, every=10,
    )  # fmt: skip
    series = series_of(read(cells[0]))
    mean = series.mean.clone()
    mean[2, 1:] += 3.0
    other = Series(mean, series.covariance, series.n_cell, series.measured)
    a, b = (twin.nested(one, range(4)) for one in (series, other))
    torch.testing.assert_close(a[2].prediction, b[2].prediction)
    assert a[2].settings == b[2].settings
    assert not torch.allclose(a[0].prediction, b[0].prediction)
