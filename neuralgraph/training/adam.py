"""Adam whose step costs about as much as its arithmetic, for small models and many steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    r"""``torch.optim.Adam(fused=True)`` without the bookkeeping of a step.

    The same fused kernel on the same state, hence the same numbers, bit by bit, and the same state
    dict. Lists of parameters and moments are gathered once instead of at every step, which for ten
    small parameters is most of the time of a step. Profiler ranges and step hooks are left out.
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

    _gathered: list[tuple[list[Tensor], ...]] | None = None

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
        super().load_state_dict(state_dict)
        self._gathered = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in torch."""
        super().add_param_group(param_group)
        self._gathered = None

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """One step; the first, and any without all gradients, are torch's own."""
        if self._gathered is None or closure is not None:
            return self._plain_step(closure)
        gradients: list[list[Tensor]] = []
        for parameters, *_ in self._gathered:
            of_group = [p.grad for p in parameters]
            if any(g is None for g in of_group):
                return self._plain_step(None)
            gradients.append(cast("list[Tensor]", of_group))
        with torch.no_grad():
            for group, of_group, lists in zip(
                self.param_groups, gradients, self._gathered, strict=True
            ):
                parameters, first, second, steps = lists
                torch._foreach_add_(steps, 1)
                torch._fused_adam_(
                    parameters,
                    of_group,
                    first,
                    second,
                    [],
                    steps,
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
    step.hooked = True  # type: ignore[attr-defined]

    def _plain_step(self, closure: Callable[[], float] | None) -> Any:
        result = super().step(closure)
        self._gathered = None
        if all(group["fused"] for group in self.param_groups):
            self._gathered = self._gather()
        return result

    def _gather(self) -> list[tuple[list[Tensor], ...]] | None:
        gathered = []
        for group in self.param_groups:
            parameters = cast("list[Tensor]", group["params"])
            states = [self.state.get(p) for p in parameters]
            if not all(states) or len({(p.device, p.dtype) for p in parameters}) > 1:
                return None
            lists = ([cast(Any, state)[name] for state in states] for name in _STATE)
            gathered.append((parameters, *lists))
        return gathered


_STATE = ("exp_avg", "exp_avg_sq", "step")
