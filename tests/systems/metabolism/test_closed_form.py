"""The closed-form start of mass action: noise in the derivatives is no misfit of the law."""

from __future__ import annotations

import torch

from neuralgraph.systems.metabolism.closed_form import start_from_support


def test_noise_of_estimated_derivatives_does_not_hide_the_integers():
    g = torch.Generator().manual_seed(2)
    c = 0.5 + 2 * torch.rand(2000, 3, generator=g, dtype=torch.float64)
    v = torch.stack([0.4 * c[:, 0] * c[:, 1], 0.7 * c[:, 2]], 1)
    S = torch.tensor([[-1.0, 2.0], [-2.0, 0.0], [1.0, -1.0]], dtype=torch.float64)
    dx_dt = v @ S.T
    dx_dt = dx_dt + 0.3 * dx_dt.std() * torch.randn(dx_dt.shape, generator=g).double()
    met_sub, rxn_sub = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])
    met_all, rxn_all = S.nonzero(as_tuple=True)
    value = S[met_all, rxn_all]
    arguments = (c, dx_dt, met_sub, rxn_sub, torch.ones(3).double(), met_all, rxn_all, value.sign())
    found = start_from_support(*arguments, n_rxn=2, max_coefficient=2, misfit=float("inf"))
    assert float(found.residual.median()) > 0.1
    assert torch.equal(found.sto_all, value)
    # exact derivatives with such a residual would speak against the law: no coefficient is read
    refused = start_from_support(*arguments, n_rxn=2, max_coefficient=2)
    assert torch.equal(refused.sto_all, value.sign())
