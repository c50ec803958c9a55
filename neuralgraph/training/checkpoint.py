"""Checkpoints: everything a run needs to go on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuralgraph.core.errors import CheckpointError, DataError, nearest
from neuralgraph.core.recording import load_tensors, save_tensors


def save_checkpoint(path: Path | str, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    save_tensors(path, {"kind": "checkpoint", **content})


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint with ``weights_only=True``, so that no code in the file can run.

    Raises:
        CheckpointError: missing, broken, or not a checkpoint of this program.
    """
    try:
        return load_tensors(path, kind="checkpoint")
    except DataError as error:
        raise CheckpointError(f"{error}. Point to the 'checkpoints' folder of a run") from error


def load_weights(model: nn.Module, weights: dict[str, Tensor], *, source: str) -> None:
    """Copy ``weights`` into ``model`` and say exactly what does not fit.

    Raises:
        CheckpointError: names or shapes differ.
    """
    own = model.state_dict()
    missing = sorted(set(own) - set(weights))
    foreign = sorted(set(weights) - set(own))
    if missing or foreign:
        hint = f" ({nearest(foreign[0], own)})" if foreign else ""
        raise CheckpointError(
            f"{source} belongs to another model than {type(model).__name__}: it lacks "
            f"{missing[:4] or 'nothing'} and holds unknown {foreign[:4] or 'nothing'}{hint}"
        )
    for name, tensor in own.items():
        if weights[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: '{name}' has shape {tuple(weights[name].shape)}, this model expects "
                f"{tuple(tensor.shape)}: load it with the config it was trained with"
            )
    with torch.no_grad():
        model.load_state_dict(weights)
