"""``report.html``: one self-contained page that reads like a short paper."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuralgraph.core.product import Product
from neuralgraph.core.recording import Recording
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.terminal import number

TABLE_ROWS_SHOWN = 40
DOTS_PER_INCH, PIXELS_PER_INCH = 160, 116
VERDICTS = ("class", "class_document", "diagnosis", "degeneracy", "note")
"""Facts shown at the top of the report; other sentences stand below the scores."""
LABELS = {
    "n_met": "metabolites",
    "n_rxn": "reactions",
    "n_var": "variables",
    "n_frame": "frames of each run",
    "n_initial_condition": "initial conditions to learn from",
    "n_test_initial_condition": "initial conditions held out",
    "n_non_integer_column": "columns without integer coefficients",
    "dt": "frame interval",
    "dt_min": "frame interval (min)",
    "dx_dt_source": "derivatives",
    "dx_dt_minus_S_v_max": "largest |dx/dt − S v|",
    "lowest_concentration": "lowest concentration",
    "lowest_concentration_mM": "lowest concentration (mM)",
    "depletion_margin": "distance from depletion",
    "activity_rank": "rank of the activity",
    "external_input_mode": "external input",
    "flux_limited_fraction": "fraction of fluxes that are limited",
    "initial_fold": "largest change of the initial state (fold)",
    "mass_balanced": "mass balanced",
}
"""Words for facts about the data; others are shown by their key, with spaces."""


def label(key: str) -> str:
    """Words for a fact about the data.

    >>> label("n_non_integer_column"), label("flux_limit")
    ('columns without integer coefficients', 'flux limit')
    """
    return LABELS.get(key, key.replace("_", " "))


def render(
    config: Mapping[str, Any],
    folder: Path,
    recording: Recording,
    scorecard: Scorecard,
    figures: Sequence[Any],
    products: Sequence[Product] = (),
    found: Mapping[str, Any] | None = None,
) -> str:
    """HTML of the report: question, what was given, results beside baselines, products, figures,
    identifiability, settings.

    Args:
        config: Resolved config of the run.
        folder: Run folder (for provenance).
        recording: The data, for their design.
        scorecard: The scores.
        figures: Objects with ``path``, ``title`` and ``caption``.
        products: Files for others, shown with their first lines.
        found: What the data determine (:func:`neuralgraph.identifying.section`), or ``None``.
    """
    rows = result_rows(scorecard)
    primary = scorecard.provenance["primary_metric"]
    words = {k: v for k, v in scorecard.facts.items() if isinstance(v, str)}
    return (
        _environment()
        .get_template("report.html")
        .render(
            **_origin(config, folder, recording),
            card=scorecard,
            primary=primary,
            rows=rows,
            headline=next((r for r in rows if r["name"] == primary), None),
            verdicts={k: words[k] for k in VERDICTS if k in words},
            notes={k: v for k, v in words.items() if k not in VERDICTS},
            figures=[_drawn(f.path, f.title, f.caption) for f in figures],
            products=[
                {
                    "name": None if p.path is None else p.path.relative_to(folder).as_posix(),
                    "title": p.title,
                    "caption": p.caption,
                    "preview": p.preview,
                }
                for p in products
            ],
            identifiability=_table(scorecard.facts.get("identifiability")),
            found=found,
            drawn=_drawn_of(found, folder),
        )
    )


def render_identifiability(
    config: Mapping[str, Any], folder: Path, recording: Recording, found: Mapping[str, Any]
) -> str:
    """HTML of ``identifiability.html``: the design, and what it determines, without training.

    Args:
        config: Resolved config.
        folder: Folder of the analysis.
        recording: The data.
        found: Content of the section (:func:`neuralgraph.identifying.section`).
    """
    return (
        _environment()
        .get_template("identifiability.html")
        .render(
            **_origin(config, folder, recording),
            card=None,
            found=found,
            drawn=_drawn_of(found, folder),
        )
    )


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("neuralgraph"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["number"] = number
    return environment


def _origin(config: Mapping[str, Any], folder: Path, recording: Recording) -> dict[str, Any]:
    """What was given, the data, and how to do it again."""
    import yaml

    file = folder / "provenance.json"
    return {
        "config": config,
        "settings": yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        "given": [name for name, flag in config["prior"].items() if flag],
        "hidden": [name for name, flag in config["prior"].items() if not flag],
        "recording": recording,
        "design": {
            label(key): _cell(value)
            for key, value in recording.provenance.items()
            if not isinstance(value, (dict, list))
        },
        "warnings": recording.provenance.get("warnings", []),
        "origin": json.loads(file.read_text(encoding="utf-8")) if file.exists() else {},
    }


def _drawn(path: Path, title: str, caption: str) -> dict[str, Any]:
    return {"src": _inline(path), "title": title, "caption": caption, "width": _width(path)}


def _drawn_of(found: Mapping[str, Any] | None, folder: Path) -> list[dict[str, Any]]:
    figures = [] if found is None else found.get("figures", [])
    return [_drawn(folder / f["path"], f["title"], f["caption"]) for f in figures]


def result_rows(scorecard: Scorecard) -> list[dict[str, str]]:
    """Result table: metric and what it means, value, unit, baselines as words."""
    baselines: Mapping[str, Mapping[str, float]] = scorecard.facts.get("baselines", {})
    return [
        {
            "name": name,
            "meaning": scorecard.meaning.get(name, ""),
            "value": number(value),
            "unit": scorecard.units.get(name, ""),
            "baseline": ", ".join(f"{number(v)} ({k})" for k, v in baselines.get(name, {}).items()),
        }
        for name, value in scorecard.ordered()
    ]


def _table(rows: Any) -> dict[str, Any] | None:
    """Equal dictionaries as header and body, those with a "no" first, cut to a readable length."""
    if not isinstance(rows, list) or not rows:
        return None
    header = list(rows[0])
    shown = sorted(rows, key=lambda row: all(v is not False for v in row.values()))[
        :TABLE_ROWS_SHOWN
    ]
    body = [[_cell(row[key]) for key in header] for row in shown]
    return {"header": header, "body": body, "n_rows": len(rows), "n_shown": len(body)}


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    return "" if value is None else str(value)


def _width(path: Path) -> int:
    """Width on the page in CSS pixels: the same scale for every figure."""
    from PIL import Image

    with Image.open(path) as image:
        return round(image.width / DOTS_PER_INCH * PIXELS_PER_INCH)


def _inline(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
