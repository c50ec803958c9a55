"""Stoichiometry recovery on small networks with known answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neuralgraph.core.errors import DataError
from neuralgraph.systems.metabolism.recovery import Recovered, recover_stoichiometry
from neuralgraph.systems.metabolism.recovery_checks import checked_problem
from neuralgraph.systems.metabolism.recovery_law import (
    PolynomialLaw,
    collocation,
    random_rate_laws,
)
from neuralgraph.systems.metabolism.recovery_mlp import fit_rate_mlp, networks_from

N_MET, N_RXN = 20, 30


@dataclass
class Small:
    """A small network with its data and its answer."""

    args: dict[str, Any]
    sto_sub: np.ndarray
    sto_all: np.ndarray
    log_k: np.ndarray
    rate: Any = field(repr=False)


def law_of(seed: int):
    poly = PolynomialLaw(3, 2, (3, 2, 2))
    points = collocation(poly, 5.0, 2.5, np.random.default_rng(seed))
    _, weights = random_rate_laws(points, np.random.default_rng(seed), 1)
    return networks_from([w[0] for w in weights])


def make(seed: int, n_frame: int = 240, twins: bool = False) -> Small:
    r = np.random.default_rng(seed)
    edge: dict[str, list[int]] = {k: [] for k in ("ms", "rs", "ss", "ma", "ra", "sa")}
    for j in range(N_RXN):
        n_sub, n_prod = r.integers(1, 4), r.integers(1, 3)
        mets = r.permutation(N_MET)[: n_sub + n_prod]
        size = r.integers(1, 3, n_sub + n_prod)
        if twins and j == 1:  # the substrates of reaction 0, other products
            first = np.flatnonzero(np.array(edge["rs"]) == 0)
            subs = np.array(edge["ms"])[first]
            n_sub, n_prod = len(first), 1
            rest = np.setdiff1d(np.arange(N_MET), edge["ma"])
            mets = np.concatenate([subs, rest[:1]])
            size = np.concatenate([np.array(edge["ss"])[first], [2]])
        for q, (m, s) in enumerate(zip(mets, size, strict=True)):
            if q < n_sub:
                edge["ms"].append(int(m))
                edge["rs"].append(j)
                edge["ss"].append(int(s))
            edge["ma"].append(int(m))
            edge["ra"].append(j)
            edge["sa"].append(int(-s if q < n_sub else s))
    e = {k: np.array(v) for k, v in edge.items()}
    log_k = r.uniform(-1, 1, N_RXN)
    msg, rate = law_of(seed)

    @torch.no_grad()
    def v(c: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(c[:, e["ms"]])
        m = msg(torch.stack([x, torch.from_numpy(e["ss"]).double().expand_as(x)], -1))
        h = torch.zeros(len(c), N_RXN, m.shape[-1], dtype=torch.float64)
        h.index_add_(1, torch.from_numpy(e["rs"]), m)
        return 10**log_k * nn.functional.softplus(rate(h))[..., 0].numpy()

    s = np.zeros((N_MET, N_RXN))
    s[e["ma"], e["ra"]] = e["sa"]
    c = r.uniform(2.5, 7.5, (n_frame, N_MET))
    args = {
        "concentration": c,
        "dx_dt": v(c) @ s.T,
        "met_sub": e["ms"],
        "rxn_sub": e["rs"],
        "met_all": e["ma"],
        "rxn_all": e["ra"],
        "sign_all": np.sign(e["sa"]),
    }
    return Small(args, e["ss"], e["sa"], log_k, v)


SMALL = {
    "n_met": N_MET,
    "n_rxn": N_RXN,
    "n_scan": 8,
    "n_start": 2,
    "n_sharpen": 0,
    "degree": (6, 4, 4),
}


def recover(problem: Small, seed: int = 0, **changes: Any) -> Recovered:
    options = {**problem.args, **SMALL, "rng": np.random.default_rng(seed), **changes}
    return recover_stoichiometry(**options)


@cache
def solved(seed: int) -> tuple[Small, Recovered]:
    problem = make(seed)
    return problem, recover(problem)


@pytest.mark.parametrize("seed", [7, 11])
def test_every_integer_of_a_small_network_is_exact(seed: int) -> None:
    problem, found = solved(seed)
    np.testing.assert_array_equal(found.sto_all, problem.sto_all)
    np.testing.assert_array_equal(found.sto_sub, problem.sto_sub)
    assert np.median(found.relative_residual) < 1e-3
    shift = found.log_k - problem.log_k
    assert np.abs(shift - np.median(shift)).max() < 0.1


def test_rate_law_predicts_unseen_concentrations() -> None:
    problem, found = solved(7)
    c = np.random.default_rng(9).uniform(3.0, 7.0, (50, N_MET))
    ratio = found.rate(c) / problem.rate(c)
    assert found.rate(c).shape == (50, N_RXN)
    assert np.abs(ratio - 1).max() < 0.1


def test_same_seed_gives_same_bytes_and_arguments_are_left_alone() -> None:
    problem, found = solved(7)
    before = {k: v.copy() for k, v in problem.args.items()}
    torch.manual_seed(123)
    np.random.seed(5)
    again = recover(problem)
    for k, v in before.items():
        np.testing.assert_array_equal(v, problem.args[k])
    for name in ("sto_all", "sto_sub", "log_k", "relative_residual", "confidence"):
        assert getattr(again, name).tobytes() == getattr(found, name).tobytes()
    assert again.objective == found.objective


def test_global_random_state_is_not_touched() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    recover(make(5, n_frame=80), n_scan=2, n_start=1, n_anneal=1, n_sharpen=0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("seed", [7, 11])
def test_signs_cannot_flip_and_coefficients_stay_in_range(seed: int) -> None:
    problem, found = solved(seed)
    np.testing.assert_array_equal(np.sign(found.sto_all), problem.args["sign_all"])
    assert set(np.abs(found.sto_all)) <= {1, 2}
    # even from derivatives of the wrong sign
    args = {**problem.args, "dx_dt": -problem.args["dx_dt"]}
    wrong = recover(Small(args, *[None] * 4), n_scan=2, n_start=1, n_anneal=2, n_sharpen=0)
    np.testing.assert_array_equal(np.sign(wrong.sto_all), problem.args["sign_all"])
    assert wrong.objective > found.objective + 5


def test_reactions_with_the_same_substrates_do_not_break_the_rest() -> None:
    problem = make(6, twins=True)
    found = recover(problem)
    others = problem.args["rxn_all"] > 1
    assert (found.sto_all == problem.sto_all)[others].mean() > 0.97
    assert np.isfinite(found.log_k).all()
    assert np.median(found.relative_residual) < 1e-3


def test_confidence_covers_every_edge() -> None:
    _, found = solved(7)
    assert found.confidence.shape == found.sto_all.shape
    assert (found.confidence >= 0).all()
    assert np.median(found.confidence) > 10


def test_confidence_is_low_where_the_answer_is_wrong() -> None:
    problem = make(6)  # one of the seeds whose columns are not all exact
    found = recover(problem, n_anneal=2)
    wrong = found.sto_all != problem.sto_all
    assert wrong.any()
    assert np.median(found.confidence[wrong]) < np.median(found.confidence[~wrong])


def test_polished_columns_get_a_confidence() -> None:
    problem, found = solved(7)
    right = found.sto_all == problem.sto_all
    # a column that only the polish found is not second best any more
    assert (found.confidence[right] > 0).mean() > 0.95


def test_networks_lower_the_objective_and_keep_the_integers() -> None:
    problem, rough = solved(7)
    found = recover(problem, n_sharpen=2, sharp_degree=(7, 5, 5))
    assert found.objective < rough.objective - 0.5
    np.testing.assert_array_equal(found.sto_all, problem.sto_all)


def test_runaway_frames_do_not_widen_the_box() -> None:
    problem = make(7, n_frame=1000)
    c = problem.args["concentration"].copy()
    c[::5, 3] = 40.0
    checked = checked_problem(
        **{**problem.args, "concentration": c}, n_met=N_MET, n_rxn=N_RXN, max_coefficient=2
    )
    assert len(checked.inner) == 720
    assert not np.isin(np.arange(0, 1000, 5), checked.inner).any()
    assert checked.half_width < 2.6
    assert len(checked.frames(100)) == 100


def test_float32_input_is_accepted() -> None:
    problem = make(7)
    args = {k: problem.args[k].astype(np.float32) for k in ("concentration", "dx_dt")}
    found = recover(problem, **args)
    assert (found.sto_all == problem.sto_all).mean() > 0.9


def test_fit_rate_mlp_reaches_the_data_and_keeps_the_modules_dtype() -> None:
    problem = make(7)
    msg, rate = (m.float() for m in law_of(70))
    fit = fit_rate_mlp(
        **{k: v for k, v in problem.args.items() if k != "sign_all"},
        sto_sub=problem.sto_sub,
        sto_all=problem.sto_all,
        log_k=problem.log_k + 0.7,
        msg_mlp=msg,
        rate_mlp=rate,
        n_met=N_MET,
        n_rxn=N_RXN,
        rng=np.random.default_rng(0),
        degree=(6, 4, 4),
        n_step=15,
    )
    assert next(msg.parameters()).dtype == torch.float32
    assert np.median(fit.relative_residual) < 3e-5
    shift = fit.log_k - problem.log_k
    assert np.abs(shift - np.median(shift)).max() < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"dx_dt": a["dx_dt"][:-1]}, "same shape"),
        (lambda a: {"concentration": a["concentration"].T}, r"\(n_frame, n_met\)"),
        (lambda a: {"dx_dt": np.where(a["dx_dt"] > 0, np.nan, 1.0)}, "finite"),
        (
            lambda a: {"concentration": a["concentration"][:9], "dx_dt": a["dx_dt"][:9]},
            "at least 64 frames",
        ),
        (lambda a: {"sign_all": np.zeros_like(a["sign_all"])}, "-1 or 1"),
        (lambda a: {"met_all": a["met_all"] + 19}, "must lie in"),
        (lambda a: {"met_sub": a["met_sub"][:-1]}, "one length"),
        (lambda a: {"n_rxn": N_RXN + 1}, "needs a substrate edge"),
        (lambda a: {"rng": torch.Generator()}, "numpy Generator"),
        (
            lambda a: {k: np.repeat(a[k][:1], 99, axis=0) for k in ("concentration", "dx_dt")},
            "same in every frame",
        ),
        (lambda a: {"max_coefficient": 0}, "max_coefficient"),
    ],
)
def test_bad_input_is_refused_with_a_reason(change: Any, message: str) -> None:
    problem = make(7)
    with pytest.raises(DataError, match=message):
        recover(problem, **change(problem.args))
