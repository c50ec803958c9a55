"""A published regulatory graph as a prior."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import DataError


def prior_edges(path: str, names: Sequence[str]) -> Tensor:
    """Which gene regulates which, ``(n_gene, n_gene)`` bool: entry (i, j) is j on i.

    Args:
        path: Tab-separated table without a header; its first two columns are regulator and target.
        names: Measured genes.

    Raises:
        DataError: no edge between measured genes, or no table of edges.
    """
    place = {name: i for i, name in enumerate(names)}
    is_edge = torch.zeros(len(names), len(names), dtype=torch.bool)
    file = find_data(path)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise DataError(
                f"{file.name}, line {number}: expected regulator and target, tab-separated, got "
                f"'{line[:60]}'"
            )
        regulator, target = place.get(columns[0]), place.get(columns[1])
        if regulator is not None and target is not None and regulator != target:
            is_edge[target, regulator] = True
    if not bool(is_edge.any()):
        raise DataError(
            f"{file.name} holds no edge between the {len(names)} measured genes "
            f"({', '.join(names[:5])} …): are these the same gene names?"
        )
    return is_edge
