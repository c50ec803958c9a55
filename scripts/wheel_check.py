"""Prove that the wheel works where there is no checkout.

Builds the wheel, installs it with the locked versions into an empty environment in a temporary
folder, and runs the smoke experiment there from an empty folder.

    python scripts/wheel_check.py            # the honest way: every dependency is installed anew
    python scripts/wheel_check.py --fast     # borrows the dependencies of this environment
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = "linear_smoke"
KNOWN_FOLDERS = ("neuralgraph/", "neuralgraph-")


def call(*command: str | Path, cwd: Path) -> None:
    """Run a command without any trace of the checkout in its environment."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    print("$", *command, flush=True)
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment)
    if done.returncode:
        sys.exit(f"wheel-check failed: exit status {done.returncode} of the command above")


def build(folder: Path) -> Path:
    """The wheel, built from the checkout."""
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
    call(*command, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    foreign = [name for name in names if not name.startswith(KNOWN_FOLDERS)]
    if foreign:
        sys.exit(f"wheel-check failed: the wheel installs {foreign[0]} outside the package")
    if "neuralgraph/conf/train.yaml" not in names:
        sys.exit("wheel-check failed: the wheel has no neuralgraph/conf")
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.2f} MB")
    return wheel


def install(wheel: Path, folder: Path, *, fast: bool) -> Path:
    """An environment that holds the wheel; returns its interpreter."""
    venv.create(folder, with_pip=True, clear=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    if fast:
        # A line in a .pth adds the folder, but not the editable checkout that it may point to.
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        call(*pip, "--no-deps", wheel, cwd=folder)
        return python
    lock = ROOT / "constraints.txt"
    torch = next(line for line in lock.read_text().split() if line.startswith("torch=="))
    call(*pip, "-c", lock, torch, cwd=folder)
    call(*pip, "-c", lock, wheel, cwd=folder)
    return python


def main() -> None:
    """Build, install, run, look."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="borrow this environment's packages")
    fast = parser.parse_args().fast
    with tempfile.TemporaryDirectory(prefix="neuralgraph_wheel_") as name:
        base = Path(name).resolve()
        empty = base / "empty"
        (base / "wheel").mkdir()
        empty.mkdir()
        python = install(build(base / "wheel"), base / "venv", fast=fast)
        where = "import neuralgraph, pathlib; print(pathlib.Path(neuralgraph.__file__).parent)"
        found = subprocess.run(
            [python, "-c", where], cwd=empty, capture_output=True, text=True, check=True
        ).stdout.strip()
        if not Path(found).resolve().is_relative_to(base):
            sys.exit(f"wheel-check failed: neuralgraph is imported from {found}, not the wheel")
        call(python, "-m", "neuralgraph.train", f"+experiment={EXPERIMENT}", cwd=empty)
        folders = [path.parent for path in empty.glob(f"runs/{EXPERIMENT}/*/scorecard.json")]
        if len(folders) != 1 or not (folders[0] / "report.html").is_file():
            sys.exit("wheel-check failed: the run left no scorecard.json and report.html")
        metrics = json.loads((folders[0] / "scorecard.json").read_text(encoding="utf-8"))["metrics"]
        print("wheel-check passed:", ", ".join(f"{k} {v:.4g}" for k, v in metrics.items()))


if __name__ == "__main__":
    main()
