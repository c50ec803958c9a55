r"""GRNClassifier: the phenotype of a signed circuit, by message passing on genes and on pairs.

Two kinds of states talk to each other in each layer: one of each gene, updated by PyG message
passing along the signed edges (both directions), and one of each ordered pair of genes, updated by
$e_{ij} \leftarrow e_{ij} + f(e_{ij}, e_{ji}, x_i, x_j, \max_k (u_{ik} + v_{kj}),
\sum_k g_{ik} h_{kj})$.
The pair states see triangles and walks that no message passing on genes alone can tell apart
(1-WL), and that decide feed-forward loops and the sign of a loop.

Every part is equivariant: $f(P^T G P) = P f(G)$ for genes, and the class scores do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from neuralgraph.core.bounds import Count, Positive
from neuralgraph.core.errors import ConfigError
from neuralgraph.nn.mlp import MLP
from neuralgraph.systems.boolean_grn import dynamics, features
from neuralgraph.systems.boolean_grn.dataset import Features, GRNBatch, GRNSpec
from neuralgraph.systems.boolean_grn.policy import CircuitPolicy

N_GENE_MAX = 20
CHUNK = 2048


@dataclass(frozen=True)
class GRNOutput:
    """What a classifier says about a batch.

    Args:
        logits: ``(n_batch, n_phenotype)``.
        embedding: Of the circuit, on the unit sphere, ``(n_batch, n_embedding)``.
        node: Final states of the genes, ``(n_batch, n, n_hidden)``.
        attractors: Cycle (logit), bistable (logit), log(1 + number), ``(n_batch, 3)``.
        foretold: What the network expects the soft dynamics to show: statistics of genes, pairs
            and circuits.
    """

    logits: Tensor
    embedding: Tensor
    node: Tensor
    attractors: Tensor
    foretold: Features


class SignedConvolution(MessagePassing):
    """Messages along signed edges, in both directions, with the state of the pair on the way.

    Args:
        n_hidden: Width of gene states.
        n_pair: Width of pair states.
        generator: Source of the initial weights.
    """

    def __init__(self, n_hidden: int, n_pair: int, *, generator: torch.Generator) -> None:
        super().__init__(aggr=["sum", "max"], node_dim=0)
        self.source = linear(n_hidden, n_hidden, generator)
        self.edge = linear(2 * n_pair, n_hidden, generator)
        self.update_mlp = MLP(
            3 * n_hidden, n_hidden, hidden_dim=n_hidden, n_layers=2, generator=generator,
            activation="silu",
        )  # fmt: skip

    def forward(self, x: Tensor, edge_index: Tensor, edge: Tensor, turned: Tensor) -> Tensor:
        """New states of the genes.

        Args:
            x: ``(n_node, n_hidden)``.
            edge_index: ``(2, n_edge)``, source and target.
            edge: State of the pair (source, target), ``(n_edge, n_pair)``.
            turned: State of the pair (target, source), ``(n_edge, n_pair)``.
        """
        told = self.edge(torch.cat([edge, turned], -1))
        pooled = self.propagate(edge_index, x=self.source(x), told=told, size=(len(x), len(x)))
        return self.update_mlp(torch.cat([x, pooled], -1))

    def message(self, x_j: Tensor, told: Tensor) -> Tensor:
        """Message of one edge."""
        return torch.nn.functional.silu(x_j + told)


class PairUpdate(nn.Module):
    r"""New states of the ordered pairs, from two-step walks through every third gene.

    $\max_k (u_{ik} + v_{kj})$ asks whether there is such a gene, whatever their number;
    $\sum_k \sigma(g_{ik}) h_{kj}$ counts.

    Source:
        own; pair states as in 2-FWL networks (Maron et al., NeurIPS 2019).
    """

    def __init__(
        self, n_hidden: int, n_pair: int, n_walk: int, *, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.widths = [n_walk] * 4 + [n_pair] * 2
        self.pair = linear(n_pair, sum(self.widths), generator)
        self.walk = linear(2 * n_walk, n_pair, generator)
        self.ends = linear(n_hidden, 2 * n_pair, generator)
        self.out = linear(n_pair, n_pair, generator)

    def forward(self, pair: Tensor, node: Tensor, is_gene: Tensor) -> Tensor:
        """``(n_batch, n, n, n_pair)``, to be added to the pair states."""
        first, second, gate, load, own, turned = self.pair(pair).split(self.widths, -1)
        absent = ~is_gene[:, None, :, None]
        first = first.masked_fill(absent, -1e4)  # a gene that is not there leads nowhere
        best = (first[:, :, :, None] + second[:, None]).amax(2)
        gate = torch.sigmoid(gate).masked_fill(absent, 0)
        total = torch.einsum("bikc,bkjc->bijc", gate, load)
        total = total * (1 + total.abs()).rsqrt()  # grows like a square root
        walks = torch.cat([torch.nn.functional.silu(best), total], -1)
        source, target = self.ends(node).chunk(2, -1)
        hidden = own + turned.transpose(1, 2) + self.walk(walks)
        hidden = hidden + source[:, :, None] + target[:, None]
        return self.out(torch.nn.functional.silu(hidden))


class GRNClassifier(nn.Module):
    """Phenotype of circuits of 1 to 20 genes.

    Args:
        spec: Classes.
        generator: Source of the initial weights.
        n_hidden: Width of gene states.
        n_pair: Width of pair states.
        n_walk: Width of two-step walks.
        n_layer: Layers.
        spectra: Operators whose spectral features are used, some of
            :data:`~neuralgraph.systems.boolean_grn.features.SPECTRA`, or none.
        use_dynamics: Soft dynamics from many starts (see :mod:`.dynamics`); without them nothing
            is simulated inside the network.
        use_relations: Comparison of resting states of one slice.
        use_interventions: Genes held on, as features of pairs.
        n_start: Starts, at most 32 whatever the circuit.
        n_step: Steps of a run, at most 40.
        n_window: Last steps in which motion is looked for.
        tau: Inverse temperature of the soft dynamics; the loop may anneal it.
    """

    tau: Tensor

    def __init__(
        self,
        spec: GRNSpec,
        *,
        generator: torch.Generator,
        n_hidden: Count,
        n_pair: Count,
        n_walk: Count,
        n_layer: Count,
        spectra: list[str],
        use_dynamics: bool,
        use_relations: bool,
        use_interventions: bool,
        n_start: Count,
        n_step: Count,
        n_window: Count,
        tau: Positive,
    ) -> None:
        super().__init__()
        self.settings = dynamics.DynamicsSettings(
            n_start, n_step, n_window, use_relations, use_interventions
        )
        self.spectra = tuple(name for name in features.SPECTRA if name in spectra)
        # rows with other spectra have blocks of other names, so that cached ones cannot be mixed up
        self.blocks = (" ".join(self.spectra),) * bool(spectra) + ("dynamics",) * use_dynamics
        self.n_hidden, self.n_pair = n_hidden, n_pair
        self.register_buffer("tau", torch.tensor(float(tau)))
        n_node, n_edge, n_graph = features.n_spectral(spectra)
        n_node += features.N_NODE_STRUCTURE
        n_edge += features.N_PAIR_STRUCTURE
        shown = dynamics.n_statistics(self.settings)
        if use_dynamics:
            n_node, n_edge, n_graph = (
                a + b for a, b in zip((n_node, n_edge, n_graph), shown, strict=True)
            )
        self.encode_node = linear(n_node, n_hidden, generator)
        self.encode_pair = linear(n_edge, n_pair, generator)
        layers = range(n_layer)
        self.node_norm = nn.ModuleList(nn.LayerNorm(n_hidden) for _ in layers)
        self.pair_norm = nn.ModuleList(nn.LayerNorm(n_pair) for _ in layers)
        self.pair_update = nn.ModuleList(
            PairUpdate(n_hidden, n_pair, n_walk, generator=generator) for _ in layers
        )
        self.convolution = nn.ModuleList(
            SignedConvolution(n_hidden, n_pair, generator=generator) for _ in layers
        )
        n_pooled = 2 * n_hidden + 3 * n_pair + n_graph
        self.pooled_norm = nn.LayerNorm(n_pooled)
        self.trunk = linear(n_pooled, 2 * n_hidden, generator)
        self.head = MLP(
            2 * n_hidden, spec.n_phenotype, hidden_dim=n_hidden, n_layers=2, generator=generator,
            activation="silu",
        )  # fmt: skip
        self.projection = linear(2 * n_hidden, n_hidden, generator)
        self.attractor_head = linear(2 * n_hidden, 3, generator)
        self.foretell = nn.ModuleList(
            [
                linear(n_hidden, shown[0], generator),
                linear(n_pair, shown[1], generator),
                linear(2 * n_hidden, shown[2], generator),
            ]
        )

    @property
    def key(self) -> str:
        """What cached features must have been computed with."""
        return f"{self.settings} tau={float(self.tau):.6g}"

    def describe(self, adjacency: Tensor, n_gene: Tensor) -> dict[str, Features]:
        """Features of padded circuits, by block; gradients pass where they are enabled.

        Raises:
            ConfigError: a circuit of more than 20 genes.
        """
        if adjacency.shape[-1] > N_GENE_MAX:
            raise ConfigError(
                f"the classifier takes circuits of 1 to {N_GENE_MAX} genes, got "
                f"{adjacency.shape[-1]}"
            )
        return {name: self._block(name, adjacency, n_gene) for name in self.blocks}

    def foretellable(self, batch: GRNBatch) -> Features:
        """Statistics of the soft dynamics of a batch: from its features, or computed."""
        if batch.features is not None and "dynamics" in batch.features and batch.key == self.key:
            return batch.features["dynamics"]
        with torch.no_grad():
            return self._block("dynamics", batch.adjacency, batch.n_gene)

    def forward(self, batch: GRNBatch) -> GRNOutput:
        """Class scores and what else the network says."""
        if not torch.is_grad_enabled() and len(batch) > CHUNK:
            parts = [self(batch.part(k, k + CHUNK)) for k in range(0, len(batch), CHUNK)]
            return _joined(parts)
        known = batch.features
        if known is None or batch.key != self.key or any(b not in known for b in self.blocks):
            known = self.describe(batch.adjacency, batch.n_gene)
        is_gene = batch.is_gene
        node_in, pair_in = features.structure(batch.adjacency)
        used = [known[name] for name in self.blocks]
        node = self.encode_node(torch.cat([node_in, *(u.node for u in used)], -1))
        pair = self.encode_pair(torch.cat([pair_in, *(u.pair for u in used)], -1))
        n_batch, n = is_gene.shape
        at, i, j = (batch.adjacency != 0).nonzero(as_tuple=True)
        # both directions; a self-edge counts once each way
        source, target = torch.cat([i, j]), torch.cat([j, i])
        place = torch.cat([at, at])
        edge_index = torch.stack([place * n + source, place * n + target])
        for k in range(len(self.convolution)):
            pair = pair + self.pair_update[k](self.pair_norm[k](pair), node, is_gene)
            edge, turned = pair[place, source, target], pair[place, target, source]
            flat = self.node_norm[k](node).flatten(0, 1)
            node = node + self.convolution[k](flat, edge_index, edge, turned).view(n_batch, n, -1)
        pooled = torch.cat(
            [*_pool(node, is_gene), *_pool_pairs(pair, is_gene), *(u.graph for u in used)], -1
        )
        circuit = torch.nn.functional.silu(self.trunk(self.pooled_norm(pooled)))
        return GRNOutput(
            logits=self.head(circuit),
            embedding=torch.nn.functional.normalize(self.projection(circuit), dim=-1),
            node=node * is_gene[..., None],
            attractors=self.attractor_head(circuit),
            foretold=Features(
                *(f(x) for f, x in zip(self.foretell, (node, pair, circuit), strict=True))
            ),
        )

    def _block(self, name: str, adjacency: Tensor, n_gene: Tensor) -> Features:
        """One block, size by size, padded with zeros."""
        n_batch, n = adjacency.shape[:2]
        tau = float(self.tau)
        whole: Features | None = None
        for size in n_gene.unique().tolist():
            chosen = (n_gene == size).nonzero()[:, 0]
            found = []
            for part in chosen.split(512):
                own = adjacency[part, :size, :size]
                if name == "dynamics":
                    node, pair, graph = dynamics.statistics(own, self.settings, tau)
                else:
                    node, pair, graph = features.spectral(own, self.spectra)
                found.append(Features(node, pair, graph))
            joined = Features(
                *(torch.cat([getattr(f, k) for f in found]) for k in ("node", "pair", "graph"))
            )
            pad = n - size
            padded = Features(
                nn.functional.pad(joined.node, (0, 0, 0, pad)),
                nn.functional.pad(joined.pair, (0, 0, 0, pad, 0, pad)),
                joined.graph,
            )
            if whole is None:
                whole = padded.map(lambda t: t.new_zeros(n_batch, *t.shape[1:]))
            whole = Features(
                *(
                    getattr(whole, k).index_copy(0, chosen, getattr(padded, k))
                    for k in ("node", "pair", "graph")
                )
            )
        assert whole is not None
        return whole


class GRNRows(nn.Module):
    """The classifier that simulates, and the one that sees structure only, side by side.

    They share nothing; the second is the honest learning question, since the first computes most of
    the answer. Training freezes one while it trains the other.

    Args:
        spec: Classes.
        generator: Source of the initial weights.
        informed: Arguments of the classifier with dynamics, or ``null`` for none.
        structure: Arguments of the classifier without, or ``null`` for none.
        explorer: Arguments of the policy that stage 5 of the curriculum trains to write circuits,
            or ``null`` for none; it classifies nothing.
    """

    def __init__(
        self,
        spec: GRNSpec,
        *,
        generator: torch.Generator,
        informed: dict[str, Any] | None,
        structure: dict[str, Any] | None,
        explorer: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        if informed is None and structure is None:
            raise ConfigError("model needs informed, structure or both")
        self.rows = nn.ModuleDict()
        for name, arguments in (("informed", informed), ("structure", structure)):
            if arguments is not None:
                try:
                    self.rows[name] = GRNClassifier(spec, generator=generator, **arguments)
                except TypeError as error:
                    raise ConfigError(f"model.{name}: {error}") from error
        if structure is not None and structure["use_dynamics"]:
            raise ConfigError("model.structure.use_dynamics must be false: that is what it is for")
        self.explorer: CircuitPolicy | None = None
        if explorer is not None:
            try:
                self.explorer = CircuitPolicy(generator=generator, **explorer)
            except TypeError as error:
                raise ConfigError(f"model.explorer: {error}") from error

    def row(self, name: str) -> GRNClassifier:
        """One classifier."""
        row = self.rows[name]
        assert isinstance(row, GRNClassifier)
        return row

    def forward(self, batch: GRNBatch) -> Mapping[str, GRNOutput]:
        """What each row says."""
        return {name: self.row(name)(batch) for name in self.rows}

    def trained(self) -> list[str]:
        """Rows that are not frozen; all of them where every one is (evaluation)."""
        live = [n for n in self.rows if any(p.requires_grad for p in self.rows[n].parameters())]
        return live or list(self.rows)

    def describe(self, adjacency: Tensor, n_gene: Tensor) -> dict[str, Features]:
        """Features that any row, or any loss term, asks for."""
        first = self.row(next(iter(self.rows)))
        result: dict[str, Features] = {}
        for name in self.rows:
            result.update(self.row(name).describe(adjacency, n_gene))
        if "dynamics" not in result:
            result["dynamics"] = first._block("dynamics", adjacency, n_gene)
        return result

    @property
    def key(self) -> str:
        """What cached features must have been computed with; rows share their settings."""
        keys = {self.row(name).key for name in self.rows}
        return keys.pop() if len(keys) == 1 else "rows differ"

    def set_tau(self, tau: float) -> None:
        """Another inverse temperature in each row."""
        for name in self.rows:
            self.row(name).tau.fill_(tau)


def linear(n_in: int, n_out: int, generator: torch.Generator) -> MLP:
    """One linear layer whose start comes from a generator."""
    return MLP(n_in, n_out, hidden_dim=1, n_layers=1, generator=generator)


def _pool(node: Tensor, is_gene: Tensor) -> list[Tensor]:
    mask = is_gene[..., None]
    total = (node * mask).sum(1)
    return [total / mask.sum(1), node.masked_fill(~mask, -torch.inf).amax(1)]


def _pool_pairs(pair: Tensor, is_gene: Tensor) -> list[Tensor]:
    mask = (is_gene[:, :, None] & is_gene[:, None])[..., None]
    eye = torch.eye(pair.shape[1], dtype=torch.bool, device=pair.device)[..., None]
    off = pair.masked_fill(~mask | eye, -10.0).amax((1, 2))
    own = pair.masked_fill(~mask | ~eye, -10.0).amax((1, 2))
    return [(pair * mask).sum((1, 2)) / mask.sum((1, 2)), off, own]


def _joined(parts: list[GRNOutput]) -> GRNOutput:
    def cat(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    def told(name: str) -> Tensor:
        return torch.cat([getattr(part.foretold, name) for part in parts])

    return GRNOutput(
        cat("logits"), cat("embedding"), cat("node"), cat("attractors"),
        Features(told("node"), told("pair"), told("graph")),
    )  # fmt: skip
