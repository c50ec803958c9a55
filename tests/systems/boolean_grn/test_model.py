"""Classifiers: equivariance (theorem 1), sizes 1 to 20, switches."""

from __future__ import annotations

import pytest
import torch

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn.circuit import SignedCircuit, random_circuits
from neuralgraph.systems.boolean_grn.dataset import GRNBatch, circuit_batch, pyg_batch
from neuralgraph.systems.boolean_grn.features import SPECTRA
from neuralgraph.systems.boolean_grn.model import GRNRows


def drawn(n_circuit: int, n_gene: int) -> torch.Tensor:
    circuits = random_circuits(
        n_circuit, n_gene, in_degree=min(2.2, n_gene), share_inhibition=0.5,
        generator=numpy_generator(0, "model"),
    )  # fmt: skip
    return torch.from_numpy(circuits).float()


@pytest.fixture(scope="module")
def model(learning, small):
    model = learning.rows(small[2].spec)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # far from the start
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("row", ["informed", "structure"])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 20])
def test_theorem_1_relabelling_genes_changes_logits_by_less_than_1e_5(model, row, n):
    adjacency = drawn(12, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    turned = adjacency[:, order][:, :, order]
    n_gene = torch.full((12,), n)
    with torch.no_grad():
        one = model.row(row)(GRNBatch(adjacency, n_gene))
        other = model.row(row)(GRNBatch(turned, n_gene))
    assert (one.logits - other.logits).abs().max() < 1e-5
    assert torch.allclose(one.node[:, order], other.node, atol=1e-5 * float(one.node.abs().max()))


def test_padding_and_neighbours_in_the_batch_change_nothing(model):
    texts = ["A -| A", "A -> B, B -| C, C -> A", "A -| B, B -| A", "A -> B, B -> C, C -> D, D -| B"]
    circuits = [SignedCircuit.from_text(text) for text in texts]
    with torch.no_grad():
        together = model(circuit_batch(circuits))
        for at, circuit in enumerate(circuits):
            alone = model(circuit_batch([circuit]))
            for row in model.rows:
                gap = (together[row].logits[at] - alone[row].logits[0]).abs().max()
                assert gap < 1e-5 * max(1.0, float(alone[row].logits.abs().max()))


def test_large_batches_are_taken_in_parts_and_cached_features_change_nothing(model, small):
    data = small[2]
    index = data.starts(1)[:300]
    from neuralgraph.systems.boolean_grn import model as module

    with torch.no_grad():
        plain = model.row("informed")(data.batch(index)).logits
        cached = data.described(model.describe, model.key)
        assert torch.equal(cached.batch(index).key and plain, plain)
        assert torch.allclose(model.row("informed")(cached.batch(index)).logits, plain, atol=1e-4)
        before, module.CHUNK = module.CHUNK, 64
        try:
            parts = model.row("informed")(data.batch(index)).logits
        finally:
            module.CHUNK = before
    assert torch.allclose(parts, plain, atol=1e-4)


def test_rows_with_other_spectra_do_not_share_their_cached_features(learning, small):
    few = {**learning.ROW, "spectra": ["laplacian"], "use_dynamics": False}
    generator = torch.Generator().manual_seed(0)
    model = GRNRows(
        small[2].spec, generator=generator, informed=learning.ROW, structure=few, explorer=None
    )
    index = small[2].starts(1)[:20]
    cached = small[2].described(model.describe, model.key).batch(index)
    assert cached.features is not None and len(cached.features) == 3
    with torch.no_grad():
        for row in model.rows:
            plain = model.row(row)(small[2].batch(index)).logits
            assert torch.allclose(model.row(row)(cached).logits, plain, atol=1e-5)


def test_another_temperature_makes_cached_features_useless(model, small):
    data = small[2].described(model.describe, model.key)
    batch = data.batch(data.starts(1)[:20])
    with torch.no_grad():
        warm = model.row("informed")(batch).logits
        model.set_tau(2.0)
        try:
            cold = model.row("informed")(batch).logits
        finally:
            model.set_tau(10.0)
    assert not torch.allclose(warm, cold, atol=1e-3)


@pytest.mark.parametrize(
    "switch",
    [
        {"spectra": []},
        *({"spectra": [name for name in SPECTRA if name != left_out]} for left_out in SPECTRA),
        *({f"use_{part}": False} for part in ("dynamics", "relations", "interventions")),
    ],
)
def test_every_part_can_be_switched_off(learning, small, switch):
    model = learning.rows(small[2].spec, structure=False, **switch)
    batch = small[2].batch(small[2].starts(1)[:8])
    terms = learning.objective()(model, batch)
    assert torch.isfinite(terms.total)


def test_the_structure_row_simulates_nothing(model, monkeypatch):
    from neuralgraph.systems.boolean_grn import dynamics

    def refuse(*_):
        raise AssertionError("simulated")

    monkeypatch.setattr(dynamics, "statistics", refuse)
    batch = circuit_batch([SignedCircuit.from_text("A -| B, B -| A")])
    model.row("structure")(batch)
    with pytest.raises(AssertionError, match="simulated"):
        model.row("informed")(batch)


def test_gradients_reach_relaxed_adjacency_through_the_dynamics(learning, small):
    model = learning.rows(small[2].spec, structure=False, spectra=[], tau=2.0)
    adjacency = (0.7 * drawn(4, 3)).requires_grad_()
    model.row("informed")(GRNBatch(adjacency, torch.full((4,), 3))).logits.sum().backward()
    assert adjacency.grad is not None and adjacency.grad.abs().max() > 0


def test_wrong_use_is_refused(learning, small, model):
    with pytest.raises(ConfigError, match="1 to 20"):
        model(GRNBatch(torch.zeros(1, 21, 21), torch.tensor([21])))
    with pytest.raises(ConfigError, match="informed, structure"):
        learning.rows(small[2].spec, informed=False, structure=False)
    with pytest.raises(ConfigError, match=r"model\.informed"):
        learning.rows(small[2].spec, n_hiden=3)
    with pytest.raises(DataError, match="at least one"):
        circuit_batch([])


def test_pyg_graphs_and_circuits_are_the_same_batch():
    from torch_geometric.data import Batch, Data

    circuits = [SignedCircuit.from_text(t) for t in ("A -> B, B -| C", "A -| A", "A -> B, B -> A")]
    graphs = []
    for circuit in circuits:
        at = torch.from_numpy(circuit.adjacency.copy()).long()
        edge = at.nonzero().T
        graphs.append(
            Data(edge_index=edge, edge_sign=at[edge[0], edge[1]], num_nodes=circuit.n_gene)
        )
    expected, found = circuit_batch(circuits), pyg_batch(Batch.from_data_list(graphs))
    assert torch.equal(expected.adjacency, found.adjacency)
    assert torch.equal(expected.n_gene, found.n_gene)
    assert torch.equal(pyg_batch(graphs[0]).adjacency, expected.adjacency[:1])
    with pytest.raises(DataError, match="edge_sign"):
        pyg_batch(Data(edge_index=edge, num_nodes=2))
    twice = torch.tensor([[0, 0], [1, 1]])
    with pytest.raises(DataError, match="twice"):
        pyg_batch(Data(edge_index=twice, edge_sign=torch.tensor([1, -1]), num_nodes=2))
