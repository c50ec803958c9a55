"""Write constraints.txt: the exact version of every package that a checkout needs.

The environment it reads is the one that was tested. The file names versions only, no index and no
build, so that the same lock serves a CPU wheel of torch and a CUDA one.

    .venv/bin/python scripts/lock.py            # rewrite constraints.txt
    .venv/bin/python scripts/lock.py --check    # fail where it differs
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "constraints.txt"
EXTRAS = ("sbml", "dev", "docs")
HEADER = """\
# Exact versions with which neuralgraph is tested (run + {extras}), Python 3.11 and later.
# Written by scripts/lock.py; used as  pip install -c constraints.txt -e '.[sbml]'
# Packages that torch brings along for a CUDA device are left to torch.
"""


def wanted() -> list[Requirement]:
    """Requirements of the project and of the locked extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Name and version of everything the requirements reach in this environment."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    stack = list(requirements)
    while stack:
        requirement = stack.pop()
        extras = requirement.extras or {""}
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras
        ):
            continue
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            sys.exit(f"{requirement} is not installed here: run `make setup` first")
        found[key[0]] = distribution.version.split("+")[0]
        for line in distribution.requires or []:
            child = Requirement(line)
            if child.marker is None or any(
                child.marker.evaluate({"extra": extra}) for extra in {"", *requirement.extras}
            ):
                child.marker = None
                stack.append(child)
    return found


def main() -> None:
    """Write or check the lock."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    pins = [f"{name}=={version}" for name, version in sorted(closure(wanted()).items())]
    text = HEADER.format(extras=" + ".join(EXTRAS)) + "\n".join(pins) + "\n"
    if not check:
        LOCK.write_text(text, encoding="utf-8")
        print(f"{LOCK.name}: {len(pins)} packages")
    elif LOCK.read_text(encoding="utf-8") != text:
        sys.exit(f"{LOCK.name} differs from this environment: run scripts/lock.py")


if __name__ == "__main__":
    main()
