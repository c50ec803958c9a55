"""Begin a new biology: a working copy of the linear template under a name of its own.

    python scripts/new_system.py glycolysis

creates the house (``neuralgraph/systems/glycolysis``), its config stems, a smoke experiment, its
tests, a notebook page and a documentation page, and edits nothing. What it creates runs and passes
the contract tests at once; then change it, file by file, into your biology: the equation in
``simulator.py`` and ``model.py`` first. ``docs/adding_a_biology.md`` is the guide.
"""

from __future__ import annotations

import argparse
import keyword
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = "linear"
TEXT = {".py", ".md", ".yaml", ".csv"}


def class_prefix(name: str) -> str:
    """``boolean_grn`` becomes ``BooleanGrn``."""
    return "".join(word.capitalize() for word in name.split("_"))


def renamed(text: str, name: str) -> str:
    """Template text with identifiers, import paths and config stems of the new system.

    Prose about the linear equation stays: it is true until the equation is changed.
    """
    text = re.sub(rf"\b{TEMPLATE}_smoke\b", f"{name}_smoke", text)
    text = re.sub(rf"\bsystems([./]){TEMPLATE}\b", rf"systems\g<1>{name}", text)
    text = re.sub(rf"\b{TEMPLATE.capitalize()}(?=[A-Z])", class_prefix(name), text)
    text = re.sub(rf"(?m)^(\s*- override /\w+: ){TEMPLATE}$", rf"\g<1>{name}", text)
    text = re.sub(rf"(?<=[=/`\"']){TEMPLATE}(?=[`\"'\s/]|\.yaml)", name, text)
    return text


def plan(name: str, root: Path) -> dict[Path, str]:
    """Content of every file the new system begins with, by path."""
    sources: list[tuple[Path, Path]] = []
    for folder in (f"neuralgraph/systems/{TEMPLATE}", f"tests/systems/{TEMPLATE}"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in TEXT and "__pycache__" not in path.parts:
                target = root / Path(folder).parent / name / path.relative_to(ROOT / folder)
                target = target.with_name(target.name.replace(TEMPLATE, name))
                sources.append((path, target))
    for path in sorted((ROOT / "conf").glob(f"*/{TEMPLATE}.yaml")):
        sources.append((path, root / "conf" / path.parent.name / f"{name}.yaml"))
    single = {
        f"conf/experiment/{TEMPLATE}_smoke.yaml": f"conf/experiment/{name}_smoke.yaml",
        f"docs/systems/{TEMPLATE}.md": f"docs/systems/{name}.md",
    }
    sources += [(ROOT / source, root / target) for source, target in single.items()]
    files = {target: renamed(path.read_text(encoding="utf-8"), name) for path, target in sources}
    files[root / "docs" / "systems" / f"{name}.md"] = re.sub(
        r"\A# .*", f"# {name}", files[root / "docs" / "systems" / f"{name}.md"]
    )
    files[root / "experiments" / f"{name}_smoke" / "README.md"] = notebook_page(name)
    return files


def notebook_page(name: str) -> str:
    """First page of the lab notebook; results come with the first claimed number."""
    return f"""# {name}_smoke

**Question.** Does the whole path of `{name}` work, from one command to a report?

```
python -m neuralgraph.train +experiment={name}_smoke
```

Nothing is claimed yet. Once a number is: state hardware and wall time, a table over seeds, a figure
and a verdict here, and put metric, value, tolerance, seed and budget into `expected.json`, so that
`make reproduce EXP={name}_smoke` can run it again and compare.
"""


def check_name(name: str, root: Path) -> None:
    """Refuse a name that cannot be an import path, or is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        sys.exit(f"'{name}' cannot be a system's name: use lower-case words joined by _")
    if (root / "neuralgraph" / "systems" / name).exists():
        sys.exit(f"there is a system called '{name}' already: choose another name")


def main(arguments: list[str] | None = None) -> None:
    """Write the files of a new system; nothing is written if one of them exists."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="lower-case words joined by _, such as glycolysis")
    parser.add_argument("--root", type=Path, default=ROOT, help="write elsewhere (for tests)")
    options = parser.parse_args(arguments)
    check_name(options.name, options.root)
    files = plan(options.name, options.root)
    taken = [path for path in files if path.exists()]
    if taken:
        sys.exit(f"nothing was written: {taken[0]} exists already")
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(options.root))
    print(
        f"\nTry  python -m neuralgraph.train +experiment={options.name}_smoke\n"
        f"and  python -m pytest -q tests/systems -k {options.name};  then read "
        "docs/adding_a_biology.md, and add a line to CHANGELOG.md"
    )


if __name__ == "__main__":
    main()
