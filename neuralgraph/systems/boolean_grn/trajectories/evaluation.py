"""How a learned Boolean network is judged."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from neuralgraph.core.bounds import Natural, Positive
from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn.attractors import as_states
from neuralgraph.systems.boolean_grn.glossary import MEANINGS
from neuralgraph.systems.boolean_grn.network import BooleanNetwork
from neuralgraph.systems.boolean_grn.trajectories.dataset import TransitionData
from neuralgraph.systems.boolean_grn.trajectories.model import LearnedNetwork

N_GENE_COMPARED = 16
"""Largest network whose attractors are compared one by one."""
N_STATE_SAMPLED = 4096


class TransitionEvaluator:
    """Next states, signs of the influences, and attractors of the learned network.

    Metrics: ``test_accuracy`` (share of the genes' next values right on held-out trajectories,
    synchronous update), ``state_accuracy`` (share of all states, or of 4,096 drawn ones, whose
    whole successor is right), ``sign_accuracy`` (share of gene pairs whose influence has the right
    sign or absence), ``attractor_recall`` and ``attractor_precision`` (share of the true and of the
    learned synchronous attractors that the other has too), ``seen_fraction`` (share of all states
    that occur in the training data: the rest is extrapolation), ``final_loss``.

    Args:
        every: Epochs between two looks at the truth while training, 0 for none.
        primary_metric: The number searches look at.
        direction: ``maximize`` or ``minimize``.
        influence_threshold: Mean change of a gene's next value, from 0 to 1, that counts as an
            influence.
    """

    meanings = MEANINGS

    def __init__(
        self,
        *,
        every: Natural,
        primary_metric: str,
        direction: str,
        influence_threshold: Positive,
    ) -> None:
        self.every = every
        self.primary_metric = primary_metric
        self.direction = direction
        self.influence_threshold = influence_threshold

    def __call__(
        self,
        model: LearnedNetwork,
        data: TransitionData,
        truth: Truth | None,
        *,
        log: Mapping[str, float],
    ) -> Scorecard:
        """Every score, with the trivial one beside it."""
        card = Scorecard()
        baselines: dict[str, dict[str, float]] = {}
        n_gene = data.spec.n_gene
        if data.spec.is_asynchronous:
            card.skip("test_accuracy", "one random gene changes a step: judged by state_accuracy")
        elif data.test_state.shape[0] == 0:
            card.skip("test_accuracy", "no trajectory was held out")
        else:
            before = data.test_state[:, :-1].flatten(0, 1)
            after = data.test_state[:, 1:].flatten(0, 1)
            card.add("test_accuracy", _share(model.successor(before) == after))
            usual = (data.following.mean(0) > 0.5).to(after.dtype)
            baselines["test_accuracy"] = {
                "no change": _share(before == after),
                "each gene's usual value": _share(usual == after),
            }
        if n_gene <= N_GENE_COMPARED:
            seen = data.state.unique(dim=0).shape[0]
            card.add("seen_fraction", seen / 2**n_gene)
        else:
            card.skip("seen_fraction", f"2^{n_gene} states are not listed")
        names = ("state_accuracy", "sign_accuracy", "attractor_recall", "attractor_precision")
        if truth is None:
            for name in names:
                card.skip(name, "no truth: measured data")
        else:
            self._compare(card, baselines, model, data, truth)
        card.add("final_loss", log["final_loss"])
        card.facts["baselines"] = baselines
        return card

    def watch(
        self, model: LearnedNetwork, data: TransitionData, truth: Truth | None
    ) -> dict[str, float]:
        """Cheap truth metrics for ``evaluation.jsonl``."""
        if truth is None:
            return {}
        state = sampled_states(data.spec.n_gene)
        return {"state_accuracy": _whole(model, state, true_successor(truth, state))}

    def _compare(
        self,
        card: Scorecard,
        baselines: dict[str, dict[str, float]],
        model: LearnedNetwork,
        data: TransitionData,
        truth: Truth,
    ) -> None:
        n_gene = data.spec.n_gene
        state = sampled_states(n_gene)
        after = true_successor(truth, state)
        card.add("state_accuracy", _whole(model, state, after))
        baselines["state_accuracy"] = {"no change": _share((state == after).all(1))}
        signs = truth.parameters["signs"]
        found = influences(model, state)
        is_right = _signs(found, self.influence_threshold) == signs
        card.add("sign_accuracy", _share(is_right[signs != 2]))
        baselines["sign_accuracy"] = {"no influence": _share(signs[signs != 2] == 0)}
        if n_gene <= N_GENE_COMPARED:
            true = attractor_set(BooleanNetwork.from_bnet(truth.facts["bnet"]).successors())
            learned = attractor_set(learned_successors(model, n_gene))
            card.add("attractor_recall", len(true & learned) / len(true))
            card.add("attractor_precision", len(true & learned) / len(learned))
            card.facts["attractors"] = (
                f"{len(true)} attractors under synchronous update, {len(learned)} of the learned "
                f"network, {len(true & learned)} in common"
            )
        else:
            for name in ("attractor_recall", "attractor_precision"):
                card.skip(name, f"attractors are compared up to {N_GENE_COMPARED} genes")


def sampled_states(n_gene: int) -> Tensor:
    """All states, or 4,096 drawn ones (always the same), ``(n_state, n_gene)`` float64."""
    if 2**n_gene <= N_STATE_SAMPLED:
        state = as_states(np.arange(2**n_gene), n_gene)
    else:
        state = numpy_generator(0, "judged states").random((N_STATE_SAMPLED, n_gene)) < 0.5
    return torch.from_numpy(state.astype(np.float64))


def true_successor(truth: Truth, state: Tensor) -> Tensor:
    """Synchronous successors of the true network."""
    network = BooleanNetwork.from_bnet(truth.facts["bnet"])
    return torch.from_numpy(network.step(state.numpy() > 0.5).astype(np.float64))


def influences(model: LearnedNetwork, state: Tensor) -> Tensor:
    """Mean change of each gene's next value when another is switched on, ``[source, target]``.

    The mean is over the given states; it lies between −1 and 1.
    """
    parameter = next(model.parameters())
    state = state.to(parameter)
    rows = []
    for source in range(state.shape[1]):
        on, off = state.clone(), state.clone()
        on[:, source], off[:, source] = 1.0, 0.0
        rows.append((model.successor(on) - model.successor(off)).mean(0))
    return torch.stack(rows).double().cpu()


def learned_successors(model: LearnedNetwork, n_gene: int) -> np.ndarray:
    """Successor of every state of the learned network, ``(2ⁿ,)`` int32."""
    parameter = next(model.parameters())
    state = torch.from_numpy(as_states(np.arange(2**n_gene), n_gene)).to(parameter)
    bits = model.successor(state).cpu().numpy().astype(np.int64)
    return (bits << np.arange(n_gene)).sum(1).astype(np.int32)


def attractor_set(successor: np.ndarray) -> set[tuple[int, ...]]:
    """Synchronous attractors as sorted tuples of states."""
    from neuralgraph.systems.boolean_grn import kernels

    n_found, first = kernels.synchronous_attractors(successor, np.empty_like(successor))
    found = set()
    for state in first[:n_found].tolist():
        cycle = [state]
        while (following := int(successor[cycle[-1]])) != state:
            cycle.append(following)
        found.add(tuple(sorted(cycle)))
    return found


def _signs(found: Tensor, threshold: float) -> Tensor:
    return torch.where(found.abs() >= threshold, found.sign(), torch.zeros_like(found)).long()


def _whole(model: LearnedNetwork, state: Tensor, after: Tensor) -> float:
    parameter = next(model.parameters())
    return _share((model.successor(state.to(parameter)).cpu().double() == after).all(1))


def _share(is_right: Tensor) -> float:
    return float(is_right.double().mean())
