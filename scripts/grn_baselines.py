"""Rows beside the classifiers of ``grn_phenotype``: sequence, boosting, plain message passing.

    python scripts/grn_baselines.py --seed 0 [--row sequence|boosting|messages|simulated]
        [--steps 5000]

``messages`` passes messages between genes alone; ``simulated`` does so with what the soft dynamics
show, of genes and of pairs, switched genes included.

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
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from neuralgraph.systems.boolean_grn.dataset import Features

ROOT = Path(__file__).resolve().parent.parent
ROWS = ("sequence", "boosting", "messages", "simulated")
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

    It keeps no states of pairs and sees no spectra: the network whose accuracy the project's notes
    give as a ceiling, here with the labels of this package. With ``n_shown`` it also sees what the
    soft dynamics show: of genes at the start, of the pair on each edge, of circuits at the end.

    Args:
        n_class: Classes.
        n_dim: Width.
        n_layer: Layers.
        n_shown: Statistics of genes, pairs and circuits, zeros for a network without dynamics.

    Source:
        Hu et al., Strategies for pre-training graph neural networks (ICLR 2020).
    """

    def __init__(
        self, n_class: int, *, n_dim: int, n_layer: int, n_shown: tuple[int, int, int] = (0, 0, 0)
    ) -> None:
        super().__init__()
        n_node, n_pair, n_graph = n_shown
        self.start = nn.Parameter(torch.zeros(n_dim))
        self.node = nn.Linear(n_node, n_dim, bias=False) if n_node else None
        self.pair = nn.ModuleList(
            nn.Linear(2 * n_pair, n_dim, bias=False) for _ in range(n_layer if n_pair else 0)
        )
        self.edge = nn.Parameter(0.3 * torch.randn(n_layer, 4, n_dim))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(n_dim, 2 * n_dim), nn.ReLU(), nn.Linear(2 * n_dim, n_dim),
                nn.LayerNorm(n_dim),
            )
            for _ in range(n_layer)
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Linear(3 * n_dim + n_graph, n_dim), nn.ReLU(), nn.Linear(n_dim, n_class)
        )

    def forward(self, adjacency: Tensor, n_gene: Tensor, shown: Features | None = None) -> Tensor:
        """Class scores from ``(n_batch, n, n)``, ``(n_batch,)`` and what the dynamics show."""
        a = adjacency.float()
        relations = [a.clamp_min(0), (-a).clamp_min(0)]
        relations = [m.mT for m in relations] + relations  # to the target, and back
        mask = (torch.arange(a.shape[1]) < n_gene[:, None])[..., None]
        x = self.start.expand(*a.shape[:2], -1)
        both, pooled = None, []
        if shown is not None and self.node is not None:
            x = x + self.node(shown.node)
            both = torch.cat([shown.pair, shown.pair.transpose(1, 2)], -1)
            pooled = [shown.graph]
        for k, layer in enumerate(self.layers):
            if both is None:
                told = sum(
                    m @ torch.relu(x + e) for m, e in zip(relations, self.edge[k], strict=True)
                )
            else:
                sender = x[:, None] + self.pair[k](both)  # (batch, receiver, sender, width)
                told = sum(
                    (m[..., None] * torch.relu(sender + e)).sum(2)
                    for m, e in zip(relations, self.edge[k], strict=True)
                )
            x = x + layer(x + told)
        total = (x * mask).sum(1)
        largest = x.masked_fill(~mask, -1e9).amax(1)
        return self.head(torch.cat([total, total / n_gene[:, None], largest, *pooled], 1))


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


def shown_by_dynamics(adjacency: Tensor, n_gene: Tensor) -> Features:
    """What the soft dynamics of circuits show, at the settings of ``conf/model/grn_rows.yaml``."""
    from neuralgraph.systems.boolean_grn import dynamics
    from neuralgraph.systems.boolean_grn.dataset import Features

    settings = dynamics.DynamicsSettings(
        n_start=32, n_step=40, n_window=12, relations=False, interventions=True
    )
    n = adjacency.shape[-1]
    n_node, n_pair, n_graph = dynamics.n_statistics(settings)
    shown = Features(
        torch.zeros(len(adjacency), n, n_node),
        torch.zeros(len(adjacency), n, n, n_pair),
        torch.zeros(len(adjacency), n_graph),
    )
    for size in n_gene.unique().tolist():
        for part in (n_gene == size).nonzero()[:, 0].split(512):
            own = adjacency[part, :size, :size].float()
            node, pair, graph = dynamics.statistics(own, settings, tau=10.0)
            shown.node[part, :size] = node
            shown.pair[part, :size, :size] = pair
            shown.graph[part] = graph
    return shown


def messages_trained(
    adjacency: Tensor, n_gene: Tensor, label: Tensor, n_class: int, options: argparse.Namespace,
    *, is_simulated: bool,
) -> PlainMessages:  # fmt: skip
    """Plain message passing after all its steps of 256 circuits."""
    from neuralgraph.core.seeding import derived_seed, torch_generator

    torch.manual_seed(derived_seed(options.seed, "messages"))
    n = int(n_gene.max())
    shown = shown_by_dynamics(adjacency[:, :n, :n], n_gene) if is_simulated else None
    n_shown = (0, 0, 0)
    if shown is not None:
        n_shown = shown.node.shape[-1], shown.pair.shape[-1], shown.graph.shape[-1]
    model = PlainMessages(n_class, n_dim=96, n_layer=5, n_shown=n_shown)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, options.steps)
    generator = torch_generator(options.seed, "messages batches")
    for _ in range(options.steps):
        index = torch.randint(len(label), (256,), generator=generator)
        told = None if shown is None else shown.cut(index, n)
        loss = cross_entropy(model(adjacency[index, :n, :n], n_gene[index], told), label[index])
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
    parser.add_argument("--row", choices=ROWS, action="append")
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

    for row in options.row or ROWS:
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
        elif row in ("messages", "simulated"):
            plain = messages_trained(
                data.adjacency[train], data.n_gene[train], label[train], n_class, options,
                is_simulated=row == "simulated",
            )  # fmt: skip
            seconds = time.process_time() - began

            def passed(index: Tensor, model=plain) -> Tensor:
                found = []
                with torch.no_grad():
                    for part in index.split(256):
                        adjacency, n_gene = data.adjacency[part], data.n_gene[part]
                        told = None
                        if model.node is not None:
                            told = shown_by_dynamics(adjacency, n_gene)
                        found.append(model(adjacency, n_gene, told).argmax(1))
                return torch.cat(found)

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
