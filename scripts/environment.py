"""Make .venv what this checkout needs; do nothing, at once, where it already is.

Run by make with whatever Python 3 the machine has (standard library only, no syntax newer than
3.8), it finds Python 3.11 or later, creates .venv, installs the locked torch first (so that an
installation from a CPU index is kept), then the project in place with the asked extras.

    python3 scripts/environment.py sbml            # what `make run` needs
    python3 scripts/environment.py sbml dev docs   # what `make test` and `make docs` need
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)
CANDIDATES = ("python3.11", "python3.12", "python3.13", "python3", "python")


def environment() -> Path:
    """Folder of the virtual environment (NEURALGRAPH_VENV, else .venv)."""
    return Path(os.environ.get("NEURALGRAPH_VENV") or ROOT / ".venv").absolute()


def python_of(folder: Path) -> Path:
    """Interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def answers(command: "list[str]") -> bool:
    """Whether a command runs and succeeds."""
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_python() -> str:
    """Python 3.11 or later that can create environments."""
    test = f"import sys; sys.exit(not sys.version_info >= {OLDEST})"
    old_enough = []
    for name in (os.environ.get("PYTHON"), *CANDIDATES, sys.executable):
        path = shutil.which(name) if name else None
        if path and answers([path, "-c", test]):
            old_enough.append(path)
            if answers([path, "-c", "import venv, ensurepip"]):
                return path
    if old_enough:
        sys.exit(
            f"{old_enough[0]} cannot create virtual environments (no ensurepip): install it, on "
            "Debian and Ubuntu with  apt-get install python3-venv"
        )
    sys.exit(
        "neuralgraph needs Python 3.11 or later, and none of "
        f"{', '.join(CANDIDATES)} is: install one, or name it with  PYTHON=/path/to/python make …"
    )


def fingerprint() -> str:
    """Hash of everything that decides what is installed."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    digest.update(str(ROOT).encode())
    return digest.hexdigest()


def stamped(stamp: Path, now: str) -> "set[str]":
    """Extras that a finished installation of this very state has recorded."""
    if not stamp.is_file():
        return set()
    lines = stamp.read_text(encoding="utf-8").split()
    return set(lines[1:]) if lines[:1] == [now] else set()


def main(extras: "list[str]") -> None:
    """Create or complete the environment."""
    folder, now = environment(), fingerprint()
    python = python_of(folder)
    stamp = folder / "neuralgraph.stamp"
    alive = python.exists() and answers([str(python), "-c", "import pip"])
    done = stamped(stamp, now)
    if alive and {"base", *extras} <= done:
        return
    if not alive:  # none yet, or one whose creation was interrupted
        base = find_python()
        print(f"creating {folder} with {base}", flush=True)
        subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
        done = set()
    stamp.unlink(missing_ok=True)
    wanted = sorted({*extras, *done} - {"base"})
    lock = ROOT / "constraints.txt"
    torch = next(
        line for line in lock.read_text(encoding="utf-8").split() if line.startswith("torch==")
    )
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install += ["--constraint", str(lock)]
    target = f"{ROOT}[{','.join(wanted)}]" if wanted else str(ROOT)
    print(f"installing {torch} (the first time takes minutes)", flush=True)
    subprocess.run([*install, torch], check=True)
    print(f"installing neuralgraph[{','.join(wanted)}] with the locked versions", flush=True)
    subprocess.run([*install, "--editable", target], check=True)
    stamp.write_text("\n".join([now, "base", *wanted]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"the environment could not be made: {' '.join(map(str, error.cmd))} failed")
