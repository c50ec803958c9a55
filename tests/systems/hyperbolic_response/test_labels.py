"""Labels of perturbations, and tables from labels to genes."""

from __future__ import annotations

import json

import pytest

from neuralgraph.core.errors import DataError
from neuralgraph.systems.hyperbolic_response.labels import (
    find_separator,
    likely_control,
    read_target_map,
    targets_of,
)


@pytest.mark.parametrize(
    ("label", "genes"),
    [
        ("control", ()),
        ("KLF1", ("KLF1",)),
        ("MAP2K6+KLF1", ("KLF1", "MAP2K6")),
        ("KLF1+ctrl", ("KLF1",)),
        ("control+KLF1", ("KLF1",)),
        ("A+B+C", ("A", "B", "C")),
    ],
)
def test_labels_name_their_genes_sorted(label, genes):
    assert targets_of(label, "control", "+") == genes


@pytest.mark.parametrize("label", ["A+", "+", "A+A"])
def test_a_part_that_is_empty_or_repeated_is_refused(label):
    with pytest.raises(DataError, match="does not name perturbed genes"):
        targets_of(label, "control", "+")


def test_without_a_separator_a_label_is_one_gene():
    assert targets_of("HLA_A", "control", None) == ("HLA_A",)


def test_the_separator_is_found_only_where_it_joins_known_genes():
    assert find_separator(["A", "B", "A+C"], []) == "+"
    assert find_separator(["A_B"], ["A", "B"]) == "_"
    assert find_separator(["neg_1", "neg_2"], ["A"]) is None


def test_the_likely_control_is_found():
    assert likely_control(["KLF1", "NT"]) == "NT"
    assert likely_control(["KLF1", "non-targeting_3"]) == "non-targeting_3"
    assert likely_control(["KLF1", "NTRK1"]) is None


def test_a_json_map_takes_a_gene_a_list_or_weights(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"a": "G1", "b": ["G1", "G2"], "c": {"G1": 1, "G3": 3}}))
    assert read_target_map(path) == {
        "a": {"G1": 1.0},
        "b": {"G1": 1.0, "G2": 1.0},
        "c": {"G1": 0.25, "G3": 0.75},
    }


@pytest.mark.parametrize(
    "entry", [[], {}, "", {"G": 0}, {"G": -1}, {"G": "x"}, 3, [3], {"G": None}]
)
def test_a_map_entry_that_says_nothing_is_refused(tmp_path, entry):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"guide": entry}))
    with pytest.raises(DataError, match="entry of 'guide' must be"):
        read_target_map(path)


def test_a_table_without_its_columns_lists_what_it_has(tmp_path):
    path = tmp_path / "map.tsv"
    path.write_text("name\tgene\nk\tG\n")
    with pytest.raises(DataError, match=r"needs a label column .*it has name, gene"):
        read_target_map(path)


def test_broken_json_is_named(tmp_path):
    path = tmp_path / "map.json"
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_target_map(path)
