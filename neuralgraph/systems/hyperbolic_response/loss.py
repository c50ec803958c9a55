"""What is asked of the residual: less of the error that the baseline leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from neuralgraph.core.bounds import NotNegative
from neuralgraph.core.terms import Terms
from neuralgraph.systems.hyperbolic_response.dataset import ResponseBatch, ResponseData
from neuralgraph.systems.hyperbolic_response.model import ResponseModel
from neuralgraph.systems.hyperbolic_response.tasks import Builder, Tasks


class ResidualObjective:
    r"""Squared error of held-out questions, relative to that of the baseline.

    :math:`\sum_{models} \mathrm{mean}_{i}\; |\delta_i - b_i - r_i|^2 / |\delta_i - b_i|^2` over
    the training conditions i that a member of the ensemble may learn from, plus ``pull`` times the
    squared distance of the weights from where training begins. Each model's term is 1 at the
    start; models are summed, so that none feels another.

    Args:
        pull: Weight of that distance.
    """

    def __init__(self, *, pull: NotNegative) -> None:
        self.pull = pull
        self._data: ResponseData | None = None
        self._tasks: Tasks | None = None

    def prepare(self, data: ResponseData) -> None:
        """Remember the data; questions are made of them when the model is known."""
        self._data, self._tasks = data, None

    def tasks(self, model: ResponseModel) -> Tasks:
        """The training questions of the data, made once."""
        assert self._data is not None, "prepare(data) comes first"
        if self._tasks is None:
            builder = Builder(self._data, model.settings)
            weight = model.weight["embed"]
            self._tasks = builder.training().to(weight.device, weight.dtype)
            self._known = builder.known[0]
            self._rows = builder.rows
        return self._tasks

    def __call__(self, model: ResponseModel, batch: ResponseBatch | Tasks) -> Terms:
        """Loss terms; a batch of conditions is looked up among the questions."""
        tasks = self.tasks(model)
        wanted = tasks.is_real if isinstance(batch, Tasks) else self._wanted(tasks, batch)
        every = model.members(tasks)
        left = tasks.target - tasks.base
        squared = (left[:, :, None] - every).square().mean(-1) * tasks.weight[:, :, None]
        member = torch.arange(model.n_member, device=wanted.device)
        learned = (tasks.chunk[:, None] != member[:, None]) & wanted[:, None]  # (F, M, T)
        share = learned.to(squared.dtype)
        total = (squared * share).sum(-1) / share.sum(-1).clamp_min(1)
        terms = Terms(total.sum())
        if self.pull > 0:
            away = [
                (value - model.get_buffer(f"anchor_{name}")).square().sum()
                for name, value in model.weight.items()
            ]
            terms.add("pull", torch.stack(away).sum(), self.pull)
        return terms

    def _wanted(self, tasks: Tasks, batch: ResponseBatch) -> Tensor:
        """Which questions the conditions of a batch are, ``(F, T)``."""
        wanted = torch.zeros_like(tasks.is_real)
        for fold in batch.fold.unique().tolist():
            rows = self._rows[fold]
            known = self._known[fold]
            asked = batch.fold == fold
            hot = (batch.multi_hot[asked].cpu() > 0).double()
            same = (known.hot[rows][:, None] == hot).all(-1)
            same &= known.context[rows][:, None] == batch.context[asked].cpu()
            wanted[fold, : len(rows)] = same.any(1).to(wanted.device)
        return wanted
