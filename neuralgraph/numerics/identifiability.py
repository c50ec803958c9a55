r"""Which parameters a linear sensitivity determines, which only in combination, which not at all.

A parameter vector $\theta$ enters data as $A\,\theta$ (or, near a point, through the Jacobian
$A$). Directions in the null space of $A$ leave the data as they are. Columns are scaled to unit
length first, so that the answer does not depend on the units of the parameters. Works on the
matrix itself, or on its Gram matrix $A^\top A$ when $A$ is too tall to hold.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# (torch types parts of its own methods as unknown)
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# A column this much shorter than the longest one is a column of zeros.
ZERO_COLUMN = 1e-15
# Entries of an orthonormal null basis below this are rounding.
PRESENT = 1e-6


@dataclass(frozen=True)
class NullSpace:
    """Null space of a column-scaled matrix.

    Args:
        basis: Orthonormal basis in scaled coordinates, ``(n_par, n_null)`` float64.
        length: Length of each column, ``(n_par,)``; a parameter is its scaled coordinate
            divided by it. Zero for columns that never act.
        singular_values: Of the column-scaled matrix, descending; what was computed of them.
        rtol: Relative tolerance on singular values below which a direction is null.
    """

    basis: Tensor
    length: Tensor
    singular_values: Tensor
    rtol: float

    @property
    def n_par(self) -> int:
        """Number of parameters."""
        return self.basis.shape[0]

    @property
    def rank(self) -> int:
        """Number of independent combinations that the data determine."""
        return self.basis.shape[0] - self.basis.shape[1]


@dataclass(frozen=True)
class Group:
    """Parameters that the data determine only together.

    Args:
        members: Their indices, ascending.
        n_null: Dimension of what stays free among them.
        combination: Weights ``w`` of the single combination ``w @ theta[members]`` that is
            determined, scaled so that its first weight is 1; ``None`` where none or several are.
    """

    members: tuple[int, ...]
    n_null: int
    combination: Tensor | None


def null_space(matrix: Tensor, *, rtol: float) -> NullSpace:
    """Null space by singular value decomposition of the column-scaled matrix.

    Law: scaling the columns by non-zero numbers changes ``length`` only.

    Args:
        matrix: ``(n_obs, n_par)``, finite.
        rtol: Singular values at most ``rtol`` times the largest are zero.
    Returns:
        Basis, column lengths and singular values.
    Raises:
        ValueError: the matrix is not two-dimensional or not finite.
    Source:
        Golub & Van Loan (2013), section 2.5.

    >>> import torch
    >>> null_space(torch.tensor([[1.0, 2.0], [2.0, 4.0]]), rtol=1e-8).rank
    1
    """
    if matrix.ndim != 2 or not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"matrix must be finite and (n_obs, n_par), got {tuple(matrix.shape)}")
    scaled, length = _scale_columns(matrix.double())
    n_par = scaled.shape[1]
    _, values, right = torch.linalg.svd(scaled, full_matrices=True)
    largest = float(values[0]) if values.numel() else 0.0
    rank = int((values > rtol * largest).sum()) if largest > 0 else 0
    basis = right[rank:].T.contiguous()
    return NullSpace(basis.reshape(n_par, n_par - rank), length, values, rtol)


def null_space_of_gram(
    gram: Tensor, *, rtol: float, apply: Callable[[Tensor], Tensor] | None = None
) -> NullSpace:
    r"""Null space of $A$ from $A^\top A$, at a cost that does not depend on the rows of $A$.

    Eigenvalues of a Gram matrix are squared singular values, so rounding hides singular values
    below about 1e-7 of the largest. With ``apply`` (the product $A x$ itself) the suspicious
    directions are decided at full precision: the few eigenvectors below 1e-5 are multiplied by
    $A$ and their singular values are taken anew (Rayleigh–Ritz). Without it, ``rtol`` is
    raised to what float64 can tell apart.

    Args:
        gram: $A^\top A$, ``(n_par, n_par)`` symmetric.
        rtol: Relative tolerance on the singular values of the column-scaled $A$.
        apply: Maps ``(n_par, n_col)`` to ``(n_obs, n_col)``, the product with $A$; or to any
            matrix with the same Gram matrix.
    Returns:
        Basis, column lengths and singular values.
    Raises:
        ValueError: the matrix is not square or not finite.
    Source:
        Own; Parlett (1998), chapter 11 for Rayleigh–Ritz.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not bool(torch.isfinite(gram).all()):
        raise ValueError(f"gram must be square and finite, got shape {tuple(gram.shape)}")
    gram = gram.double()
    length = gram.diagonal().clamp_min(0).sqrt()
    longest = float(length.max()) if length.numel() else 0.0
    length = torch.where(length > ZERO_COLUMN * longest, length, torch.zeros_like(length))
    inverse = torch.where(length > 0, 1 / length.clamp_min(1e-300), torch.zeros_like(length))
    values, vectors = torch.linalg.eigh(inverse[:, None] * gram * inverse)
    singular = values.clamp_min(0).sqrt()
    largest = float(singular[-1]) if singular.numel() else 0.0
    if largest == 0:
        basis = torch.eye(gram.shape[0], dtype=torch.float64)
        return NullSpace(basis, length, singular, rtol)
    resolution = (gram.shape[0] * torch.finfo(torch.float64).eps) ** 0.5
    if apply is None:
        null = singular <= max(rtol, resolution) * largest
        return NullSpace(vectors[:, null], length, singular.flip(0), rtol)
    suspicious = singular <= max(1e-5, 10 * resolution) * largest
    if not bool(suspicious.any()):
        return NullSpace(vectors[:, :0], length, singular.flip(0), rtol)
    candidate = vectors[:, suspicious]
    image = apply(inverse[:, None] * candidate).double()
    # The image is tall and narrow: the triangular factor has its singular values.
    factor = torch.linalg.qr(image, mode="r")[1] if image.shape[0] > image.shape[1] else image
    _, small, right = torch.linalg.svd(factor, full_matrices=True)
    rank = int((small > rtol * largest).sum())
    basis = candidate @ right[rank:].T
    padded = torch.zeros(candidate.shape[1], dtype=torch.float64)
    padded[: small.numel()] = small
    exact = torch.cat([singular[~suspicious].flip(0), padded])
    return NullSpace(basis, length, exact, rtol)


