"""Parameter groups by name prefix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from neuralgraph.core.errors import ConfigError, nearest


def parameter_groups(model: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Optimiser groups of the parameters whose names start with a key of ``rates``.

    The longest matching prefix decides; the empty prefix ``""`` matches every parameter. A prefix
    matches whole name parts: ``"sto"`` does not match ``sto_all``, ``"msg_mlp"`` matches
    ``msg_mlp.0.weight``. Parameters that are frozen (``requires_grad`` False) stay out.

    Args:
        model: Module whose named parameters are grouped.
        rates: Learning rate by name prefix.

    Returns:
        One group per prefix that has parameters, in the order of ``rates``; ``group["names"]``
        lists the parameter names.

    Raises:
        ConfigError: a prefix that matches no parameter at all.
    """
    for prefix, rate in rates.items():
        if not rate >= 0:
            raise ConfigError(f"the learning rate of '{prefix}' must be 0 or above, got {rate}")
    members: dict[str, list[tuple[str, nn.Parameter]]] = {prefix: [] for prefix in rates}
    everything = dict(model.named_parameters())
    for prefix in rates:
        if not any(_matches(prefix, name) for name in everything):
            raise ConfigError(
                f"no parameter of {type(model).__name__} is named '{prefix}…': "
                + nearest(prefix, everything)
            )
    for name, parameter in everything.items():
        fitting = [prefix for prefix in rates if _matches(prefix, name)]
        if parameter.requires_grad and fitting:
            members[max(fitting, key=len)].append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in members[prefix]],
            "names": [name for name, _ in members[prefix]],
            "lr": float(rate),
        }
        for prefix, rate in rates.items()
        if members[prefix]
    ]


def _matches(prefix: str, name: str) -> bool:
    return prefix == "" or name == prefix or name.startswith(prefix + ".")
