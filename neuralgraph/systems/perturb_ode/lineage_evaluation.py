"""How fitted lineages are judged: clouds of held-out knock-outs, kinds of cells, pseudotime."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural
from neuralgraph.core.recording import Truth
from neuralgraph.core.scorecard import Scorecard
from neuralgraph.core.seeding import torch_generator
from neuralgraph.systems.perturb_ode.distribution import energy_distance
from neuralgraph.systems.perturb_ode.glossary import LINEAGE
from neuralgraph.systems.perturb_ode.lineage import CloudData, LineageField

UNDECIDED = "progenitor"


class LineageEvaluator:
    """Energy distance between predicted and measured clouds, beside predictions that need no model.

    ``energy_distance_held_out`` is a mean over held-out knock-outs and days (0: the same
    distribution, noise around it), ``…_train`` over training conditions. Beside: ``…_no_change``
    (cells stay as they were on day 0) and ``…_unperturbed`` (unperturbed cells of the same day,
    without the gene). ``n_better_than_unperturbed`` counts held-out knock-outs. With a truth:
    ``type_share_error_…``, half the sum of absolute differences of the shares of cell types on the
    last day. ``pseudotime_day_spearman``: rank correlation of the pseudotime of unperturbed cells
    with their day.

    Args:
        every: Epochs between two looks while training, 0 for none.
        primary_metric: The number searches look at.
        direction: ``maximize`` or ``minimize``.
        n_cell_pseudotime: Most cells of which pseudotime is computed.
        n_neighbors: Neighbours of a cell in its graph.
    """

    meanings = LINEAGE

    def __init__(
        self,
        *,
        every: Natural,
        primary_metric: str,
        direction: str,
        n_cell_pseudotime: Count,
        n_neighbors: Count,
    ) -> None:
        self.every = every
        self.primary_metric = primary_metric
        self.direction = direction
        self.n_cell_pseudotime, self.n_neighbors = n_cell_pseudotime, n_neighbors

    def __call__(
        self,
        model: LineageField,
        data: CloudData,
        truth: Truth | None,
        *,
        log: Mapping[str, Any],
    ) -> Scorecard:
        """Every score; the facts hold what the figures need."""
        card = Scorecard()
        batch = data.everything()
        with torch.no_grad():
            clouds, weights = model(batch, seed=1)
        clouds, weights = clouds.double().cpu(), weights.double().cpu()
        seen = batch.target.double().cpu()
        kept = batch.production.double().cpu()[:, None, None]
        usual = (seen[:1] * kept).expand_as(seen).contiguous()
        still = batch.start.double().cpu()[:, None].expand_as(seen)
        held, train = data.is_test, ~data.is_test
        found = {
            "": energy_distance(clouds, seen, weights),
            "_no_change": energy_distance(still, seen),
            "_unperturbed": energy_distance(usual, seen),
        }
        card.add("energy_distance_train", float(found[""][train].mean()))
        if bool(held.any()):
            for name, value in found.items():
                card.add(f"energy_distance_held_out{name}", float(value[held].mean()))
            better = found[""][held].mean(1) < found["_unperturbed"][held].mean(1)
            card.add("n_better_than_unperturbed", int(better.sum()))
            card.add("n_held_out", int(held.sum()))
        else:
            card.skip("energy_distance_held_out", "no knock-out is held out")
        names = data.conditions
        card.facts["energy"] = {
            name: {
                "held_out": bool(held[k]),
                "model": float(found[""][k].mean()),
                "no change": float(found["_no_change"][k].mean()),
                "unperturbed": float(found["_unperturbed"][k].mean()),
            }
            for k, name in enumerate(names)
        }
        kinds = self._types(card, data, truth, clouds, weights, usual)
        self._pseudotime(card, data, kinds)
        card.add("final_loss", log["final_loss"])
        card.facts["baselines"] = {
            "energy_distance_held_out": {
                "no change": card.metrics.get("energy_distance_held_out_no_change", float("nan")),
                "unperturbed": card.metrics.get(
                    "energy_distance_held_out_unperturbed", float("nan")
                ),
            }
        }
        return card

    def _types(
        self,
        card: Scorecard,
        data: CloudData,
        truth: Truth | None,
        clouds: Tensor,
        weights: Tensor,
        usual: Tensor,
    ) -> tuple[Tensor, list[str]] | None:
        """Shares of cell types on the last day; returns the measured type of every cell."""
        if truth is None:
            card.skip("type_share_error_held_out", "no truth: cell types are not known")
            return None
        names = [UNDECIDED, *truth.facts["types"]]
        centres = torch.cat([truth.parameters["progenitor"][None], truth.parameters["ends"]])
        seen = data.everything().target.double().cpu()
        start = data.everything().start.double().cpu()
        measured = nearest_centre(torch.cat([start[:, None], seen], 1), centres)
        shares = shares_of(measured[:, -1], len(names))
        predicted = shares_of(nearest_centre(clouds[:, -1], centres), len(names), weights[:, -1])
        unperturbed = shares_of(nearest_centre(usual[:, -1], centres), len(names))
        held = data.is_test
        if bool(held.any()):
            for name, value in (("", predicted), ("_unperturbed", unperturbed)):
                error = 0.5 * (value - shares).abs().sum(1)
                card.add(f"type_share_error_held_out{name}", float(error[held].mean()))
        card.facts["shares"] = {
            "types": names,
            "measured": dict(zip(data.conditions, shares.tolist(), strict=True)),
            "predicted": dict(zip(data.conditions, predicted.tolist(), strict=True)),
        }
        return measured, names

    def _pseudotime(
        self, card: Scorecard, data: CloudData, kinds: tuple[Tensor, list[str]] | None
    ) -> None:
        """Pseudotime of measured cells of every condition, by diffusion from the progenitors."""
        batch = data.everything()
        every = torch.cat([batch.start[:, None], batch.target], 1).double().cpu()
        n_run, n_time, n_cell, _ = every.shape
        run = torch.arange(n_run)[:, None, None].expand(n_run, n_time, n_cell).flatten()
        day = torch.arange(n_time)[None, :, None].expand(n_run, n_time, n_cell).flatten()
        order = torch.randperm(len(run), generator=torch_generator(0, "cells of pseudotime"))
        chosen = order[: self.n_cell_pseudotime].sort().values
        cells, run, day = every.flatten(0, 2)[chosen], run[chosen], day[chosen]
        origin = every[0, 0].mean(0)
        root = int((cells - origin).square().sum(1).argmin())
        pseudotime, coordinates = diffusion_pseudotime(cells, root, self.n_neighbors)
        from scipy.stats import spearmanr

        usual = (run == 0) & torch.isfinite(pseudotime)
        if len(day[usual].unique()) > 1:
            rank: Any = spearmanr(pseudotime[usual].numpy(), day[usual].numpy())
            card.add("pseudotime_day_spearman", float(rank[0]))
        else:
            card.skip("pseudotime_day_spearman", "too few unperturbed cells reach the graph")
        card.facts["cells"] = {
            "condition": run.tolist(),
            "pseudotime": [round(v, 4) if v == v else None for v in pseudotime.tolist()],
            "coordinates": [[round(v, 4) for v in row] for row in coordinates.tolist()],
            "type": None if kinds is None else kinds[0].flatten()[chosen].tolist(),
        }

    def watch(self, model: LineageField, data: CloudData, truth: Truth | None) -> dict[str, float]:
        """Energy distance on held-out knock-outs, for ``evaluation.jsonl``."""
        held = data.is_test.nonzero()[:, 0]
        if len(held) == 0:
            return {}
        batch = data.rows(held)
        with torch.no_grad():
            clouds, weights = model(batch, seed=1)
        value = energy_distance(clouds.double(), batch.target.double(), weights.double())
        return {"energy_distance_held_out": float(value.mean())}


def nearest_centre(cells: Tensor, centres: Tensor) -> Tensor:
    """Index of the nearest of ``(n_centre, n_gene)`` for cells ``(*n, n_gene)``."""
    return (cells[..., None, :] - centres).square().sum(-1).argmin(-1)


def shares_of(kind: Tensor, n_kind: int, weight: Tensor | None = None) -> Tensor:
    """Share of each kind in the last axis of ``(*n, n_cell)``: ``(*n, n_kind)``."""
    one = torch.nn.functional.one_hot(kind, n_kind).double()
    if weight is None:
        return one.mean(-2)
    return (one * weight[..., None]).sum(-2)


def diffusion_pseudotime(cells: Tensor, root: int, n_neighbors: int) -> tuple[Tensor, Tensor]:
    """Pseudotime by scanpy, ``(n_cell,)`` in [0, 1] (not finite where the root is not reached).

    Args:
        cells: ``(n_cell, n_gene)``.
        root: Number of the cell from which time runs.
        n_neighbors: Neighbours of a cell.

    Returns:
        Pseudotime, and two principal components for drawing, ``(n_cell, 2)``.

    Source:
        Haghverdi et al. (2016), as scanpy has it.
    """
    import anndata
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scanpy and what it imports warn of each other's future
        import scanpy

        index = pd.Index([f"c{i}" for i in range(len(cells))])
        table = anndata.AnnData(cells.numpy(), obs=pd.DataFrame(index=index))
        n_component = min(10, min(cells.shape) - 1)
        scanpy.pp.pca(table, n_comps=n_component, random_state=0)
        scanpy.pp.neighbors(
            table, n_neighbors=n_neighbors, n_pcs=n_component, method="gauss", random_state=0
        )
        scanpy.tl.diffmap(table, n_comps=min(15, len(cells) - 2), random_state=0)
        table.uns["iroot"] = root
        scanpy.tl.dpt(table)
    time = torch.tensor(table.obs["dpt_pseudotime"].to_numpy(dtype=float, copy=True))
    time[~torch.isfinite(time)] = float("nan")
    return time, torch.tensor(table.obsm["X_pca"][:, :2].copy())
