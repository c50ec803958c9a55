"""Prediction of held-out data by a fitted model: rollouts from the first frame, and one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from neuralgraph.numerics.integrate import rollout
from neuralgraph.systems.metabolism.dataset import MetabolismData

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.model import Metabolism_Propagation

_ROLLOUTS: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], list[HeldOutRun]]]
_ROLLOUTS = WeakKeyDictionary()


@dataclass(frozen=True)
class HeldOutRun:
    """A held-out trajectory and its prediction from its first frame.

    Args:
        time: ``(n_time,)`` min.
        seen: ``(n_time, n_met)`` mM.
        predicted: Same shape; the first frame is the measured one.
    """

    time: Tensor
    seen: Tensor
    predicted: Tensor


@torch.no_grad()
def held_out_rollouts(
    model: Metabolism_Propagation, data: MetabolismData, *, method: str, n_substep: int
) -> list[HeldOutRun]:
    """Predict every held-out trajectory from its first frame, batched over equal lengths.

    External inputs are held between frames. Concentrations below 0 enter the rate law as 0.
    The last result of each model is kept until its weights change: the report draws what the
    evaluator scored.

    Args:
        model: The fitted model.
        data: Its data.
        method: Fixed-step method of :func:`neuralgraph.numerics.integrate.rollout`.
        n_substep: Steps between two frames.
    Returns:
        One entry for each held-out trajectory, in order, float64 on the CPU.
    Raises:
        DivergedError: with time and metabolite.
    """
    dtype, device = model.log_k.dtype, model.log_k.device
    state = [*model.parameters(), *model.buffers()]
    key = (id(data), method, n_substep, *((t.data_ptr(), t._version) for t in state))
    known = _ROLLOUTS.get(model)
    if known is not None and known[0] == key:
        return known[1]
    by_length: dict[int, list[int]] = {}
    for index, held in enumerate(data.test):
        by_length.setdefault(len(held.time), []).append(index)
    result: dict[int, HeldOutRun] = {}
    for members in by_length.values():
        time = torch.stack([data.test[i].time for i in members]).double().to(device)
        seen = torch.stack([data.test[i].state for i in members]).to(device, dtype)
        held_inputs = [data.test[i].inputs for i in members]
        inputs = None
        if held_inputs[0] is not None:
            inputs = torch.stack([x for x in held_inputs if x is not None]).to(device, dtype)
        rows = torch.arange(len(members), device=device)
        start = time[:, :1]

        def rhs(
            t: Tensor,
            c: Tensor,
            inputs: Tensor | None = inputs,
            clock: Tensor = time - start,
            rows: Tensor = rows,
        ) -> Tensor:
            now = None
            if inputs is not None:
                # a hair later, so that a stage at a frame takes the input of that frame
                later = t.double()[:, None] + 1e-6 * (clock[:, 1:2] - clock[:, :1])
                frame = torch.searchsorted(clock.contiguous(), later, right=True)[:, 0] - 1
                now = inputs[rows, frame.clamp(0, inputs.shape[1] - 1)]
            return model(c.clamp_min(0), now)

        predicted = rollout(
            rhs,
            seen[:, 0],
            time - start,
            method=method,
            n_substep=n_substep,
            bound=1e8,
            names=data.spec.metabolite_names,
        )
        for row, index in enumerate(members):
            result[index] = HeldOutRun(
                time[row].cpu(), seen[row].cpu().double(), predicted[row].cpu().double()
            )
    runs = [result[index] for index in sorted(result)]
    _ROLLOUTS[model] = (key, runs)
    return runs


@torch.no_grad()
def one_step(model: Metabolism_Propagation, data: MetabolismData) -> tuple[Tensor, Tensor] | None:
    """Predicted and measured derivative at every held-out frame, ``(n_frame, n_met)`` each.

    Returns:
        Float64 on the CPU, or ``None`` where nothing was held out or derivatives are missing.
    """
    dtype, device = model.log_k.dtype, model.log_k.device
    rows = [held for held in data.test if held.dx_dt is not None]
    if not rows:
        return None
    predicted, seen = [], []
    for held in rows:
        inputs = None if held.inputs is None else held.inputs.to(device, dtype)
        predicted.append(model(held.state.to(device, dtype), inputs).cpu().double())
        assert held.dx_dt is not None
        seen.append(held.dx_dt.cpu().double())
    return torch.cat(predicted), torch.cat(seen)
