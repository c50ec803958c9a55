"""Rows beside the classifiers of ``grn_phenotype``: a token transformer and gradient boosting.

    python scripts/grn_baselines.py --seed 0 [--row sequence|boosting] [--steps 1000]

The same circuits as ``python -m neuralgraph.train +experiment=grn_phenotype seed=SEED`` are learnt
from and judged by; every line of the output is one size. Seconds are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("activates", "inhibits", ",")


class TokenTransformer(nn.Module):
    """A small encoder over the document's text form, ``A inhibits B , B activates C``.

    Args:
        n_gene: Gene names there are.
        n_class: Classes.
        n_dim: Width.
        n_layer: Layers.
    """

    def __init__(self, n_gene: int, n_class: int, *, n_dim: int, n_layer: int) -> None:
        super().__init__()
        self.token = nn.Embedding(n_gene + len(WORDS) + 1, n_dim, padding_idx=0)
        self.place = nn.Embedding(512, n_dim)
        layer = nn.TransformerEncoderLayer(
            n_dim, 4, 2 * n_dim, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, n_layer, enable_nested_tensor=False)
        self.head = nn.Linear(n_dim, n_class)

    def forward(self, tokens: Tensor) -> Tensor:
        """Class scores from ``(n_batch, n_token)``; 0 is padding."""
        is_pad = tokens == 0
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        x = self.encoder(x, src_key_padding_mask=is_pad)
        keep = (~is_pad)[..., None]
        return self.head((x * keep).sum(1) / keep.sum(1))


def tokens_of(adjacency: Tensor, generator: torch.Generator, n_name: int) -> Tensor:
    """Text of each circuit as tokens, edges in random order, genes under random names."""
    rows = []
    for matrix in adjacency:
        names = torch.randperm(n_name, generator=generator) + len(WORDS) + 1
        edges = matrix.nonzero()
        edges = edges[torch.randperm(len(edges), generator=generator)]
        sign = matrix[edges[:, 0], edges[:, 1]]
        verb = torch.where(sign > 0, 1, 2)
        row = torch.stack(
            [names[edges[:, 0]], verb, names[edges[:, 1]], torch.full_like(verb, 3)], 1
        )
        rows.append(row.flatten()[:-1])
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def motif_features(adjacency: Tensor) -> np.ndarray:
    """What one may count in a circuit: genes, degrees, walks, loops, motifs, Laplacian spectrum."""
    from neuralgraph.systems.boolean_grn import constraints, dynamics, features

    a = adjacency.float()
    activates, inhibits = a.clamp_min(0), (-a).clamp_min(0)
    node, _ = features.structure(a)
    _, _, graph = features.spectral(a)
    eye = torch.eye(a.shape[-1])
    act, inh = activates * (1 - eye), inhibits * (1 - eye)
    forward = [
        torch.einsum("bij,bik,bjk->b", x, y, z)
        for x in (act, inh) for y in (act, inh) for z in (act, inh)
    ]  # fmt: skip
    columns = [
        torch.full((len(a), 1), float(a.shape[-1])),
        torch.cat([node.sum(1), node.amax(1), node.amin(1)], 1),
        graph,
        torch.stack(forward, 1),
        torch.stack([(x * y.mT).sum((1, 2)) for x, y in ((act, act), (act, inh), (inh, inh))], 1),
        torch.stack([(x @ y).sum((1, 2)) for x in (act, inh) for y in (act, inh)], 1),
        dynamics.input_genes(a).float().sum(1, keepdim=True),
        constraints.violations(a),
        torch.stack(constraints.loops(a), 1),
    ]
    return torch.cat(columns, 1).numpy()


def by_size(function, adjacency: Tensor, n_gene: Tensor) -> np.ndarray:
    """A function of circuits of one size, for circuits of several."""
    result = None
    for n in n_gene.unique().tolist():
        chosen = (n_gene == n).nonzero()[:, 0]
        value = function(adjacency[chosen, :n, :n])
        if result is None:
            result = np.zeros((len(n_gene), value.shape[1]), dtype=np.float32)
        result[chosen.numpy()] = value
    assert result is not None
    return result


def main() -> None:
    """Train the rows asked for and print their scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--row", choices=["sequence", "boosting"], action="append")
    parser.add_argument("--steps", type=int, default=1000, help="of the transformer")
    options = parser.parse_args()

    from hydra import compose, initialize_config_dir

    from neuralgraph import pipeline
    from neuralgraph.cli import plain
    from neuralgraph.config import CONFIG_FOLDER
    from neuralgraph.core.seeding import derived_seed, torch_generator
    from neuralgraph.core.threads import limit_threads
    from neuralgraph.systems.boolean_grn.metrics import balanced_accuracy, confusion_matrix
    from neuralgraph.systems.boolean_grn.simulator import NATURAL

    limit_threads(1)
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        config = plain(compose("train", ["+experiment=grn_phenotype", f"seed={options.seed}"]))
    parts = pipeline.compose(config)
    recording, truth = parts.simulator.simulate(options.seed)
    given = parts.simulator.reveal(recording, truth, **config["prior"])
    data = parts.dataset(recording, given)
    assert truth is not None
    label = truth.parameters["label"]
    train = data.train
    generator = torch_generator(options.seed, "baselines")
    n_class = data.spec.n_phenotype

    for row in options.row or ["sequence", "boosting"]:
        began = time.process_time()
        if row == "boosting":
            from sklearn.ensemble import HistGradientBoostingClassifier

            x = by_size(motif_features, data.adjacency[train], data.n_gene[train])
            fitted = HistGradientBoostingClassifier(
                max_iter=150, random_state=derived_seed(options.seed, "boosting") % 2**31
            ).fit(x, label[train].numpy())

            def boosted(index: Tensor, model=fitted) -> Tensor:
                x = by_size(motif_features, data.adjacency[index], data.n_gene[index])
                return torch.from_numpy(model.predict(x))

            predict = boosted
        else:
            n_name = data.adjacency.shape[-1]
            torch.manual_seed(derived_seed(options.seed, "transformer"))
            model = TokenTransformer(n_name, n_class, n_dim=64, n_layer=3)
            optimizer = torch.optim.Adam(model.parameters())
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, options.steps)
            for _ in range(options.steps):
                index = train[torch.randint(len(train), (128,), generator=generator)]
                tokens = tokens_of(data.adjacency[index], generator, n_name)
                loss = cross_entropy(model(tokens), label[index])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            model.eval()

            def read(index: Tensor, model=model, n_name=n_name) -> Tensor:
                with torch.no_grad():
                    found = [
                        model(tokens_of(data.adjacency[part], generator, n_name)).argmax(1)
                        for part in index.split(256)
                    ]
                return torch.cat(found)

            predict = read
        seconds = time.process_time() - began
        for size in config["evaluation"]["sizes"]:
            index = data.test_index(size)
            predicted = predict(index)
            is_natural = data.use[index] == NATURAL
            right = (predicted == label[index])[is_natural].double().mean()
            counts = confusion_matrix(label[index], predicted, n_class)
            line = {
                "row": row, "seed": options.seed, "n_gene": size,
                "accuracy": round(float(right), 4),
                "balanced_accuracy": round(balanced_accuracy(counts), 4),
                "train_seconds": round(seconds, 1),
            }  # fmt: skip
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
