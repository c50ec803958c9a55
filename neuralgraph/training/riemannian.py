"""Adam for parameters that live on a manifold."""

# geoopt is untyped:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

from typing import Any

from geoopt.optim import RiemannianAdam as _GeooptAdam


class RiemannianAdam(_GeooptAdam):
    """geoopt's Riemannian Adam, its arguments spelled out.

    The Euclidean gradient of a ``geoopt.ManifoldParameter`` becomes the Riemannian one; first
    moments are transported along the step, the second moment is one number for each row (the
    squared norm in the metric), and every step ends on the manifold. Any other parameter is moved
    as by Adam, so one optimiser serves a whole model. Its state is kept in checkpoints like any
    other.

    Args:
        params: Parameters or groups.
        lr: Learning rate of groups that name none.
        betas: Decay of the first and second moment.
        eps: Added to the denominator.
        weight_decay: Factor of the L2 penalty (in coordinates).
        amsgrad: Keep the largest second moment.
        stabilize: Steps between two projections of points and moments, ``None`` for never (each
            step already ends on the manifold).

    Source:
        Bécigneul & Ganea (2019); geoopt 0.5.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        stabilize: int | None = None,
    ) -> None:
        beta1, beta2 = betas
        super().__init__(
            params,
            lr=lr,
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            stabilize=stabilize,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As in torch, which reads step counts as float32 tensors; geoopt counts in whole numbers.

        Without this a resumed run would correct its bias in float32 and drift from one that was
        never stopped.
        """
        super().__setstate__(state)
        for kept in self.state.values():
            if "step" in kept:
                kept["step"] = int(kept["step"])
