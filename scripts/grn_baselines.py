"""Rows beside the classifiers of ``grn_phenotype``: sequence, boosting, plain message passing.

    python scripts/grn_baselines.py --seed 0 [--row sequence|boosting|messages] [--steps 5000]

The same circuits as ``python -m neuralgraph.train +experiment=grn_phenotype seed=SEED`` are learnt
from and judged by; every line of the output is one size. Seconds are CPU seconds. With
``--resume FILE`` the transformer is trained in pieces of ``--piece`` steps, one for each call with
the same file; the scores come with the last piece.
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


class PlainMessages(nn.Module):
    """Message passing on genes alone: GINE layers over signed edges and their reverses.

    It sees no pairs, no spectra and no dynamics: the network whose accuracy the project's notes
    give as a ceiling of what structure tells, here with the labels of this package.

    Args:
        n_class: Classes.
        n_dim: Width.
        n_layer: Layers.

    Source:
        Hu et al., Strategies for pre-training graph neural networks (ICLR 2020).
    """

    def __init__(self, n_class: int, *, n_dim: int, n_layer: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(n_dim))
        self.edge = nn.Parameter(0.3 * torch.randn(n_layer, 4, n_dim))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(n_dim, 2 * n_dim), nn.ReLU(), nn.Linear(2 * n_dim, n_dim),
                nn.LayerNorm(n_dim),
            )
            for _ in range(n_layer)
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(3 * n_dim, n_dim), nn.ReLU(), nn.Linear(n_dim, n_class))

    def forward(self, adjacency: Tensor, n_gene: Tensor) -> Tensor:
        """Class scores from ``(n_batch, n, n)`` and ``(n_batch,)``."""
        a = adjacency.float()
        relations = [a.clamp_min(0), (-a).clamp_min(0)]
        relations = [m.mT for m in relations] + relations  # to the target, and back
        mask = (torch.arange(a.shape[1]) < n_gene[:, None])[..., None]
        x = self.start.expand(*a.shape[:2], -1)
        for layer, edge in zip(self.layers, self.edge, strict=True):
            told = sum(m @ torch.relu(x + e) for m, e in zip(relations, edge, strict=True))
            x = x + layer(x + told)
        total = (x * mask).sum(1)
        largest = x.masked_fill(~mask, -1e9).amax(1)
        return self.head(torch.cat([total, total / n_gene[:, None], largest], 1))


def tokens_of(adjacency: Tensor, generator: torch.Generator, n_name: int) -> Tensor:
    """Text of each circuit as tokens, edges in random order, genes under random names."""
    n_batch, n = adjacency.shape[:2]
    names = torch.rand(n_batch, n_name, generator=generator).argsort(1)[:, :n] + len(WORDS) + 1
    is_edge = (adjacency != 0).flatten(1)
    order = (torch.rand(is_edge.shape, generator=generator) + ~is_edge).argsort(1)
    order = order[:, : int(is_edge.sum(1).max())]
    there = is_edge.gather(1, order)
    verb = torch.where(adjacency.flatten(1).gather(1, order) > 0, 1, 2)
    source, target = names.gather(1, order // n), names.gather(1, order % n)
    following = torch.cat([there[:, 1:], torch.zeros_like(there[:, :1])], 1)  # a comma or the end
    text = torch.stack([source, verb, target, 3 * following], 2) * there[..., None]
    return text.flatten(1)[:, :-1]


def trained(
    adjacency: Tensor, label: Tensor, n_class: int, options: argparse.Namespace
) -> tuple[TokenTransformer, float] | None:
    """The transformer after all its steps and its CPU seconds; ``None`` after an earlier piece.

    Four batches of 128 are drawn together and cut by length, so that little padding is read.
    """
    from neuralgraph.core.seeding import derived_seed, torch_generator

    n_name = adjacency.shape[-1]
    torch.manual_seed(derived_seed(options.seed, "transformer"))
    model = TokenTransformer(n_name, n_class, n_dim=64, n_layer=3)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, options.steps)
    generator = torch_generator(options.seed, "transformer batches")
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first, spent = 0, 0.0
    if options.resume is not None and options.resume.is_file():
        saved = torch.load(options.resume, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        generator.set_state(saved["generator"])
        first, spent = saved["step"], saved["seconds"]
    last = min(options.steps, first + options.piece) if options.resume else options.steps
    began = time.process_time()
    for step in range(first, last, 4):
        index = torch.randint(len(label), (4 * 128,), generator=generator)
        index = index[(adjacency[index] != 0).sum((1, 2)).argsort()]
        parts_by_length = index.split(128)
        for at in torch.randperm(4, generator=generator).tolist()[: last - step]:
            part = parts_by_length[at]
            tokens = tokens_of(adjacency[part], generator, n_name)
            loss = cross_entropy(model(tokens), label[part])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    spent += time.process_time() - began
    if options.resume is not None:
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"generator": generator.get_state(), "step": last, "seconds": spent}
        torch.save(state, options.resume)
    if last < options.steps:
        sys.stderr.write(f"{last} of {options.steps} steps, {spent:.0f} CPU s: call again\n")
        return None
    return model.eval(), spent


def messages_trained(
    adjacency: Tensor, n_gene: Tensor, label: Tensor, n_class: int, options: argparse.Namespace
) -> PlainMessages:
    """Plain message passing after all its steps of 256 circuits."""
    from neuralgraph.core.seeding import derived_seed, torch_generator

    torch.manual_seed(derived_seed(options.seed, "messages"))
    model = PlainMessages(n_class, n_dim=96, n_layer=5)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, options.steps)
    generator = torch_generator(options.seed, "messages batches")
    n = int(n_gene.max())
    for _ in range(options.steps):
        index = torch.randint(len(label), (256,), generator=generator)
        loss = cross_entropy(model(adjacency[index, :n, :n], n_gene[index]), label[index])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


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
    parser.add_argument("--row", choices=["sequence", "boosting", "messages"], action="append")
    parser.add_argument("--steps", type=int, default=5000, help="of the two networks")
    parser.add_argument("--resume", type=Path, help="state of the transformer, written and read")
    parser.add_argument("--piece", type=int, default=2000, help="steps of one call with --resume")
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

    for row in options.row or ["sequence", "boosting", "messages"]:
        began = time.process_time()
        if row == "boosting":
            from sklearn.ensemble import HistGradientBoostingClassifier

            x = by_size(motif_features, data.adjacency[train], data.n_gene[train])
            fitted = HistGradientBoostingClassifier(
                max_iter=150, random_state=derived_seed(options.seed, "boosting") % 2**31
            ).fit(x, label[train].numpy())
            seconds = time.process_time() - began

            def boosted(index: Tensor, model=fitted) -> Tensor:
                x = by_size(motif_features, data.adjacency[index], data.n_gene[index])
                return torch.from_numpy(model.predict(x))

            predict = boosted
        elif row == "messages":
            plain = messages_trained(
                data.adjacency[train], data.n_gene[train], label[train], n_class, options
            )
            seconds = time.process_time() - began

            def passed(index: Tensor, model=plain) -> Tensor:
                with torch.no_grad():
                    return model(data.adjacency[index], data.n_gene[index]).argmax(1)

            predict = passed
        else:
            n_name = data.adjacency.shape[-1]
            fitted_text = trained(data.adjacency[train], label[train], n_class, options)
            if fitted_text is None:
                continue
            model, seconds = fitted_text

            def read(index: Tensor, model=model, n_name=n_name) -> Tensor:
                with torch.no_grad():
                    found = [
                        model(tokens_of(data.adjacency[part], generator, n_name)).argmax(1)
                        for part in index.split(256)
                    ]
                return torch.cat(found)

            predict = read
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
