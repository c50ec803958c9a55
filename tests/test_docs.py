"""The documentation names what exists, and builds without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GROUPS = ("loop", "loss", "model", "simulator")

# Every key that documents 001 and 002 name in their configs, with the short forms of their logs.
DOCUMENT_KEYS = """
    seed learning_rate_start learning_rate_S_start learning_rate_k learning_rate_node
    learning_rate_sub learning_rate_embedding learning_rate_embedding_start n_epochs n_epochs_init
    first_coeff_L1 batch_size data_augmentation_loop recurrent_training time_step coeff_S_L1
    coeff_S_L2 coeff_S_integer coeff_mass_conservation coeff_MLP_sub_diff coeff_MLP_node_L1
    coeff_MLP_sub_norm coeff_k_floor k_floor_threshold freeze_stoichiometry hidden_dim_sub
    n_layers_sub hidden_dim_node n_layers_node claude.n_epochs claude.data_augmentation_loop
    claude.n_iter_block claude.ucb_c lr lr_S lr_k lr_node lr_sub lr_emb lr_embedding coeff_mass
"""


def vocabulary() -> str:
    return (DOCS / "vocabulary.md").read_text(encoding="utf-8")


def keys_of(group: str) -> set[str]:
    """Dotted keys of every choice of a config group."""
    found: set[str] = set()

    def collect(node: dict, prefix: str) -> None:
        for key, value in node.items():
            found.add(prefix + str(key))
            if isinstance(value, dict):
                collect(value, f"{prefix}{key}.")

    for path in (ROOT / "conf" / group).glob("*.yaml"):
        collect(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, f"{group}.")
    return found


@pytest.mark.parametrize("key", DOCUMENT_KEYS.split())
def test_the_vocabulary_maps_every_key_of_the_documents(key):
    first_cells = re.findall(r"^\| (.+?) \|", vocabulary(), re.M)
    assert any(f"`{key}`" in cell or f"`{key}:" in cell for cell in first_cells)


@pytest.mark.parametrize("group", GROUPS)
def test_the_vocabulary_names_only_config_keys_that_exist(group):
    # simulator.seed is added to every simulator by the pipeline, not by a file of the group
    named = set(re.findall(rf"`({group}\.[A-Za-z_][\w.]*)\b(?!\*)", vocabulary()))
    named -= {"simulator.seed", "model.a", "loop.learning_rate_"}
    assert named <= keys_of(group), sorted(named - keys_of(group))
    assert named, "the page names no key of this group: the pattern is wrong"


def test_every_choice_that_the_pages_name_exists():
    missing = []
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        for group, choice in re.findall(r"\b(loop|model|simulator|budget|logger)=(\w+)", text):
            if not (ROOT / "conf" / group / f"{choice}.yaml").is_file():
                missing.append(f"{page.name}: {group}={choice}")
    assert missing == []


def test_every_package_path_that_the_pages_name_exists():
    missing = []
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        for module in re.findall(r"\bneuralgraph(?:\.\w+)+", text):
            names = module.split(".")
            stems = [ROOT.joinpath(*names[:n]) for n in range(len(names), 1, -1)][:2]
            if not any(p.is_dir() or p.with_suffix(".py").is_file() for p in stems):
                missing.append(f"{page.name}: {module}")
    assert missing == []


@pytest.mark.long
def test_the_pages_build_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    answer = subprocess.run(
        [*command, "-d", str(tmp_path / "cache"), str(DOCS), str(tmp_path / "html")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert (tmp_path / "html" / "metrics.html").is_file()
