from __future__ import annotations

import itertools
import json

import numpy as np
import torch

from neuralgraph.viz import panels, style


def axes():
    return style.canvas(4, 3).add_subplot()


def test_identity_scatter_has_equal_axes_and_counts_its_groups():
    true = torch.arange(6.0)
    is_known = true > 1
    ax = panels.identity_scatter(
        axes(),
        true,
        true + 0.1,
        groups={"known": (is_known, style.BLUE), "free": (~is_known, style.ORANGE)},
    )
    assert ax.get_xlim() == ax.get_ylim()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["known (n = 4)", "free (n = 2)"]


def test_trajectories_show_named_variables_without_overlapping_names():
    time = torch.linspace(0, 1, 30)
    seen = torch.stack([time, time + 0.01, time + 0.02, 0 * time], dim=1)
    ax = panels.trajectories(axes(), time, seen, seen, names=["a", "b", "c", "d"], n_shown=3)
    labels = [t for t in ax.texts]
    assert 1 <= len(labels) <= 3 and "d" not in [t.get_text() for t in labels]
    heights = sorted(t.xyann[1] for t in labels)
    low, high = ax.get_ylim()
    assert all(b - a > 0.03 * (high - low) for a, b in itertools.pairwise(heights))


def test_heatmap_is_symmetric_around_zero_when_diverging_and_survives_a_zero_matrix():
    image = np.array([[0.0, -3.0], [1.0, 0.5]])
    ax = panels.heatmap(axes(), image, label="mM", extent=None, limits=None, diverging=True)
    low, high = ax.images[0].get_clim()
    assert low == -high and 2.9 <= high <= 3
    ax = panels.heatmap(axes(), image * 0, label="", extent=(0, 1), limits=None, diverging=True)
    assert ax.images[0].get_clim() == (-1, 1)


def test_loss_curves_read_phases_and_leave_out_what_a_log_axis_cannot_show(tmp_path):
    rows = [
        {"phase": "a", "epoch": 0, "step": 10, "loss": 1.0, "regul_total": 0.0, "coeff_S_L1": 0.0},
        {"phase": "a", "epoch": 1, "step": 20, "loss": 0.1, "regul_total": 0.2, "coeff_S_L1": 0.2},
        {"phase": "b", "epoch": 0, "step": 30, "loss": 0.01, "regul_total": 0.3},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    ax = panels.loss_curves(axes(), path)
    by_name = {line.get_label(): line for line in ax.lines}
    assert {"loss", "regul_total", "coeff_S_L1"} <= set(by_name)
    assert ax.get_yscale() == "log"
    assert by_name["loss"].get_linewidth() > 2 * by_name["coeff_S_L1"].get_linewidth()
    assert np.isnan(by_name["regul_total"].get_ydata()[0])


def test_loss_curves_draw_terms_of_the_loss_only_and_closed_form_phases_as_named_points(tmp_path):
    closed = {"epoch": 0, "step": 0, "regul_total": 0.1, "median_residual": 0.3, "power": 1.1}
    rows = [
        {"phase": "decoding", "loss": 2.0, **closed},
        {"phase": "rate law", "loss": 1.0, **closed},
        *(
            {"phase": "gradient", "epoch": e, "step": 10 * e + 10, "loss": 0.5 / (e + 1),
             "regul_total": 0.2, "coeff_S_L1": 0.2, "loss_all_frames": 0.4,
             "validation_loss": 0.6}
            for e in range(3)
        ),
        {"phase": "second", "epoch": 0, "step": 50, "loss": 0.1, "regul_total": 0.1},
    ]  # fmt: skip
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows))
    ax = panels.loss_curves(axes(), path)
    curves = {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}
    assert set(curves) == {"loss", "regul_total", "validation_loss", "coeff_S_L1"}
    assert [text.get_text() for text in ax.texts] == ["decoding", "rate law"]
    x, y = curves["loss"].get_data()
    assert x[np.isfinite(y)].tolist() == [3, 4, 5, 6], "closed-form points are on no curve"
    assert np.isnan(x[x.tolist().index(5) + 1]), "the curve breaks between phases"
    diamonds = [line for line in ax.lines if line.get_marker() == "D"]
    assert [float(line.get_ydata()[0]) for line in diamonds] == [2.0, 1.0]
    assert [t.get_text() for t in ax.get_legend().get_texts()].count("loss") == 1


def test_a_run_without_epochs_gets_a_note_instead_of_an_error(tmp_path):
    ax = panels.loss_curves(axes(), tmp_path / "missing.jsonl")
    assert ax.texts[0].get_text() == "no epoch was logged"


def test_curves_draw_truth_dashed():
    x = torch.linspace(0, 1, 5)
    ax = panels.curves(axes(), x, torch.ones(5, 2), torch.zeros(5, 2), colours=style.CYCLE)
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--", "-", "--"]
