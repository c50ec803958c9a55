"""Labels of cells: which genes a perturbation names, and which label means unperturbed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuralgraph.core.errors import DataError, nearest
from neuralgraph.core.recording import Recording

CONTROL_NAMES = (
    "control",
    "ctrl",
    "non-targeting",
    "non_targeting",
    "nontargeting",
    "nt",
    "negctrl",
    "neg_ctrl",
    "unperturbed",
    "untreated",
    "mock",
    "wt",
    "dmso",
    "safe-targeting",
    "scramble",
)
"""Labels that usually mean unperturbed cells; used in suggestions only."""

LABEL_COLUMNS = ("perturbation", "perturbation_label", "condition", "guide", "guide_id")
GENE_COLUMNS = ("gene", "gene_symbol", "target_gene", "target")
WEIGHT_COLUMNS = ("weight", "mapping_weight")


def likely_control(labels: Iterable[str]) -> str | None:
    """The label that most likely means unperturbed cells.

    >>> likely_control(["STAT1", "non-targeting", "JAK2"])
    'non-targeting'
    """
    labels = list(labels)
    for name in CONTROL_NAMES:
        for label in labels:
            if label.lower() == name:
                return label
    for label in labels:
        if any(len(name) > 2 and label.lower().startswith(name) for name in CONTROL_NAMES):
            return label
    return None


def find_control(labels: Sequence[str], control_label: str, where: str) -> None:
    """Refuse a control label that no cell has.

    Raises:
        DataError: lists the labels, and the one that is likely meant.
    """
    if control_label in labels:
        return
    likely = likely_control(labels)
    hint = f"did you mean '{likely}'?" if likely else nearest(control_label, labels)
    shown = ", ".join(sorted(labels)[:12]) + (" …" if len(labels) > 12 else "")
    raise DataError(
        f"no cell is labelled '{control_label}' in {where}: {hint} The labels are {shown}; set "
        "simulator.control_label"
    )


def find_separator(labels: Iterable[str], genes: Iterable[str]) -> str | None:
    """Character that joins the genes of a combination: ``+``, else ``_``, else none.

    ``_`` counts only where both sides of it are known: a gene, or a label of its own.

    >>> find_separator(["KLF1", "KLF1+MAP2K6"], [])
    '+'
    >>> find_separator(["KLF1", "MAP2K6", "KLF1_MAP2K6"], [])
    '_'
    >>> find_separator(["guide_1", "guide_2"], [])
    """
    labels = list(labels)
    if any("+" in label for label in labels):
        return "+"
    known = {*genes, *labels}
    joined = [label for label in labels if "_" in label]
    is_known = [all(p in known and p for p in label.split("_")) for label in joined]
    return "_" if joined and any(is_known) else None


def targets_of(label: str, control_label: str, separator: str | None) -> tuple[str, ...]:
    """Perturbed genes of a label, sorted; the partner ``ctrl`` of a single one is dropped.

    >>> targets_of("MAP2K6+KLF1", "control", "+")
    ('KLF1', 'MAP2K6')
    >>> targets_of("KLF1+ctrl", "ctrl", "+")
    ('KLF1',)

    Raises:
        DataError: a part is empty, or occurs twice.
    """
    if label == control_label:
        return ()
    parts = label.split(separator) if separator else [label]
    genes = [p.strip() for p in parts if p.strip() not in (control_label, "ctrl")]
    if not genes or not all(genes) or len(set(genes)) < len(genes):
        raise DataError(
            f"the label '{label}' does not name perturbed genes: expected NAME or "
            f"NAME{separator or '+'}NAME, each once; correct the label, or name "
            "simulator.combination_separator"
        )
    return tuple(sorted(genes))


def read_target_map(path: Path) -> dict[str, dict[str, float]]:
    """Genes and their weights by label, from a JSON, CSV or TSV file.

    JSON: ``{label: gene | [genes] | {gene: weight}}``. A table has a label column (one of
    ``perturbation``, ``perturbation_label``, ``condition``, ``guide``, ``guide_id``), a gene column
    (``gene``, ``gene_symbol``, ``target_gene``, ``target``) and may have ``weight`` or
    ``mapping_weight``. Without weights each gene counts 1 (perturbed together); weights are
    normalised to sum 1 (one effect, shared). Data sets take genes as perturbed or not, and refuse
    weights that differ within a label (:func:`refuse_unequal_weights`).

    Raises:
        DataError: the file, a column, an entry or a weight that cannot be used.
    """
    found: dict[str, Any] = {}
    if path.suffix.lower() == ".json":
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(found, Mapping):
            raise DataError(f"{path} must hold an object {{label: gene}}, got {type(found)}")
    else:
        import pandas as pd

        table = pd.read_csv(path, sep="\t" if path.suffix.lower() in (".tsv", ".txt") else ",")
        columns = [str(c) for c in table.columns]
        label = next((c for c in LABEL_COLUMNS if c in columns), None)
        gene = next((c for c in GENE_COLUMNS if c in columns), None)
        weight = next((c for c in WEIGHT_COLUMNS if c in columns), None)
        if label is None or gene is None:
            raise DataError(
                f"{path} needs a label column ({', '.join(LABEL_COLUMNS)}) and a gene column "
                f"({', '.join(GENE_COLUMNS)}); it has {', '.join(columns)}"
            )
        for key, rows in table.groupby(label, sort=False):
            genes = [str(g) for g in rows[gene] if isinstance(g, str)]
            if weight is None:
                found[str(key)] = genes
            else:
                found[str(key)] = dict(zip(genes, rows[weight].tolist(), strict=False))
    return {str(label): _weights(str(label), entry, path) for label, entry in found.items()}


def refuse_other_recordings(recording: Recording) -> None:
    """Refuse a recording that is no perturbation screen.

    Raises:
        DataError: says what it lacks.
    """
    lacking = [
        key for key in ("conditions", "targets", "expression") if key not in recording.provenance
    ]
    lacking += [key for key in ("condition", "cell_type", "batch") if key not in recording.graph]
    if lacking:
        raise DataError(
            f"this recording is no perturbation screen (it lacks {', '.join(lacking)}): take "
            "simulator=perturb_screen_simulated, norman19, papalexi21 or perturb_screen"
        )


def refuse_unequal_weights(facts: Mapping[str, Any]) -> None:
    """Refuse labels whose genes have weights that differ: no model here can tell them apart.

    Args:
        facts: Of a recording: ``conditions``, ``targets`` and, where known, ``target_weights``.

    Raises:
        DataError: names a label, its genes and their weights.
    """
    rows = zip(
        facts["conditions"], facts["targets"], facts.get("target_weights") or [], strict=False
    )
    for name, genes, weights in rows:
        if len(weights) > 1 and max(weights) - min(weights) > 1e-9 * max(weights):
            shown = ", ".join(f"{g} {w:g}" for g, w in zip(genes, weights, strict=True))
            raise DataError(
                f"the genes of '{name}' have different weights ({shown}); expected equal ones, "
                "since a gene is taken as perturbed or not: list the genes without weights in the "
                "file of simulator.target_map, or only the one that is meant"
            )


def _weights(label: str, entry: Any, path: Path) -> dict[str, float]:
    if isinstance(entry, str):
        entry = [entry]
    if isinstance(entry, list) and entry and all(isinstance(g, str) and g for g in entry):
        return {gene: 1.0 for gene in entry}
    if isinstance(entry, Mapping) and entry:
        try:
            weights = {str(gene): float(weight) for gene, weight in entry.items()}
        except (TypeError, ValueError):
            weights = {}
        if weights and all(0 < w < float("inf") for w in weights.values()):
            total = sum(weights.values())
            return {gene: w / total for gene, w in weights.items()}
    raise DataError(
        f"{path}: the entry of '{label}' must be a gene, a list of genes, or genes with weights "
        f"above 0, got {entry!r}"
    )
