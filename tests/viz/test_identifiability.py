"""Panels about identifiability."""

from __future__ import annotations

import numpy as np

from neuralgraph.viz import identifiability as panels
from neuralgraph.viz import style


def test_errors_that_no_axis_can_show_are_left_out(tmp_path) -> None:
    """A fit that failed has relative errors up to the largest number there is."""
    with style.house():
        figure = style.canvas(style.WIDTH, 3.0)
        left, middle, right = figure.subplots(1, 3)
        panels.more_trajectories(
            left, [0, 1, 2], [1e308, 0.5, 0.3], [np.inf, 1e300, np.nan], precise=0.05
        )
        panels.error_shares(middle, {"k": [1e-3, 1e308, np.inf], "S": [1e300]}, {"k": 4, "S": 1},
                            precise=0.05)  # fmt: skip
        panels.candidates(right, ["one", "two"], [np.inf, 1e305], [0, 1])
        figure.savefig(tmp_path / "panels.png")
    median, high = (line.get_ydata() for line in left.get_lines()[:2])
    np.testing.assert_array_equal(median, [np.nan, 0.5, 0.3])
    assert np.isnan(high).all()
    labels = [text.get_text() for text in middle.get_legend().get_texts()]
    assert labels == ["k (1 of 4)"]
    assert (tmp_path / "panels.png").stat().st_size > 1000
