"""What the recovery of S says where the data cannot determine something: words, never a crash."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from neuralgraph.core.errors import DataError
from neuralgraph.systems.metabolism.recovery import Recovered, recover_stoichiometry
from neuralgraph.systems.metabolism.recovery_gaps import sentences
from neuralgraph.systems.metabolism.recovery_law import (
    PolynomialLaw,
    collocation,
    random_rate_laws,
)
from neuralgraph.systems.metabolism.recovery_mlp import networks_from
from neuralgraph.systems.metabolism.recovery_noise import derivative_noise, is_noisy

N_MET, N_RXN = 8, 8
QUICK = {
    "n_scan": 4,
    "n_start": 1,
    "n_anneal": 6,
    "n_sharpen": 0,
    "degree": (4, 3, 3),
    "noisy_degree": (4, 3, 3),
    "noisy_rounds": 1,
}


def law_of(seed: int) -> tuple[nn.Sequential, nn.Sequential]:
    poly = PolynomialLaw(3, 2, (3, 2, 2))
    points = collocation(poly, 5.0, 2.5, np.random.default_rng(seed))
    _, weights = random_rate_laws(points, np.random.default_rng(seed), 1)
    return networks_from([w[0] for w in weights])


def chain(
    *,
    log_k: np.ndarray | None = None,
    low: float = 2.5,
    n_frame: int = 96,
    twin: bool = False,
    n_bare: int = 0,
) -> dict[str, Any]:
    """Reaction j turns metabolite j into |S| of j + 1; the last one closes the ring.

    Args:
        log_k: log10 of the rate constants.
        low: Least concentration.
        n_frame: Frames.
        twin: Whether reaction 1 is the same as reaction 0.
        n_bare: Metabolites outside every reaction, appended.
    """
    r = np.random.default_rng(0)
    sub, prod = np.arange(N_RXN), (np.arange(N_RXN) + 1) % N_MET
    size_sub, size_prod = r.integers(1, 3, N_RXN), r.integers(1, 3, N_RXN)
    if twin:
        sub[1], prod[1], size_sub[1], size_prod[1] = sub[0], prod[0], size_sub[0], size_prod[0]
    log_k = np.linspace(-0.5, 0.5, N_RXN) if log_k is None else log_k
    msg, rate = law_of(3)
    n_met = N_MET + n_bare
    c = r.uniform(low, 7.5, (n_frame, n_met))
    with torch.no_grad():
        x = torch.from_numpy(c[:, sub])
        m = msg(torch.stack([x, torch.from_numpy(size_sub).double().expand_as(x)], -1))
        v = 10**log_k * nn.functional.softplus(rate(m))[..., 0].numpy()
    s = np.zeros((n_met, N_RXN))
    s[sub, np.arange(N_RXN)] = -size_sub
    s[prod, np.arange(N_RXN)] = size_prod
    met, rxn = np.nonzero(s)
    return {
        "concentration": c,
        "dx_dt": v @ s.T,
        "met_sub": sub,
        "rxn_sub": np.arange(N_RXN),
        "met_all": met,
        "rxn_all": rxn,
        "sign_all": np.sign(s[met, rxn]).astype(int),
        "n_met": n_met,
        "n_rxn": N_RXN,
    }


def recover(problem: dict[str, Any], **changes: Any) -> tuple[Recovered, list[str]]:
    found = recover_stoichiometry(
        **{**problem, **QUICK, "rng": np.random.default_rng(1), **changes}
    )
    assert np.isfinite(found.log_k).all()
    assert np.isfinite(found.confidence).all()
    assert np.isfinite(found.relative_residual).all()
    assert np.isfinite(found.objective)
    assert np.isfinite(found.rate(problem["concentration"])).all()
    names = [f"R{j}" for j in range(problem["n_rxn"])]
    return found, sentences(found.open, names, [f"M{i}" for i in range(problem["n_met"])])


def test_a_plain_ring_leaves_nothing_undecided() -> None:
    found, said = recover(chain())
    assert not {"same substrates", "undecided", "no reaction"} & set(found.open)
    assert not any("guesses" in sentence for sentence in said)


def test_fewer_frames_than_a_law_needs_is_refused_and_says_what_stays_open() -> None:
    with pytest.raises(DataError, match=r"rate law.*cannot be determined"):
        recover(chain(n_frame=20))


def test_a_reaction_that_never_fires_is_named() -> None:
    log_k = np.zeros(N_RXN)
    log_k[3] = -30.0
    found, said = recover(chain(log_k=log_k))
    assert 3 in found.open["lower bound"]
    assert any("R3" in sentence and "not determined" in sentence for sentence in said)


def test_concentrations_of_zero_are_no_problem() -> None:
    problem = chain(low=0.0)
    problem["concentration"][0] = 0.0
    found, _ = recover(problem)
    assert np.isfinite(found.rate(np.zeros((2, N_MET)))).all()


def test_equal_trajectories_are_refused_or_counted_once() -> None:
    problem = chain()
    for name in ("concentration", "dx_dt"):
        problem[name] = np.tile(problem[name][:12], (8, 1))
    with pytest.raises(DataError, match="12 different frames"):
        recover(problem)


def test_duplicate_reactions_are_named() -> None:
    found, said = recover(chain(twin=True))
    assert set(found.open["same substrates"]) == {0, 1}
    assert any("R0, R1 share their substrates" in sentence for sentence in said)


def test_a_metabolite_outside_every_reaction_is_named() -> None:
    found, said = recover(chain(n_bare=1))
    assert found.open["no reaction"].tolist() == [N_MET]
    assert any(f"M{N_MET} take part in no reaction" in sentence for sentence in said)


def test_a_metabolite_that_changes_without_a_reaction_does_not_break_the_rest() -> None:
    problem = chain(n_bare=1)
    problem["dx_dt"][:, N_MET] = 0.3
    found, _ = recover(problem)
    assert found.relative_residual[N_MET] == pytest.approx(1.0)
    assert np.median(found.relative_residual) < 0.1


def test_rate_constants_over_five_orders_are_finite_and_the_slow_ones_named() -> None:
    found, _ = recover(chain(log_k=np.linspace(-4.0, 1.0, N_RXN)))
    fast = found.log_k[-2:]
    assert (fast > found.log_k[:2]).all()
    assert 0 in np.concatenate([found.open[name] for name in ("lower bound",)])


def test_noise_is_read_from_the_course_of_the_derivatives() -> None:
    r = np.random.default_rng(0)
    t = np.linspace(0, 1, 10)
    clean = np.concatenate([np.sin(2 * t + p)[:, None] * [1.0, 30.0] for p in range(50)])
    run, frame = np.repeat(np.arange(50), 10), np.tile(np.arange(10), 50)
    noisy = clean + 1e-2 * np.array([1.0, 30.0]) * r.standard_normal(clean.shape)
    sd = derivative_noise(noisy, run, frame)
    assert sd is not None
    np.testing.assert_allclose(sd, [1e-2, 0.3], rtol=0.2)
    # the order of the frames does not matter
    mixed = r.permutation(len(noisy))
    np.testing.assert_allclose(derivative_noise(noisy[mixed], run[mixed], frame[mixed]), sd)
    exact = derivative_noise(clean, run, frame)
    assert exact is not None and not is_noisy(clean, 1e-3 * exact) and is_noisy(noisy, sd)
    assert derivative_noise(noisy[:4], run[:4], frame[:4]) is None
    assert derivative_noise(noisy, np.arange(500), frame) is None


def test_noisy_derivatives_are_decoded_on_every_frame() -> None:
    problem = chain(n_frame=400)
    r = np.random.default_rng(2)
    size = np.sqrt((problem["dx_dt"] ** 2).mean(0))
    noise = 1e-3 * size
    problem["dx_dt"] = problem["dx_dt"] + noise * r.standard_normal(problem["dx_dt"].shape)
    said: list[str] = []
    found, _ = recover(problem, noise=noise, log=said.append, n_scan=8, n_start=4, noisy_rounds=2)
    assert any(line.startswith("all frames") for line in said)
    assert np.median(found.relative_residual) < 3e-3
