"""Recovered parameters with their standard errors, as figures and tables want them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from neuralgraph.core.files import write_text
from neuralgraph.systems.metabolism.network import ReactionNetwork

LN10 = math.log(10.0)


@dataclass(frozen=True)
class Uncertain:
    """What ``identifiability.csv`` says about one parameter.

    Args:
        status: ``determined``, ``combination`` or ``undetermined``.
        combination: Determined combinations it takes part in.
        estimate: Value; NaN where the data say nothing.
        standard_error: NaN where it is not determined.
        relative_error: The same over the magnitude of the estimate.
    """

    status: str
    combination: str
    estimate: float
    standard_error: float
    relative_error: float


def read_uncertainty(folder: Path) -> dict[str, Uncertain]:
    """Rows of ``identifiability.csv`` by name of the parameter; empty where there is no file."""
    file = folder / "identifiability.csv"
    if not file.exists():
        return {}
    with file.open(encoding="utf-8", newline="") as lines:
        return {
            row["parameter"]: Uncertain(
                row["status"],
                row["combination"],
                *(
                    float(row[key]) if row[key] else math.nan
                    for key in ("estimate", "standard_error", "relative_error")
                ),
            )
            for row in csv.DictReader(lines)
        }


def log_k_errors(known: Mapping[str, Uncertain], reactions: tuple[str, ...]) -> Tensor:
    r"""Standard error of log10 k, ``(n_rxn,)``: the relative error over ln 10; NaN without one."""
    return torch.tensor(
        [known[f"k({r})"].relative_error / LN10 if f"k({r})" in known else math.nan
         for r in reactions],
        dtype=torch.float64,
    )  # fmt: skip


def coefficient_errors(
    known: Mapping[str, Uncertain], network: ReactionNetwork, met: Tensor, rxn: Tensor
) -> Tensor:
    """Standard error of the coefficients of given edges, ``(n_edge,)``; NaN without one."""
    mets, rxns = network.metabolite_names, network.reaction_names
    names = [f"S({mets[i]},{rxns[j]})" for i, j in zip(met.tolist(), rxn.tolist(), strict=True)]
    return torch.tensor(
        [known[n].standard_error if n in known else math.nan for n in names], dtype=torch.float64
    )


def write_rate_constants(
    path: Path,
    reactions: tuple[str, ...],
    known: Mapping[str, Uncertain],
    *,
    log_k: Tensor | None,
    true_log_k: Tensor | None,
) -> None:
    """``rate_constants.csv``: estimate, standard error, 95 % interval and status of every k.

    Args:
        path: The file.
        reactions: Their names.
        known: From :func:`read_uncertainty`.
        log_k: log10 k in the gauge of the scores, ``(n_rxn,)``; ``None``: the estimates of
            ``known``.
        true_log_k: log10 of the truth where it is known; then the error is given in standard
            errors too.
    """
    error = log_k_errors(known, reactions)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    header = ["reaction", "k", "standard_error", "log10_k", "standard_error_log10_k"]
    header += ["k_low_95", "k_high_95", "status", "combination"]
    if true_log_k is not None:
        header += ["true_log10_k", "error_in_standard_errors"]
    writer.writerow(header)
    for j, name in enumerate(reactions):
        row = known.get(f"k({name})")
        if log_k is not None:
            value = float(log_k[j])
        else:
            value = math.log10(row.estimate) if row and row.estimate > 0 else math.nan
        k, e = 10**value, float(error[j])
        says_nothing = row is not None and row.status == "undetermined" and log_k is None
        cells = [
            "" if says_nothing else _digits(k),
            _digits(k * e * LN10),
            "" if says_nothing else _digits(value),
            _digits(e),
            _digits(10 ** (value - 1.96 * e)) if abs(e) < 100 else "",
            _digits(10 ** (value + 1.96 * e)) if abs(e) < 100 else "",
            row.status if row else "",
            row.combination if row else "",
        ]
        if true_log_k is not None:
            away = value - float(true_log_k[j])
            cells += [_digits(float(true_log_k[j])), _digits(away / e if e > 0 else math.nan)]
        writer.writerow([name, *cells])
    write_text(path, buffer.getvalue())


def _digits(value: float) -> str:
    return f"{value:.8g}" if math.isfinite(value) else ""
