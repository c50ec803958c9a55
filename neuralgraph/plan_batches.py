"""``python -m neuralgraph.plan_batches``: what a design of batches can measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import guarded, reported
from neuralgraph.config import CONFIG_FOLDER

if TYPE_CHECKING:
    from torch import Tensor

    from neuralgraph.systems.perturb_ode.batching import Variances


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="plan_batches")
@reported
def task(cfg: DictConfig) -> None:
    """Write ``plan.json``, ``figures/plan.png`` and ``report.html``."""
    from hydra.core.hydra_config import HydraConfig

    from neuralgraph.run_folder import RunFolder

    config = checked(cfg)
    variances, by_gene = variances_of(config)
    plan = planned(config, variances)
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir), config, resume=False)
    try:
        write(config, variances, by_gene, plan, folder.path)
    except BaseException:
        folder.release()
        raise
    folder.finish()
    print_plan(config, plan, folder.path)


def checked(cfg: DictConfig) -> dict[str, Any]:
    """Resolved plain config, with the types the formulas need.

    Raises:
        ConfigError: a value of another type, or out of its range.
    """
    from omegaconf import OmegaConf

    from neuralgraph.core.errors import ConfigError

    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for name in ("n_perturbation", "n_treated", "n_control", "n_batch", "min_cells"):
        value = config[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{name} must be a whole number, 1 or above, got {value!r}")
    for name in ("cost_batch", "cost_cell"):
        if not isinstance(config[name], (int, float)) or not config[name] > 0:
            raise ConfigError(f"{name} must be a number above 0, got {config[name]!r}")
    for name, value in config["variance"].items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ConfigError(f"variance.{name} must be a number, got {value!r}")
    return config


def variances_of(config: dict[str, Any]) -> tuple[Variances, dict[str, Any]]:
    """Given variances, or those of the pilot with their values by gene."""
    from neuralgraph.systems.perturb_ode.batching import Variances, estimate_variances

    if config["pilot"] is None:
        return Variances(**config["variance"]), {}
    import anndata

    from neuralgraph.core.data_home import find_data

    return estimate_variances(
        anndata.read_h5ad(find_data(config["pilot"])),
        perturbation_column=config["perturbation_column"],
        batch_column=config["batch_column"],
        control_label=config["control_label"],
        min_cells=config["min_cells"],
    )


def planned(config: dict[str, Any], variances: Variances) -> dict[str, Any]:
    """Numbers, comparisons and warnings of a design."""
    import csv

    from neuralgraph.core.data_home import find_data
    from neuralgraph.systems.perturb_ode import batching

    sizes = {key: config[key] for key in ("n_treated", "n_control", "n_batch")}
    n_perturbation = config["n_perturbation"]
    if config["table"] is not None:
        with find_data(config["table"]).open(encoding="utf-8", newline="") as file:
            cells = batching.read_design(list(csv.DictReader(file)), config["control_label"])
        control = cells.pop(config["control_label"])
        designs = {name: (treated, control) for name, treated in cells.items()}
        n_perturbation = len(designs)
        compared_at = sizes_of_table(list(cells.values()), control)
    else:
        compared_at = sizes
        designs = {config["layout"]: batching.layout(config["layout"], **sizes)}
    rows, warnings = [], []
    for name, (treated, control) in designs.items():
        variance = batching.effect_variance(treated, control, variances)
        rows.append(
            {
                "design": name,
                "treated": float(treated.sum()),
                "control": float(control.sum()),
                "variance": variance,
                "standard_error": variance**0.5,
                "variance_stratified": batching.stratified_variance(treated, control, variances),
                "variance_with_endless_cells": batching.floor_of_variance(
                    treated, control, variances
                ),
            }
        )
        label = f"'{name}'" if config["table"] is not None else "this layout"
        warnings += batching.warnings_of(treated, control, variances, label)
    ratio = batching.best_control_ratio(n_perturbation)
    best = batching.best_cells_per_batch(
        variances,
        n_perturbation=n_perturbation,
        cost_batch=config["cost_batch"],
        cost_cell=config["cost_cell"],
    )
    others = {
        name: batching.effect_variance(*batching.layout(name, **compared_at), variances)
        for name in batching.LAYOUTS
        if compared_at and (compared_at["n_batch"] > 1 or name == "crossed")
    }
    return {
        "variances": vars(variances),
        "source_of_variances": "given" if config["pilot"] is None else str(config["pilot"]),
        "rows": rows,
        "warnings": warnings,
        "best_control_cells_per_treated_cell": ratio,
        "best_share_of_controls": ratio / (n_perturbation + ratio),
        "best_treated_cells_per_batch": best,
        "best_control_cells_per_batch": ratio * best,
        "variance_by_layout": others,
        "layouts_compared_at": compared_at,
    }


def sizes_of_table(treated: list[Tensor], control: Tensor) -> dict[str, int]:
    """Sizes at which the layouts are compared with a table: its own, mean over perturbations.

    Perturbations and batches without cells do not count; empty where nothing is left.
    """
    cells = [float(each.sum()) for each in treated if float(each.sum()) > 0]
    if not cells or float(control.sum()) <= 0:
        return {}
    is_used = control > 0
    for each in treated:
        is_used = is_used | (each > 0)
    return {
        "n_treated": max(1, round(sum(cells) / len(cells))),
        "n_control": max(1, round(float(control.sum()))),
        "n_batch": int(is_used.sum()),
    }


def write(
    config: dict[str, Any],
    variances: Variances,
    by_gene: dict[str, Any],
    plan: dict[str, Any],
    folder: Path,
) -> None:
    """Every file of a plan."""
    from neuralgraph.core.files import write_text
    from neuralgraph.core.product import Product
    from neuralgraph.gallery import render_gallery
    from neuralgraph.systems.perturb_ode.plots import plan_figure
    from neuralgraph.terminal import number

    def plain(value: Any) -> Any:  # JSON knows no infinity
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and value == float("inf") else value

    content = {
        **plain(plan),
        "variances_by_gene": {name: values.tolist() for name, values in by_gene.items()},
    }
    write_text(folder / "plan.json", json.dumps(content, indent=1) + "\n")
    header = ["design", "treated", "control", "variance", "stratified", "endless cells"]
    keys = ("treated", "control", "variance", "variance_stratified", "variance_with_endless_cells")
    table = {
        "title": "Variance of the effect",
        "note": "Pooled means; contrasts within batches; and what more cells cannot lower.",
        "header": header,
        "body": [[row["design"], *(number(row[key]) for key in keys)] for row in plan["rows"]],
    }
    compared_at = plan["layouts_compared_at"]
    figures = []
    if compared_at:
        path = folder / "figures" / "plan.png"
        figures.append(plan_figure(variances, **compared_at, path=path))
    facts = {
        "batch variance": variances.batch,
        "batch × perturbation variance": variances.batch_condition,
        "cell variance": variances.cell,
        "best control cells for each treated cell": plan["best_control_cells_per_treated_cell"],
        "best treated cells in a batch": plan["best_treated_cells_per_batch"],
    }
    html = render_gallery(
        config,
        folder,
        kind="plan",
        facts=facts,
        warnings=plan["warnings"],
        tables=[table],
        products=[Product(folder / "plan.json", "For other programs", "Every number of the plan.")],
        figures=figures,
    )
    write_text(folder / "report.html", html)


def print_plan(config: dict[str, Any], plan: dict[str, Any], folder: Path) -> None:
    """The plan in the terminal."""
    from rich.table import Table

    from neuralgraph.terminal import console, number, print_report

    found = plan["variances"]
    console.print(
        f"variances ({plan['source_of_variances']}): batch {number(found['batch'])}, batch × "
        f"perturbation {number(found['batch_condition'])}, cell {number(found['cell'])}"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    heads = ("design", "variance of the effect", "within batches", "with endless cells")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left")
    keys = ("variance", "variance_stratified", "variance_with_endless_cells")
    for row in plan["rows"]:
        table.add_row(row["design"], *(number(row[key]) for key in keys))
    console.print(table)
    console.print(
        "control cells for each cell of one perturbation, best: "
        f"{number(plan['best_control_cells_per_treated_cell'])} (√K); "
        f"{100 * plan['best_share_of_controls']:.0f} % of all cells"
    )
    best = plan["best_treated_cells_per_batch"]
    console.print(
        "cells in a batch, best at these costs: "
        + (
            "as many as fit (no variance between batches)"
            if best == float("inf")
            else f"{number(best)} of each perturbation, "
            f"{number(plan['best_control_cells_per_batch'])} controls"
        )
    )
    for warning in plan["warnings"]:
        console.print(f"[yellow]{warning}[/yellow]")
    print_report(folder)


if __name__ == "__main__":
    guarded(task)
