"""Sphinx configuration: Furo, MyST, docstrings from the package. Needs no network."""

from __future__ import annotations

import importlib
import re

from docutils import nodes
from docutils.parsers.rst import Directive

import neuralgraph

project = "neuralgraph"
author = "neuralgraph contributors"
copyright = "neuralgraph contributors"
release = version = neuralgraph.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # shapes and units stand in the docstrings; types in the source
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source", "Metrics"]

html_theme = "furo"
html_title = "neuralgraph"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b6e63",
        "color-brand-content": "#0b6e63",
        "font-stack": "Source Sans 3, Segoe UI, Helvetica, Arial, sans-serif",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5cc8b8",
        "color-brand-content": "#5cc8b8",
    },
}


def dollar_math(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings write formulas as ``$…$``; reStructuredText wants the math role."""
    text = "\n".join(lines)
    code = re.compile(r"(``[^`]*``)")
    parts = code.split(text)
    for i in range(0, len(parts), 2):
        bits = re.split(r"(?<![\\$\w])\$([^$]+?)\$(?![\w$])", parts[i])
        for j, bit in enumerate(bits):
            if j % 2:
                bits[j] = f":math:`{' '.join(bit.split())}`\\ "
            else:  # an absolute value, |s|, is no substitution
                bits[j] = re.sub(r"(?<!\\)\|([^|\s]+)\|", r"\\|\1\\|", bit)
        parts[i] = "".join(bits)
    lines[:] = "".join(parts).split("\n")


class Glossary(Directive):
    """Table of the metrics of a system: ``{glossary-of} module NAME``."""

    required_arguments = 2
    final_argument_whitespace = False

    def run(self) -> list[nodes.Node]:
        module, name = self.arguments
        entries = getattr(importlib.import_module(module), name)
        listing = nodes.definition_list()
        for metric, meaning in entries.items():
            term = nodes.term(
                "", "", nodes.literal(text=metric.replace("{", "<").replace("}", ">"))
            )
            text = nodes.paragraph(text=re.sub(r"\{(\w+)\}", r"<\1>", meaning))
            listing += nodes.definition_list_item("", term, nodes.definition("", text))
        return [listing]


def setup(app) -> None:
    app.add_directive("glossary-of", Glossary)
    app.connect("autodoc-process-docstring", dollar_math)
