"""The rows beside the classifiers: what the transformer reads, what the table of ablations says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn.circuit import canonical_keys, random_circuits

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ablations, baselines = load("grn_ablations"), load("grn_baselines")


def drawn(n_circuit, n_gene):
    circuits = random_circuits(
        n_circuit, n_gene, in_degree=2.2, share_inhibition=0.5,
        generator=numpy_generator(0, "scripts"),
    )  # fmt: skip
    return circuits[(circuits != 0).any((1, 2))]


def test_the_text_a_transformer_reads_is_the_circuit_up_to_the_names_of_genes():
    circuits = drawn(50, 4)
    tokens = baselines.tokens_of(
        torch.from_numpy(circuits).double(), torch.Generator().manual_seed(0), 10
    )
    first = len(baselines.WORDS) + 1
    for circuit, row in zip(circuits, tokens.tolist(), strict=True):
        words = [token for token in row if token]
        assert words[3::4] == [3] * (len(words) // 4)  # commas
        read = torch.zeros(10, 10, dtype=torch.int8)
        for at in range(0, len(words), 4):
            read[words[at] - first, words[at + 2] - first] = 1 if words[at + 1] == 1 else -1
        expected = torch.zeros(10, 10, dtype=torch.int8)
        expected[:4, :4] = torch.from_numpy(circuit)
        assert canonical_keys(read[None].numpy()) == canonical_keys(expected[None].numpy())


@pytest.mark.parametrize("is_simulated", [False, True])
def test_plain_messages_give_one_answer_to_every_relabelling_and_padding(is_simulated):
    adjacency = torch.from_numpy(drawn(20, 4)).float()
    n_gene = torch.full((len(adjacency),), 4)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1))
    padded = torch.zeros(len(adjacency), 6, 6)
    padded[:, :4, :4] = adjacency[:, order][:, :, order]
    shown = [baselines.shown_by_dynamics(a, n_gene) for a in (adjacency, padded)]
    n_shown = tuple(getattr(shown[0], kind).shape[-1] for kind in ("node", "pair", "graph"))
    torch.manual_seed(0)
    model = baselines.PlainMessages(
        6, n_dim=16, n_layer=2, n_shown=n_shown if is_simulated else (0, 0, 0)
    )
    one, other = (
        model(a, n_gene, features if is_simulated else None)
        for a, features in zip((adjacency, padded), shown, strict=True)
    )
    assert torch.allclose(one, other, atol=1e-4)
    assert not torch.allclose(one[0], one[1:].mean(0), atol=1e-3)


def test_the_table_of_ablations_compares_variants_of_the_same_seed(tmp_path):
    file = tmp_path / "lines.jsonl"
    lines = [
        {"variant": variant, "seed": seed, "n_gene": 4, "n_test": 100, "accuracy": accuracy,
         "balanced": 0.5, "train_seconds": 2.0}
        for seed in (0, 1, 2)
        for variant, accuracy in (("all", 0.9 - 0.1 * seed), ("no relations", 0.88 - 0.1 * seed))
    ]  # fmt: skip
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    text = ablations.table(file)
    assert "| all | 3 | 0.8000 ± 0.2484 |" in text  # 0.1 · t(0.975, 2) / √3
    assert "| no relations | 3 | 0.7800 ± 0.2484 | -2.0 ± 0.0 |" in text
    file.write_text("\n".join(json.dumps(line) for line in lines[:2]) + "\n")
    assert "| no relations | 1 | 0.8800 | -2.0 | 0.500 |" in ablations.table(file)
