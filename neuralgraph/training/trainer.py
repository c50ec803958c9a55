"""The shared trainer: run a loop in a session and keep its result."""

from __future__ import annotations

from typing import Any

import torch

from neuralgraph.core.contracts import Loop
from neuralgraph.training.session import Session


def train(session: Session, loop: Loop) -> dict[str, Any]:
    """Run ``loop`` to its end (or on from where it stopped) and write the final checkpoint.

    Returns:
        Numbers of the training for the scorecard: ``final_loss`` (the data term over every
        training frame, after the last step) and ``n_steps``.
    """
    if session.folder is not None:
        found = session.resume_from(session.folder / "checkpoints" / "last.pt")
        if not found:  # killed before its first checkpoint: lines of that attempt go
            (session.folder / "metrics.jsonl").unlink(missing_ok=True)
            (session.folder / "evaluation.jsonl").unlink(missing_ok=True)
    loop(session)
    session.model.eval()
    if session.folder is not None:
        path = session.folder / "checkpoints" / "final.pt"
        session.save(path, phase=None, epoch=0, done=True)
    return training_log(session)


def training_log(session: Session) -> dict[str, Any]:
    """Numbers, notes and the store of a finished training.

    ``final_loss`` is over every training frame.
    """
    with torch.no_grad():
        everything = session.data.batch(session.data.starts(1), 1)
        final_loss = float(session.objective(session.model, everything).loss)
    return {
        "final_loss": final_loss,
        "n_steps": session.n_steps,
        "notes": list(session.store.get("notes", [])),
        "store": session.store,
    }
