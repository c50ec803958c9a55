r"""Polynomial form of an unknown rate law that is shared by all reactions.

A velocity is $v_j = k_j f(\{(c_i, |s_{ij}|)\})$ with one function $f$ that is symmetric in the
substrates of equal coefficient. For every multiset of coefficients (a *type*, e.g. ``(1, 1, 2)``)
$f$ is written in symmetrised Legendre products of the scaled concentrations, so that it is linear
in its coefficients ``theta``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


def legendre(z: Array, degree: int) -> Array:
    """Legendre polynomials 0..degree of ``z``, stacked on a new first axis.

    >>> [float(round(p, 4)) for p in legendre(np.array(0.5), 3)]
    [1.0, 0.5, -0.125, -0.4375]
    """
    out = np.ones((degree + 1, *np.shape(z)))
    if degree:
        out[1] = z
    for d in range(1, degree):
        out[d + 1] = ((2 * d + 1) * z * out[d] - d * out[d - 1]) / (d + 1)
    return out


def _class_of(exponent: tuple[int, ...], size: tuple[int, ...], max_coefficient: int):
    """Monomials that a permutation of equal-coefficient substrates maps onto each other."""
    return tuple(
        tuple(sorted(e for e, s in zip(exponent, size, strict=True) if s == value))
        for value in range(1, max_coefficient + 1)
    )


class PolynomialLaw:
    """Index tables of the polynomial rate law.

    Args:
        max_substrates: Largest number of substrates of a reaction.
        max_coefficient: Largest |s|.
        degree: Total degree of the products of 1, 2, … substrates; the last one holds for more.

    Attributes:
        types: Multisets of coefficients, e.g. ``(1, 2)``.
        block: Slice of ``theta`` of each type.
        constant: Index in ``theta`` of the constant term of each type.
        shapes: For n substrates, all coefficient patterns ``(n_shape, n)`` in counting order.
        index: For n substrates, entry of ``theta`` of (shape, monomial).

    Source:
        own.
    """

    def __init__(self, max_substrates: int, max_coefficient: int, degree: Sequence[int]) -> None:
        self.degree, self.max_coefficient = tuple(degree), max_coefficient
        limit = [0, *self.degree, *[self.degree[-1]] * max_substrates]
        values = range(1, max_coefficient + 1)
        sizes = range(1, max_substrates + 1)
        self.types = [t for n in sizes for t in itertools.combinations_with_replacement(values, n)]
        self.monomials = {
            n: [
                e
                for e in itertools.product(range(max(self.degree) + 1), repeat=n)
                if sum(e) <= limit[sum(x > 0 for x in e)]
            ]
            for n in sizes
        }
        self.block: list[slice] = []
        self._class: list[dict] = []
        start = 0
        for size in self.types:
            table: dict = {}
            for e in self.monomials[len(size)]:
                table.setdefault(_class_of(e, size, max_coefficient), start + len(table))
            self._class.append(table)
            self.block.append(slice(start, start + len(table)))
            start += len(table)
        self.n_theta = start
        self.constant = np.array([b.start for b in self.block])
        type_of = {t: i for i, t in enumerate(self.types)}
        self.shapes = {n: list(itertools.product(values, repeat=n)) for n in sizes}
        self.index: dict[int, Array] = {}
        for n in sizes:
            rows = []
            for shape in self.shapes[n]:
                table = self._class[type_of[tuple(sorted(shape))]]
                rows.append(
                    [table[_class_of(e, shape, max_coefficient)] for e in self.monomials[n]]
                )
            self.index[n] = np.array(rows)

    def products(self, z: Array, substrates: Array) -> Array:
        """Legendre products of each reaction's substrates.

        Args:
            z: Scaled concentrations, ``(n_met, n_frame)``.
            substrates: ``(n_reaction, n)``, reactions with n substrates.

        Returns:
            ``(n_reaction, n_monomial, n_frame)``.
        """
        power = legendre(z, max(self.degree))
        n = substrates.shape[1]
        out = np.empty((len(substrates), len(self.monomials[n]), z.shape[1]))
        for q, exponent in enumerate(self.monomials[n]):
            value = power[exponent[0]][substrates[:, 0]]
            for axis in range(1, n):
                if exponent[axis]:
                    value = value * power[exponent[axis]][substrates[:, axis]]
            out[:, q] = value
        return out


@dataclass(frozen=True)
class Collocation:
    """Points at which a rate law is sampled to be written as ``theta``.

    Attributes:
        size: |s| at every point, one ``(n_point, n)`` array per type.
        concentration: mM, same shapes.
        inverse: ``(n_block, n_point)`` per type: values to coefficients by least squares.
    """

    size: list[Array]
    concentration: list[Array]
    inverse: list[Array]

    def project(self, law: Callable[[Array, Array], Array]) -> Array:
        """``theta`` of ``law(concentration, size) -> (..., n_point)``, shape ``(..., n_theta)``."""
        parts = [
            law(c, s) @ inv.T
            for c, s, inv in zip(self.concentration, self.size, self.inverse, strict=True)
        ]
        return np.concatenate(parts, axis=-1)


def collocation(
    poly: PolynomialLaw, center: float, half_width: float, rng: np.random.Generator
) -> Collocation:
    """Random points of the box ``center ± 1.05 half_width``, twice as many as unknowns."""
    size, point, inverse = [], [], []
    for t, block in zip(poly.types, poly.block, strict=True):
        n, n_block = len(t), block.stop - block.start
        n_point = max(24, 2 * n_block)
        z = rng.uniform(-1.05, 1.05, (n_point, n))
        z *= np.where(rng.random((n_point, n)) < 0.15, 1.05 / np.maximum(np.abs(z), 1e-3), 1.0)
        z = np.clip(z, -1.05, 1.05)
        # products of the reaction whose substrates are columns 0..n-1
        value = poly.products(z.T, np.arange(n)[None])[0]
        shape = poly.shapes[n].index(t)
        design = np.zeros((n_block, n_point))
        np.add.at(design, poly.index[n][shape] - block.start, value)
        size.append(np.broadcast_to(np.array(t, float), (n_point, n)))
        point.append(center + half_width * z)
        inverse.append(np.linalg.pinv(design.T, rcond=1e-10))
    return Collocation(size, point, inverse)


def random_rate_laws(
    points: Collocation,
    rng: np.random.Generator,
    n_draw: int,
    width: int = 32,
    n_message: int = 16,
) -> tuple[Array, list[Array]]:
    r"""Coefficients of rate laws $softplus(rate(\sum msg(c, |s|)))$ with untrained networks.

    Both networks have one hidden tanh layer and the default initialisation of ``nn.Linear``:
    uniform in $\pm 1/\sqrt{\text{fan in}}$. The draws describe which rate laws are plausible
    before any data are seen.

    Returns:
        ``theta``, ``(n_draw, n_theta)``, and the weights and biases of both networks in order,
        each ``(n_draw, n_in or 1, n_out)``.
    """

    def uniform(fan_in: int, *shape: int) -> Array:
        return rng.uniform(-(fan_in**-0.5), fan_in**-0.5, (n_draw, *shape))

    w1, b1 = uniform(2, 2, width), uniform(2, 1, width)
    w2, b2 = uniform(width, width, n_message), uniform(width, 1, n_message)
    w3, b3 = uniform(n_message, n_message, width), uniform(n_message, 1, width)
    w4, b4 = uniform(width, width, 1), uniform(width, 1, 1)

    def law(concentration: Array, size: Array) -> Array:
        hidden = 0.0
        for q in range(concentration.shape[1]):
            x = np.stack([concentration[:, q], size[:, q]], axis=-1)
            hidden = hidden + np.tanh(x @ w1 + b1)
        message = hidden @ w2 + concentration.shape[1] * b2
        return np.logaddexp(0, np.tanh(message @ w3 + b3) @ w4 + b4)[..., 0]

    return points.project(law), [w1, b1, w2, b2, w3, b3, w4, b4]
