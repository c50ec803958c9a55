"""Adam whose step costs about as much as its arithmetic, for small models and many steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

_fused_adam_ = cast("Callable[..., None]", torch._fused_adam_)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
_torch_step = cast("Callable[..., Any]", torch.optim.Adam.step)  # pyright: ignore[reportUnknownMemberType]


class Adam(torch.optim.Adam):
    r"""``torch.optim.Adam(fused=True)`` without the bookkeeping of a step.

    The same fused kernel on the same state, hence the same numbers, bit by bit, and the same state
    dict. Lists of parameters and moments are gathered once instead of at every step, and a group
    counts its steps once (written into the state where somebody asks for it): for ten small
    parameters the rest is most of the time of a step. Profiler ranges and step hooks are left out.
    Where a parameter has no gradient, the step is torch's own.

    Args:
        params: Parameters or groups.
        lr: Learning rate of groups that name none.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.
        weight_decay: Factor of the L2 penalty.
        fused: ``False``: torch's own step, not fused.

    Source:
        Kingma & Ba (2015); kernel: PyTorch.
    """

    _gathered: list[_Lists] | None = None

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        fused: bool = True,
    ) -> None:
        beta1, beta2 = betas
        super().__init__(
            params, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=fused
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch."""
        self._gathered = None
        super().load_state_dict(state_dict)

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]  # torch's is wrapped
        """As in torch."""
        self._write_steps()
        return super().state_dict()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch."""
        self._write_steps()
        super().add_param_group(param_group)
        self._gathered = None

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]  # overloads
        """One step; the first, and any without all gradients, are torch's own."""
        if self._gathered is None or closure is not None:
            return self._plain_step(closure)
        gradients: list[list[Tensor]] = []
        for lists in self._gathered:
            of_group = [p.grad for p in lists.parameters]
            if any(g is None for g in of_group):
                return self._plain_step(None)
            gradients.append(cast("list[Tensor]", of_group))
        with torch.no_grad():
            for group, of_group, lists in zip(
                self.param_groups, gradients, self._gathered, strict=True
            ):
                lists.step += 1
                _fused_adam_(
                    lists.parameters,
                    of_group,
                    lists.first,
                    lists.second,
                    [],
                    [lists.step] * len(of_group),
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                )
        return None

    # torch would wrap step in a profiler range
    step.hooked = True  # type: ignore[attr-defined]  # torch reads it from the function

    def _plain_step(self, closure: Callable[[], float] | None) -> Any:
        self._write_steps()
        self._gathered = None
        result = _torch_step(self, closure)
        if all(group["fused"] for group in self.param_groups):
            self._gathered = self._gather()
        return result

    def _gather(self) -> list[_Lists] | None:
        gathered: list[_Lists] = []
        for group in self.param_groups:
            parameters = cast("list[Tensor]", group["params"])
            states = [cast(Any, self.state.get(p)) for p in parameters]
            if not all(states) or len({(p.device, p.dtype) for p in parameters}) > 1:
                return None
            steps = [state["step"] for state in states]
            if len({float(step) for step in steps}) > 1:
                return None
            gathered.append(
                _Lists(
                    parameters,
                    [state["exp_avg"] for state in states],
                    [state["exp_avg_sq"] for state in states],
                    steps,
                    steps[0].clone(),
                )
            )
        return gathered

    def _write_steps(self) -> None:
        for lists in self._gathered or ():
            for step in lists.steps:
                step.copy_(lists.step)


@dataclass
class _Lists:
    """State of a group; ``step`` is in force, ``steps`` are those of the state."""

    parameters: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    steps: list[Tensor]
    step: Tensor
