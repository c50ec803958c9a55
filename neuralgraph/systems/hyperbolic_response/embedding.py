"""A map of perturbations in the Poincaré disk, from distances between them."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralgraph.core.seeding import torch_generator
from neuralgraph.nn.hyperbolic import geometry
from neuralgraph.systems.hyperbolic_response.baselines import Known, shrunk
from neuralgraph.systems.hyperbolic_response.model import GROUPS, ResponseModel


def model_distance(model: ResponseModel) -> Tensor:
    """Geodesic distance of the perturbed genes in the model, ``(P, P)``.

    Mean over forms, folds, members and groups of questions whose kept weights come from descent,
    each in units of its own mean distance: their embeddings have no axes in common, their
    distances do. Elsewhere (a group that had no question, or directions in closed form alone) the
    embedding is still that of the start and takes part in no prediction. Where descent was kept
    nowhere the distances are those of the start: the gene graph through random weights.
    """
    moved = model.descended()  # (group, n_model)
    if not bool(moved.any()):
        moved[0] = True
    found = []
    with torch.no_grad():
        for group, is_moved in zip(GROUPS, moved, strict=True):
            points = model.embed(model.kept(group))[is_moved].double()
            distance = model.space.dist(points[:, :, None], points[:, None, :])
            found.append(distance / distance.mean((1, 2), keepdim=True).clamp_min(1e-12))
    return torch.cat(found).mean(0).cpu()


def response_distance(known: Known) -> Tensor:
    """1 - correlation of the shrunk responses of known conditions, ``(K, K)``, in [0, 2]."""
    clean = shrunk(known, control_is_exact=True).delta
    centred = clean - clean.mean(1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-9)
    return (1 - unit @ unit.T).clamp(0, 2).fill_diagonal_(0)


def disk_map(distance: Tensor, *, radius: float = 2.5, n_step: int = 250) -> Tensor:
    """Points in the Poincaré disk whose geodesic distances match a table, up to a scale.

    Args:
        distance: ``(n, n)``, symmetric, 0 on the diagonal.
        radius: Geodesic distance that the largest entry is drawn at, from one side to the other
            of the centre.
        n_step: Steps of the fit.
    Returns:
        ``(n, 2)`` inside the unit disk.
    """
    n = len(distance)
    wanted = 2 * radius * distance.double() / distance.max().clamp_min(1e-12)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    values, vectors = torch.linalg.eigh(-0.5 * centre @ wanted.square() @ centre)
    start = vectors[:, -2:] * values[-2:].clamp_min(1e-6).sqrt() / 2
    noise = torch.randn(n, 2, generator=torch_generator(0, "disk map"), dtype=torch.float64)
    tangent = (start.flip(1) + 1e-2 * noise).requires_grad_()
    space = geometry("poincare", learnable=False)
    step = torch.optim.Adam([tangent], lr=0.05)
    pair = torch.triu_indices(n, n, 1)
    for _ in range(n_step):
        step.zero_grad()
        points = space.expmap0(tangent)
        error = space.dist(points[pair[0]], points[pair[1]]) - wanted[pair[0], pair[1]]
        (error.square().mean()).backward()
        step.step()
    with torch.no_grad():
        return space.disk(space.expmap0(tangent))
