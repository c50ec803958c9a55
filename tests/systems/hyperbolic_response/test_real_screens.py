"""Numbers of the real screens that are known from elsewhere; skipped where the files are not."""

from __future__ import annotations

import pytest
import torch
import yaml

from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import MissingDataError
from neuralgraph.systems.hyperbolic_response.recorded import RecordedScreen

NORMAN = "norman19_mcfaline23/norman19_mcfaline23_devel.h5ad"
PAPALEXI = "papalexi21/papalexi21_lowmoi.h5ad"


def screen(stem, path, **changed):
    try:
        find_data(path)
    except MissingDataError as error:
        pytest.skip(str(error))
    with open(f"{CONFIG_FOLDER}/simulator/{stem}.yaml") as file:
        settings = yaml.safe_load(file)
    for key in ("_target_", "seed"):
        settings.pop(key)
    return RecordedScreen(**{**settings, **changed}).simulate(0)[0]


def pearson(a, b):
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def added(train, names, deltas):
    rows = [[train.index(gene) for gene in name.split("+")] for name in names]
    return torch.stack([deltas[..., pair, :].sum(-2) for pair in rows], -2)


def test_additive_effects_of_the_norman_doubles(cut):
    recording = screen("norman19", NORMAN)
    assert recording.n_run == 3375 and recording.provenance["expression"] == "log1p"
    (fold,) = cut(recording, n_fold=1, n_control_split=10).folds
    chosen = [i for i, group in enumerate(fold.test.subgroup) if group == "seen2"]
    names = [fold.test.names[i] for i in chosen]
    assert names == [
        "KLF1+MAP2K6",
        "KLF1+TGFBR2",
        "MAP2K3+MAP2K6",
        "MAP2K3+SLC38A2",
        "MAPK1+TGFBR2",
    ]
    shared = pearson(
        added(fold.train, names, fold.train.delta_shared), fold.test.delta_shared[chosen]
    )
    assert float(shared.mean()) == pytest.approx(0.870, abs=5e-4)
    mean = fold.train.delta_shared.mean(0).expand(5, -1)
    baseline = pearson(mean, fold.test.delta_shared[chosen])
    assert float(baseline.mean()) == pytest.approx(0.280, abs=5e-4)
    disjoint = pearson(
        added(fold.train, names, fold.train.deltas()), fold.test.deltas_disjoint()[:, chosen]
    )
    assert float(disjoint.mean()) == pytest.approx(0.691, abs=0.05), "ten cuts of 100 controls"


def test_the_glioblastoma_lines_are_read_with_their_own_controls(cut):
    recording = screen("norman19", NORMAN, keep={})
    assert recording.provenance["cell_types"] == ["A172", "T98G", "U87MG", "k562"]
    data = cut(recording, split="unseen_cell_type", n_fold=None, n_control_split=1)
    assert [f.test.n_condition for f in data.folds] == [9, 9, 9, 33]


def test_stat1_knock_out_lowers_stat1_and_its_targets(cut):
    recording = screen("papalexi21", PAPALEXI)
    assert recording.provenance["expression"] == "counts"
    data = cut(
        recording,
        split="leave_one_out",
        n_fold=None,
        target_sum=188.0,
        reference="global",
        n_control_split=2,
    )
    fold = next(f for f in data.folds if f.test.names == ("STAT1",))
    effect = {
        gene: float(fold.test.delta_shared[0, fold.gene_names.index(gene)])
        for gene in ("STAT1", "PSMB9", "UBE2L6")
    }
    assert effect == pytest.approx({"STAT1": -1.58, "PSMB9": -1.14, "UBE2L6": -1.14}, abs=0.02)
    ceiling = {
        f.test.names[0]: float(pearson(f.test.half_a, f.test.half_b).mean()) for f in data.folds
    }
    assert all(ceiling[g] > 0.95 for g in ("IFNGR1", "IFNGR2", "JAK2", "STAT1")), ceiling
    assert sum(value < 0.5 for value in ceiling.values()) >= 11


def test_trrust_knows_the_interferon_axis(cut):
    recording = screen("papalexi21", PAPALEXI)
    try:
        path = str(find_data("trrust/trrust_human.tsv"))
    except MissingDataError as error:
        pytest.skip(str(error))
    how = {"graph": "trrust", "graph_path": path, "n_control_split": 1, "fold": 0}
    data = cut(recording, split="leave_one_out", n_fold=None, **how)
    graph = data.graph
    pairs = {(graph.names[a], graph.names[b]) for a, b in graph.edge_index.T.tolist()}
    assert graph.n_edge == 24 and {("STAT1", "IRF1"), ("IRF1", "PSMB9")} <= pairs
