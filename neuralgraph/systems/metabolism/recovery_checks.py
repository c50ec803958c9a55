"""Checked and scaled input of the stoichiometry recovery."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neuralgraph.core.errors import DataError
from neuralgraph.systems.metabolism.recovery_law import PolynomialLaw
from neuralgraph.systems.metabolism.recovery_messages import StoichiometryDecoder

Array = np.ndarray
MIN_FRAMES = 64


@dataclass(frozen=True)
class RecoveryProblem:
    """Data and graph of one problem, float64, with the scaling of the concentrations.

    Attributes:
        concentration, dx_dt: ``(n_frame, n_met)``, mM and mM min⁻¹.
        inner: Frames used for fits: those that stay closest to the bulk of the concentrations.
        center, half_width: Middle and half range of the concentrations in these frames, mM.
    """

    concentration: Array
    dx_dt: Array
    met_sub: Array
    rxn_sub: Array
    met_all: Array
    rxn_all: Array
    sign_all: Array
    n_met: int
    n_rxn: int
    max_coefficient: int
    inner: Array
    center: float
    half_width: float

    @property
    def max_substrates(self) -> int:
        """Largest number of substrates of a reaction."""
        return int(np.bincount(self.rxn_sub, minlength=self.n_rxn).max())

    def frames(self, most: int) -> Array:
        """At most ``most`` inner frames, evenly spread."""
        n = len(self.inner)
        return self.inner[np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))]

    def whole(self) -> RecoveryProblem:
        """The same problem with every frame counted as inner, in a box that holds them."""
        center, half_width = _box(self.concentration)
        inner = np.arange(len(self.concentration))
        return replace(self, inner=inner, center=center, half_width=half_width)

    def decoder(
        self, poly: PolynomialLaw, frames: Array, tie_substrates: bool
    ) -> StoichiometryDecoder:
        """Decoder on some of the frames."""
        z = (self.concentration[frames] - self.center) / self.half_width
        return StoichiometryDecoder(
            np.ascontiguousarray(z.T),
            np.ascontiguousarray(self.dx_dt[frames].T),
            self.met_sub,
            self.rxn_sub,
            self.met_all,
            self.rxn_all,
            self.sign_all,
            self.n_rxn,
            poly,
            self.max_coefficient,
            tie_substrates,
        )


def _index(name: str, value: Any, bound: int) -> Array:
    out = np.asarray(value)
    if out.ndim != 1 or not np.issubdtype(out.dtype, np.integer):
        raise DataError(
            f"{name} must be a vector of integers, got shape {out.shape} of {out.dtype}"
        )
    if len(out) and (out.min() < 0 or out.max() >= bound):
        raise DataError(f"{name} must lie in 0..{bound - 1}, got {out.min()}..{out.max()}")
    return out.astype(np.int64)


def _box(concentration: Array) -> tuple[float, float]:
    low, high = np.quantile(concentration, [0.005, 0.995])
    return float(low + high) / 2, max(float(high - low) / 2, 1e-12)


def _inner_frames(concentration: Array) -> Array:
    """The quarter of the frames (at least 720) that leaves the bulk of concentrations least.

    A polynomial law of a given degree is the more accurate, the smaller its box; a few
    metabolites that run away late in a trajectory would widen it for all.
    """
    n = len(concentration)
    center, half_width = _box(concentration)
    extent = np.abs((concentration - center) / half_width).max(1)
    return np.sort(np.argsort(extent, kind="stable")[: max(720, n // 4)])


def checked_problem(
    concentration: Any,
    dx_dt: Any,
    met_sub: Any,
    rxn_sub: Any,
    met_all: Any,
    rxn_all: Any,
    sign_all: Any,
    *,
    n_met: int,
    n_rxn: int,
    max_coefficient: int,
) -> RecoveryProblem:
    """Check shapes, values and graph, and convert to float64.

    Raises:
        DataError: says what was expected, what was found, what to do.
    """
    c, y = np.asarray(concentration), np.asarray(dx_dt)
    for name, value in (("concentration", c), ("dx_dt", y)):
        if value.ndim != 2 or value.shape[1] != n_met:
            raise DataError(
                f"{name} must be (n_frame, n_met) = (*, {n_met}), got {value.shape}: "
                "one row per frame"
            )
        if not np.isfinite(value).all():
            frame, met = np.argwhere(~np.isfinite(value))[0]
            raise DataError(
                f"{name} must be finite, got {value[frame, met]} at frame {frame}, metabolite "
                f"{met}: drop such frames"
            )
    if c.shape != y.shape:
        raise DataError(f"concentration {c.shape} and dx_dt {y.shape} must have the same shape")
    if c.std(0).max(initial=0.0) <= 1e-9 * np.abs(c).max(initial=0.0):
        raise DataError(
            "the concentrations are the same in every frame, so nothing about the rates can be "
            "learned: use several initial conditions"
        )
    n_different = len(np.unique(c, axis=0))
    if n_different < MIN_FRAMES:
        counted = (
            f"got {len(c)}"
            if n_different == len(c)
            else (
                f"got {n_different} different frames among {len(c)}: equal trajectories count once"
            )
        )
        raise DataError(
            f"at least {MIN_FRAMES} frames are needed, {counted}. From fewer, the shared rate law "
            "cannot be determined, and with it no coefficient: simulate more initial conditions or "
            "longer runs"
        )
    if max_coefficient < 1:
        raise DataError(f"max_coefficient must be at least 1, got {max_coefficient}")
    edges = {
        "met_sub": _index("met_sub", met_sub, n_met),
        "rxn_sub": _index("rxn_sub", rxn_sub, n_rxn),
        "met_all": _index("met_all", met_all, n_met),
        "rxn_all": _index("rxn_all", rxn_all, n_rxn),
    }
    for part in ("sub", "all"):
        met, rxn = edges[f"met_{part}"], edges[f"rxn_{part}"]
        if met.shape != rxn.shape:
            raise DataError(
                f"met_{part} and rxn_{part} must have one length, got {len(met)} and {len(rxn)}"
            )
        key = rxn * n_met + met
        if len(np.unique(key)) != len(key):
            raise DataError(f"the {part} edges contain one (metabolite, reaction) pair twice")
    sign = np.asarray(sign_all)
    if sign.shape != edges["met_all"].shape or not np.isin(sign, (-1, 1)).all():
        raise DataError(
            f"sign_all must be -1 or 1 for each of the {len(edges['met_all'])} edges, got shape "
            f"{sign.shape} with values {np.unique(sign)[:5]}"
        )
    for name, rxn in (("substrate", edges["rxn_sub"]), ("stoichiometric", edges["rxn_all"])):
        bare = np.flatnonzero(np.bincount(rxn, minlength=n_rxn) == 0)
        if len(bare):
            raise DataError(
                f"every reaction needs a {name} edge, reactions {bare[:5].tolist()} have none: "
                "leave them out, the data say nothing about them"
            )
    c = c.astype(np.float64)
    inner = _inner_frames(c)
    center, half_width = _box(c[inner])
    return RecoveryProblem(
        c,
        y.astype(np.float64),
        **edges,
        sign_all=sign.astype(np.int64),
        n_met=n_met,
        n_rxn=n_rxn,
        max_coefficient=max_coefficient,
        inner=inner,
        center=center,
        half_width=half_width,
    )


def open_problem(
    concentration: Any,
    dx_dt: Any,
    met: Any,
    rxn: Any,
    *,
    n_met: int,
    n_rxn: int,
    max_coefficient: int,
) -> RecoveryProblem:
    """A problem of which only one list of edges is given: who takes part, or who drives.

    Its roles and its support are placeholders. Arguments and errors as in
    :func:`checked_problem`.
    """
    sign = -np.ones(np.shape(met), dtype=np.int64)
    return checked_problem(
        concentration,
        dx_dt,
        met,
        rxn,
        met,
        rxn,
        sign,
        n_met=n_met,
        n_rxn=n_rxn,
        max_coefficient=max_coefficient,
    )