def determined(space: NullSpace) -> Tensor:
    """Parameters whose value the data determine: those outside the null space.

    Args:
        space: A null space.
    Returns:
        ``(n_par,)`` bool.
    Source:
        Own: the row of the orthonormal null basis is zero (to 1e-6).
    """
    return space.basis.norm(dim=1) <= PRESENT


def groups(space: NullSpace) -> list[Group]:
    """Undetermined parameters, split into sets that are entangled with each other.

    Two parameters belong together when the orthogonal projector onto the null space couples
    them. A parameter alone in its group does not act on the data at all.

    Args:
        space: A null space.
    Returns:
        Groups in the order of their first member.
    Source:
        Own.

    >>> import torch
    >>> a = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> [(g.members, g.combination.tolist()) for g in groups(null_space(a, rtol=1e-8))]
    [((0, 1), [1.0, 1.0])]
    """
    free = (~determined(space)).nonzero().flatten().tolist()
    projector = space.basis[free] @ space.basis[free].T
    coupled = projector.abs() > PRESENT
    unseen = set(range(len(free)))
    result: list[Group] = []
    while unseen:
        front = [min(unseen)]
        unseen.discard(front[0])
        members: list[int] = []
        while front:
            here = front.pop()
            members.append(here)
            for there in coupled[here].nonzero().flatten().tolist():
                if there in unseen:
                    unseen.discard(there)
                    front.append(there)
        members.sort()
        index = torch.tensor(members)
        block = projector[index][:, index]
        n_null = round(float(block.trace()))
        combination = None
        if len(members) - n_null == 1:
            # The complement of the null space inside the group: one direction.
            direction = torch.linalg.eigh(block)[1][:, 0]
            original = torch.tensor([free[m] for m in members])
            weight = direction * space.length[original]
            combination = weight / weight[0]
            whole = combination.round()
            if bool(((combination - whole).abs() < 1e-6 * combination.abs()).all()):
                combination = whole
        result.append(Group(tuple(free[m] for m in members), n_null, combination))
    return sorted(result, key=lambda group: group.members)


def _scale_columns(matrix: Tensor) -> tuple[Tensor, Tensor]:
    length = matrix.norm(dim=0)
    longest = float(length.max()) if length.numel() else 0.0
    length = torch.where(length > ZERO_COLUMN * longest, length, torch.zeros_like(length))
    inverse = torch.where(length > 0, 1 / length.clamp_min(1e-300), torch.zeros_like(length))
    return matrix * inverse, length
