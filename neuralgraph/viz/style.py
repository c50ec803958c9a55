"""The house style: one palette, one set of sizes, the same bytes for the same numbers.

Colours are those of Okabe & Ito (2008), told apart with any colour vision. Truth is dark and
dashed, a prediction is blue, what the data do not determine is orange, everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralgraph.viz.figure import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
ORANGE = "#E69F00"
SKY = "#56B4E9"
PURPLE = "#CC79A7"
YELLOW = "#F0E442"
INK = "#1d2329"
SOFT = "#5b6770"
LINE = "#dfe3e6"

CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
SEQUENTIAL = "viridis"
DIVERGING = "RdBu_r"

DPI = 160
WIDTH = 7.2
"""Width of a full figure in inches: the text width of the report at 100 %."""

PARAMETERS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 6,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "image.interpolation": "nearest",
    "image.cmap": SEQUENTIAL,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": DPI,
    "savefig.bbox": "standard",
    "figure.constrained_layout.use": True,
    "path.simplify": True,
}


@contextmanager
def house() -> Iterator[None]:
    """Draw in the house style inside a ``with`` block; nothing is changed outside."""
    import matplotlib as mpl
    from cycler import cycler

    parameters: Any = {**PARAMETERS, "axes.prop_cycle": cycler(color=CYCLE)}
    with mpl.rc_context(parameters):
        yield


def canvas(width: float = WIDTH, height: float = 3.2) -> Canvas:
    """An empty figure of given size (inches) that no global state knows of.

    Args:
        width: Inches.
        height: Inches.
    Returns:
        A matplotlib figure with its own Agg canvas; call ``add_subplot`` or ``subplots`` on it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Canvas, path: Path | str, title: str, caption: str) -> Figure:
    """Write a PNG without dates or versions inside, close the figure, and describe it.

    Args:
        figure: What was drawn.
        path: Where to, ending in ``.png``; folders are made.
        title: A noun phrase without a full stop.
        caption: Sentences that say what to look for.
    Returns:
        Path, title and caption.
    """
    import sys

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")  # a reader never meets half a file
    figure.savefig(part, dpi=DPI, format="png", metadata={"Software": None})
    part.replace(path)
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(figure)
    return Figure(path, title, caption)
