"""Folds: what a loop sees, what the judge sees, and that the two stay apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuralgraph.core.errors import ConfigError, DataError, MissingDataError


def log1p_of(recording, target_sum=1e4):
    counts = recording.state[:, 0].double()
    return (counts / counts.sum(1, keepdim=True) * target_sum).log1p()


def cells_of(recording, name):
    row = recording.provenance["conditions"].index(name)
    return (recording.graph["condition"] == row).nonzero()[:, 0]


def test_deltas_are_differences_of_means_of_log_expression(simulated, cut):
    recording, _, _ = simulated(n_batch=1)
    data = cut(recording)
    values, fold = log1p_of(recording), data.folds[0]
    control = cells_of(recording, "control")
    name = fold.test.names[0]
    mean = values[cells_of(recording, name)].mean(0)
    shared = mean - values[control].mean(0)
    torch.testing.assert_close(fold.test.delta_shared[0], shared, atol=1e-6, rtol=0)
    truth = values[fold.control_rows["truth"]].mean(0)
    torch.testing.assert_close(fold.test.delta_disjoint[0], mean - truth, atol=1e-6, rtol=0)
    prediction = values[fold.control_rows["prediction"]].mean(0)
    row = fold.train.index(fold.train.names[3])
    own = cells_of(recording, fold.train.names[3])
    expected = values[own].mean(0) - prediction
    torch.testing.assert_close(fold.train.delta[row], expected, atol=1e-6, rtol=0)
    variance = values[own].var(0) / len(own)
    torch.testing.assert_close(fold.train.variance[row], variance, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(fold.train.cells(row).double(), values[own], atol=1e-5, rtol=0)
    assert fold.train.n_cell[row] == len(own)


def test_halves_of_the_controls_are_disjoint_complete_and_repeat_by_seed(simulated, cut):
    recording, _, _ = simulated()
    fold = cut(recording).folds[0]
    rows = fold.control_rows
    both = torch.cat([rows["prediction"], rows["truth"]]).sort().values
    assert torch.equal(both, cells_of(recording, "control"))
    again, other = cut(recording).folds[0], cut(recording, seed_of_split=1).folds[0]
    assert torch.equal(rows["truth"], again.control_rows["truth"])
    assert not torch.equal(rows["truth"], other.control_rows["truth"])
    n = {half: fold.control_cells(half).shape[0] for half in ("prediction", "truth", "all")}
    assert n["all"] == 40 == n["prediction"] + n["truth"]
    assert fold.control_cells("truth", context=0).shape == (n["truth"], 60)


def test_repeats_cut_the_controls_anew_and_the_ceiling_uses_disjoint_cells(simulated, cut):
    recording, _, _ = simulated(n_batch=1)
    fold = cut(recording, n_control_split=3).folds[0]
    assert fold.train.control.shape == fold.train.deltas().shape == (3, fold.train.n_condition, 60)
    assert not torch.equal(fold.train.control[0], fold.train.control[1])
    torch.testing.assert_close(fold.test.deltas_disjoint()[0], fold.test.delta_disjoint)
    # with an even number of cells the two halves average to the whole
    middle = (fold.test.half_a_shared + fold.test.half_b_shared) / 2
    expected = fold.test.delta_shared.expand_as(middle)
    torch.testing.assert_close(middle, expected, atol=1e-9, rtol=0)
    assert not torch.equal(fold.test.half_a, fold.test.half_b)


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(["combination", "unseen_perturbation"]),
    st.integers(0, 3),
    st.sampled_from([None, 25]),
    st.sampled_from(["identity", "correlation"]),
)
def test_held_out_cells_reach_no_training_tensor(simulated, cut, rule, seed, n_top, graph):
    recording, _, _ = simulated(n_cell_type=1)
    how = {
        "split": rule,
        "fold": 0,
        "seed_of_split": seed,
        "n_top_genes": n_top,
        "graph": graph,
        "graph_threshold": 0.2,
        "validation_fraction": 0.2,
        "min_cells_per_gene": 5,
    }
    before = cut(recording, **how)
    (fold,) = before.folds
    hidden = torch.cat([*fold.test.rows, fold.control_rows["truth"]])
    state = recording.state.clone()
    noise = torch.randint(0, 90, state[hidden].shape, generator=torch.Generator().manual_seed(seed))
    state[hidden] = noise.float()
    after = cut(replace(recording, state=state), **how)
    (other,) = after.folds
    assert torch.equal(fold.genes, other.genes)
    assert torch.equal(before.spec.graph.edge_index, after.spec.graph.edge_index)
    for name in ("control_mean", "gene_std"):
        assert torch.equal(getattr(fold, name), getattr(other, name)), name
    for mine, its in ((fold.train, other.train), (fold.validation, other.validation)):
        for name in ("multi_hot", "context", "n_cell", "mean", "variance", "delta"):
            assert torch.equal(getattr(mine, name), getattr(its, name)), name
    assert not torch.equal(fold.test.mean, other.test.mean)


def test_validation_cells_reach_no_training_tensor(simulated, cut):
    recording, _, _ = simulated()
    how = {"fold": 0, "validation_fraction": 0.3, "n_top_genes": 25}
    data = cut(recording, **how)
    state = recording.state.clone()
    state[torch.cat(data.folds[0].validation.rows)] *= 3
    other = cut(replace(recording, state=state), **how)
    assert torch.equal(data.folds[0].genes, other.folds[0].genes)
    assert torch.equal(data.folds[0].train.delta_shared, other.folds[0].train.delta_shared)


def test_items_are_the_training_conditions_of_every_fold(simulated, cut):
    recording, _, given = simulated()
    data = cut(recording, given, graph="simulator", n_fold=3, validation_fraction=0.2)
    everything = data.batch(data.starts(1))
    assert everything.fold.bincount().tolist() == [f.train.n_condition for f in data.folds]
    second = everything.multi_hot[everything.fold == 1]
    assert torch.equal(second, data.folds[1].train.multi_hot)
    few = data.batch(torch.tensor([0, 5]))
    assert torch.equal(few.multi_hot, everything.multi_hot[[0, 5]])
    assert data.validation().fold.unique().tolist() == [0, 1, 2]
    assert cut(recording).validation() is None
    spec = data.spec
    assert (spec.n_fold, spec.n_gene, spec.n_perturbation, spec.n_node) == (3, 60, 10, 60)
    names = [spec.graph.names[i] for i in spec.perturbation_node]
    assert tuple(names) == spec.perturbations
    second = data.folds[1]
    assert [spec.graph.names[i] for i in second.gene_node] == list(second.gene_names)


def test_multi_hot_names_the_genes_and_unknown_ones_their_nearest(simulated, cut):
    recording, _, _ = simulated()
    data = cut(recording)
    fold = data.folds[0]
    for name, row in zip(fold.test.names, fold.test.multi_hot, strict=True):
        genes = [data.perturbations[i] for i in row.nonzero()[:, 0]]
        assert "+".join(genes) == name
        assert torch.equal(data.spec.multi_hot(name)[0], row)
    with pytest.raises(DataError, match="'G999' is not perturbed"):
        data.spec.multi_hot("G999")
    first = data.perturbations[0]
    with pytest.raises(DataError, match=f"names '{first}' twice"):
        data.spec.multi_hot(f"{first}+ {first}")
    with pytest.raises(DataError, match="no condition is called"):
        fold.test.index("G999")


def test_a_copy_in_another_type_is_whole_and_leaves_the_cells_alone(simulated, cut):
    recording, _, _ = simulated()
    data = cut(recording, validation_fraction=0.2)
    single = data.astype(torch.float32).to("cpu")
    assert single.batch(single.starts(1)).multi_hot.dtype == torch.float32
    assert single.folds[0].test.half_a.dtype == single.spec.control_mean.dtype == torch.float32
    assert data.folds[0].test.half_a.dtype == torch.float64
    assert single.folds[1].matrix is data.folds[0].matrix
    assert single.folds[0].test.rows[0].dtype == torch.long
    assert single.folds[0].test.subgroup == data.folds[0].test.subgroup


def test_one_fold_is_that_fold_of_all(simulated, cut):
    recording, _, _ = simulated()
    every, one = cut(recording, n_fold=3), cut(recording, n_fold=3, fold=2)
    assert len(one.folds) == 1 and one.folds[0].test.names == every.folds[2].test.names
    assert torch.equal(one.folds[0].train.delta, every.folds[2].train.delta)
    with pytest.raises(ConfigError, match=r"dataset\.fold must be between 0 and 2"):
        cut(recording, n_fold=3, fold=3)


def test_cell_types_are_conditions_of_their_own_and_can_be_held_out(simulated, cut):
    recording, _, _ = simulated(n_cell_type=3)
    data = cut(recording, split="unseen_cell_type", n_fold=None)
    assert [f.test.context.unique().tolist() for f in data.folds] == [[0], [1], [2]]
    assert all(f.test.n_condition == 24 and f.train.n_condition == 48 for f in data.folds)
    fold = data.folds[1]
    values, control = log1p_of(recording), cells_of(recording, "control")
    of_type = control[recording.graph["cell_type"][control] == 1]
    own = fold.test.rows[0]
    expected = values[own].mean(0) - values[of_type].mean(0)
    torch.testing.assert_close(fold.test.delta_shared[0], expected, atol=1e-6, rtol=0)
    assert fold.control_mean.shape == (3, 60)


def test_controls_of_the_batch_take_out_a_shift_between_batches(make_cells, read, cut):
    cells = make_cells()
    in_b = (cells.obs["lane"] == "b").to_numpy()
    cells.X[in_b, 0] += 40
    lopsided = ~(in_b & (cells.obs["perturbation"] == "G0").to_numpy())
    drop = np.flatnonzero(in_b & (cells.obs["perturbation"] == "G0").to_numpy())[2:]
    keep = np.setdiff1d(np.arange(cells.n_obs), drop)
    assert lopsided.any()
    recording = read(cells[keep].copy(), batch_column="lane")
    shift = {}
    for reference in ("cell_type", "batch", "global"):
        fold = cut(recording, reference=reference).folds[0]
        shift[reference] = float(fold.train.delta_shared[fold.train.index("G0"), 0])
    assert abs(shift["batch"]) < 0.4 < -shift["cell_type"]
    assert shift["global"] == pytest.approx(shift["cell_type"])


def test_a_batch_without_controls_is_named(make_cells, read, cut):
    cells = make_cells()
    gone = (cells.obs["lane"] == "b") & (cells.obs["perturbation"] == "control")
    recording = read(cells[~gone.to_numpy()].copy(), batch_column="lane")
    with pytest.raises(DataError, match=r"batch 'b' .*has 0 control.*dataset\.reference=cell_type"):
        cut(recording, reference="batch")
    assert cut(recording).folds


def test_a_cell_type_without_controls_is_named(make_cells, read, cut):
    cells = make_cells()
    gone = (cells.obs["type"] == "y") & (cells.obs["perturbation"] == "control")
    recording = read(cells[~gone.to_numpy()].copy(), cell_type_column="type")
    with pytest.raises(DataError, match="cell type 'y' has 0 control"):
        cut(recording)


def test_perturbed_genes_need_not_be_measured(make_cells, read, cut):
    data = cut(read(make_cells()))
    assert "T9" in data.perturbations and "T9" not in data.gene_names
    assert data.spec.graph.names[-1] == "T9" and data.spec.n_node == 13


def test_a_perturbation_no_graph_knows_is_an_error_unless_accepted(make_cells, read, cut, tmp_path):
    recording = read(make_cells())
    path = tmp_path / "links.txt"
    path.write_text("protein1 protein2 combined_score\nG0 G1 900\nG1 G2 800\nT8 G1 900\n")
    how = {"graph": "string", "graph_path": str(path), "graph_threshold": 700.0}
    with pytest.raises(
        DataError, match=r"1 of 4 perturbed genes have no edge.*'T9'.*allow_isolated"
    ):
        cut(recording, **how, allow_isolated=False)
    assert cut(recording, **how).isolated == ("T9",)
    assert cut(recording, allow_isolated=False).graph.n_edge == 0, "asked for no graph"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"graph": "trrust"}, "graph_path"),
        ({"graph": "string", "graph_path": "x"}, "graph_threshold"),
        ({"graph": "correlation"}, "graph_threshold"),
        ({"n_top_genes": 13}, "n_top_genes=13, but 12 of 12"),
    ],
)
def test_settings_that_lack_something_are_refused(make_cells, read, cut, changed, message):
    with pytest.raises(ConfigError, match=message):
        cut(read(make_cells()), **changed)


@pytest.mark.parametrize("which", ["graph_path", "graph_names_path"])
def test_a_missing_graph_file_is_an_error(make_cells, read, cut, tmp_path, which):
    present = tmp_path / "links.txt"
    present.write_text("protein1 protein2 combined_score\nG0 G1 900\n")
    how = {"graph_path": str(present), "graph_names_path": str(present), which: "absent.txt"}
    with pytest.raises(MissingDataError, match=r"absent\.txt"):
        cut(read(make_cells()), graph="string", graph_threshold=700.0, **how)


def test_folds_have_equally_many_genes_where_one_is_expressed_in_some_only(make_cells, read, cut):
    cells = make_cells()
    cells.X[:, 4] = 0
    cells.X[40:48, 4] = 3  # in G1 alone
    how = {"split": "leave_one_out", "n_fold": None, "min_cells_per_gene": 5}
    data = cut(read(cells), **how)
    assert {fold.genes.numel() for fold in data.folds} == {11}
    held = next(f for f in data.folds if f.test.names == ("G1",))
    assert 4 not in held.genes
    assert 4 in cut(read(cells), **{**how, "fold": 0}).folds[0].genes


def test_a_recording_of_something_else_is_refused(cut, simulated):
    recording, _, _ = simulated()
    with pytest.raises(DataError, match=r"no perturbation screen .it lacks condition,"):
        cut(replace(recording, graph={}))


def test_a_simulators_graph_must_be_revealed(make_cells, read, cut):
    with pytest.raises(DataError, match=r"prior\.graph=true"):
        cut(read(make_cells()), graph="simulator")


def test_singles_alone_can_be_asked_for(simulated, cut):
    recording, _, _ = simulated()
    data = cut(recording, split="leave_one_out", n_fold=None, max_order=1)
    assert len(data.folds) == 10 and all("+" not in n for f in data.folds for n in f.train.names)


def test_variable_genes_are_those_of_scanpy_on_the_training_cells(simulated, cut):
    import anndata
    import scanpy

    recording, _, _ = simulated()
    fold = cut(recording, n_top_genes=20, fold=0).folds[0]
    rows = torch.cat([*fold.train.rows, fold.control_rows["prediction"]])
    cells = anndata.AnnData(recording.state[rows, 0].numpy())
    scanpy.pp.normalize_total(cells, target_sum=1e4)
    scanpy.pp.log1p(cells)
    scanpy.pp.highly_variable_genes(cells, n_top_genes=20, flavor="seurat")
    assert cells.var["highly_variable"].to_numpy().nonzero()[0].tolist() == fold.genes.tolist()
    assert fold.train.delta.shape[1] == 20


def test_the_same_recording_after_saving_gives_the_same_folds(simulated, cut, tmp_path):
    from neuralgraph.core.recording import Recording

    recording, _, _ = simulated()
    recording.save(tmp_path / "r.pt")
    a, b = cut(recording), cut(Recording.load(tmp_path / "r.pt"))
    assert torch.equal(a.folds[0].train.delta, b.folds[0].train.delta)


def test_weights_that_differ_within_a_label_are_refused(make_cells, read, cut, tmp_path):
    cells = make_cells(("control", "k1", "k2", "k3"))
    path = tmp_path / "map.json"
    path.write_text('{"k1": {"G0": 1, "G3": 3}, "k2": "G1", "k3": "G2"}')
    with pytest.raises(DataError, match=r"'k1' have different weights \(G0 0\.25, G3 0\.75\)"):
        cut(read(cells, target_map=str(path)), n_fold=1)
    path.write_text('{"k1": {"G0": 2, "G3": 2}, "k2": "G1", "k3": "G2"}')
    data = cut(read(cells, target_map=str(path)), n_fold=1)
    assert data.folds[0].test.multi_hot.tolist() == [[1.0, 0.0, 0.0, 1.0]]


def test_every_cut_has_its_own_prediction_half(simulated, cut):
    fold = cut(simulated()[0], n_control_split=3).folds[0]
    assert torch.equal(fold.prediction_cells(0), fold.control_cells("prediction"))
    rows = fold.prediction_rows.sort(1).values
    assert rows.shape == (3, len(fold.control_rows["prediction"]))
    assert not torch.equal(rows[0], rows[1])
    means = torch.stack([fold.prediction_cells(cut).double().mean(0) for cut in range(3)])
    torch.testing.assert_close(means, fold.train.control[:, 0], atol=1e-6, rtol=0)
