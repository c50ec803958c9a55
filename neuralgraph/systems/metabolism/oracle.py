r"""What S could be read from the data by someone who knew the true rates: a ceiling, not a method.

Row i obeys $\dot c_i = \sum_j S_{ij} v_j$. The oracle takes the true $v_j$ (rate law, rate
constants and limiter) at the states of the data, solves each row by least squares over its
candidate reactions, and takes the nearest integer that the prior allows. It knows no tie between
rows, so that a method which uses ties (one rate constant for a whole column) may exceed it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from neuralgraph.systems.metabolism import metrics
from neuralgraph.systems.metabolism.network import ReactionNetwork


def oracle_stoichiometry(
    network: ReactionNetwork,
    flux: Tensor,
    dx_dt: Tensor,
    *,
    is_support_given: bool,
    known_sign: Tensor,
    max_coefficient: int,
) -> Tensor:
    """Least squares with the true rates, each entry rounded to the nearest integer allowed.

    Args:
        network: The true network; its support is used only where it is given.
        flux: True velocities at the frames, ``(n_frame, n_rxn)``.
        dx_dt: Derivatives as the learner gets them, ``(n_frame, n_met)``.
        is_support_given: Whether the candidates of a row are its true reactions, or all.
        known_sign: Sign that the prior tells for each true edge, 0 where it does not,
            ``(n_all_edge,)``.
        max_coefficient: Largest coefficient allowed.

    Returns:
        ``(n_met, n_rxn)`` float64 of integers.
    """
    v, y = flux.detach().cpu().double(), dx_dt.detach().cpu().double()
    size = v.square().sum(0).sqrt()
    unit = v / torch.where(size > 0, size, torch.ones_like(size))
    # one triangular factor stands in for all frames
    factor = torch.linalg.qr(torch.cat([unit, y], dim=1), mode="r").R
    left, right = factor[:, : network.n_rxn], factor[:, network.n_rxn :]
    result = torch.zeros(network.n_met, network.n_rxn, dtype=torch.float64)
    sign = torch.zeros_like(result)
    sign[network.met_all, network.rxn_all] = known_sign.cpu().double()
    order = torch.argsort(network.met_all, stable=True)
    count = torch.bincount(network.met_all, minlength=network.n_met).tolist()
    everything = torch.arange(network.n_rxn)
    for i, edges in enumerate(order.split(count)):
        columns = network.rxn_all[edges] if is_support_given else everything
        if not columns.numel():
            continue
        found = torch.linalg.lstsq(left[:, columns], right[:, i : i + 1], driver="gelsd").solution
        value = found[:, 0] / torch.where(size > 0, size, torch.ones_like(size))[columns]
        signs = sign[i, columns]
        magnitude = (value * signs).round().clamp(1, max_coefficient)
        open_sign = value.sign() * value.abs().round().clamp(
            1 if is_support_given else 0, max_coefficient
        )
        result[i, columns] = torch.where(signs != 0, signs * magnitude, open_sign)
    return result


def oracle_scores(
    estimate: Tensor, network: ReactionNetwork, *, is_identifiable: Tensor
) -> dict[str, float]:
    """``exact_edges_oracle`` and ``exact_edges_identifiable_oracle`` of an integer matrix.

    Args:
        estimate: From :func:`oracle_stoichiometry`.
        network: The true network.
        is_identifiable: ``(n_rxn,)`` bool.
    """
    is_right = (estimate == network.matrix())[network.met_all, network.rxn_all]
    counted = metrics.counted_columns(network)
    scores = {}
    for suffix, columns in (("", counted), ("_identifiable", counted & is_identifiable)):
        on = is_right[columns[network.rxn_all]]
        scores[f"exact_edges{suffix}_oracle"] = (
            float(on.double().mean()) if len(on) else float("nan")
        )
    return scores
