"""What the report prints: numbers that stay apart from 1, and words instead of keys."""

from __future__ import annotations

import torch

from neuralgraph.core.recording import Recording
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.reporting import render, result_rows


def card(**facts):
    scorecard = Scorecard({"R2": 1 - 2.3e-7, "exact": 1.0}, facts=facts)
    scorecard.provenance = {
        "primary_metric": "R2",
        "seed": 1,
        "simulator_seed": 1,
        "training_seed": 1,
    }
    return scorecard


def test_a_score_just_below_one_does_not_read_as_one():
    shown = {row["name"]: row["value"] for row in result_rows(card())}
    assert shown == {"R2": "0.9999998", "exact": "1"}


def test_facts_about_the_data_are_words_and_a_note_stands_on_top(tmp_path):
    recording = Recording(
        time=torch.arange(3.0)[None],
        state=torch.rand(1, 3, 2),
        names=("A", "B"),
        provenance={"n_met": 2, "n_non_integer_column": 5, "flux_limit": True},
    )
    config = {"name": "x", "question": "", "prior": {"support": True}}
    html = render(config, tmp_path, recording, card(note="mind the step"), [])
    for words in ("<dt>metabolites</dt><dd>2", "columns without integer coefficients</dt><dd>5"):
        assert words in html
    assert "<dt>flux limit</dt><dd>yes" in html and "n met" not in html
    assert html.index("mind the step") < html.index("What was given")


def test_products_are_shown_with_their_first_lines(tmp_path):
    from neuralgraph.core.product import Product

    recording = Recording(
        time=torch.arange(3.0)[None], state=torch.rand(1, 3, 2), names=("A", "B"), provenance={}
    )
    config = {"name": "x", "question": "", "prior": {}}
    products = [
        Product(tmp_path / "reactions.txt", "Reactions", "One a line.", "r1: A -> 2 B"),
        Product(None, "SBML", "Not written: the extra is missing."),
    ]
    html = render(config, tmp_path, recording, card(), [], products)
    assert 'href="reactions.txt"' in html and "r1: A -&gt; 2 B" in html
    assert "Not written: the extra is missing." in html


def test_of_a_long_table_what_is_not_determined_comes_first(tmp_path):
    recording = Recording(
        time=torch.arange(3.0)[None], state=torch.rand(1, 3, 2), names=("A", "B"), provenance={}
    )
    config = {"name": "x", "question": "", "prior": {}}
    rows = [{"reaction": f"R{j}", "k_determined": j != 77, "group": 0} for j in range(100)]
    html = render(config, tmp_path, recording, card(identifiability=rows), [])
    assert "40 of 100 rows" in html and "R40<" not in html
    assert html.index("R77<") < html.index("R0<")
