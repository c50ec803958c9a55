"""The page of verbs that show things and train nothing: facts, tables, files, figures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neuralgraph.core.product import Product

DOTS_PER_INCH, PIXELS_PER_INCH = 160, 116


def render_gallery(
    config: Mapping[str, Any],
    folder: Path,
    *,
    kind: str,
    facts: Mapping[str, Any],
    warnings: Sequence[str] = (),
    tables: Sequence[Mapping[str, Any]] = (),
    products: Sequence[Product] = (),
    figures: Sequence[Any] = (),
) -> str:
    """HTML of a page that shows what a verb other than training made.

    Args:
        config: Resolved config of the run.
        folder: Run folder; links are relative to it.
        kind: What the page is, such as ``simulation``.
        facts: Short facts for the top of the page, by name.
        warnings: Sentences that must be seen.
        tables: Each with ``title``, ``note``, ``header`` and ``body`` (rows of text).
        products: Files for others, shown with their first lines.
        figures: Objects with ``path``, ``title`` and ``caption``.
    """
    import yaml
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("neuralgraph"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    file = folder / "provenance.json"
    origin = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return environment.get_template("gallery.html").render(
        title=config["name"],
        question=config["question"],
        settings=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        kind=kind,
        facts={key.replace("_", " "): words(value) for key, value in facts.items()},
        warnings=warnings,
        tables=tables,
        products=[
            {
                "name": None if p.path is None else p.path.relative_to(folder).as_posix(),
                "title": p.title,
                "caption": p.caption,
                "preview": p.preview,
            }
            for p in products
        ],
        figures=[
            {
                "src": inlined(f.path),
                "title": f.title,
                "caption": f.caption,
                "width": width_on_page(f.path),
            }
            for f in figures
        ],
        origin=origin,
    )


def words(value: Any) -> str:
    """A fact as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def width_on_page(path: Path) -> int:
    """Width in CSS pixels: the same scale for every figure."""
    from PIL import Image

    with Image.open(path) as image:
        return round(image.width / DOTS_PER_INCH * PIXELS_PER_INCH)


def inlined(path: Path) -> str:
    """A picture as a data address, so that the page is one file."""
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
