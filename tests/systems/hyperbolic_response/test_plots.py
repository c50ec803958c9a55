"""What figures leave out, and where they put names."""

from __future__ import annotations

import itertools

from neuralgraph.systems.hyperbolic_response.plots import apart, both_tails


def row(gain):
    ours = None if gain is None else 0.5 + gain
    return {"pearson_delta": 0.0, "pearson_delta_additive": 0.0, "pearson_delta_ceiling": 0.0,
            "pearson_delta_disjoint": ours, "pearson_delta_disjoint_additive": 0.5,
            "pearson_delta_disjoint_ceiling": 1.0, "gain": gain}  # fmt: skip


def test_a_long_list_shows_both_tails_of_the_gain():
    few = [row(0.1), row(-0.2), row(None)]
    assert both_tails(few, 4) is few
    many = [row(g) for g in (0.3, None, -0.4, 0.01, 0.2, -0.1, 0.05)]
    assert [r["gain"] for r in both_tails(many, 4)] == [0.3, 0.2, -0.1, -0.4]


def test_labels_that_stand_near_do_not_cover_each_other():
    for height in (0.1, -0.1):
        taken: list[tuple[float, float]] = []
        for x, y in ((0.1, 0.5), (0.2, 0.52), (0.15, 0.45), (0.9, 0.5), (0.1, 0.5)):
            apart(x, y, taken, width=0.4, height=height)
        assert taken[0] == (0.1, 0.5) and taken[3] == (0.9, 0.5), "alone: it stays"
        near = [b for a, b in taken if a < 0.5]
        assert all(abs(a - b) > 0.0999 for a, b in itertools.combinations(near, 2))
