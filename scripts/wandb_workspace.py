"""Create the Weights & Biases workspace of the project (needs an account, and ``wandb login``).

Sections: scores beside their baselines, training loss and every term, figures, and for sweeps the
parallel coordinates of what was varied against the primary metric. ``--dry-run`` builds and prints
the workspace without a network.

    python scripts/wandb_workspace.py --entity my-team --experiment metabolism_s
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def experiment_facts(name: str) -> tuple[str, list[str], list[str]]:
    """Primary metric, searched keys and names of the loss terms of an experiment."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from neuralgraph.config import CONFIG_FOLDER

    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        cfg = compose("train", [f"+experiment={name}"])
    space: Any = OmegaConf.to_container(cfg.search_space) if cfg.search_space else {}
    terms = [str(key) for key in cfg.loss if str(key).startswith("coeff_")]
    return cfg.evaluation.primary_metric, [str(key) for key in space], terms


def expected_metrics(name: str) -> list[str]:
    """Metrics the notebook claims for the experiment, else none."""
    path = ROOT / "experiments" / name / "expected.json"
    return list(json.loads(path.read_text())["metrics"]) if path.exists() else []


def build(entity: str, project: str, experiment: str) -> Any:
    """The workspace object."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws
    from wandb_workspaces.reports.v2.interface import ParallelCoordinatesPlotColumn

    primary, searched, terms = experiment_facts(experiment)
    scores = list(dict.fromkeys([primary, *expected_metrics(experiment)]))
    score_panels = [
        wr.BarPlot(
            title=name,
            metrics=[f"score/{name}", f"trivial/{name}"],
        )
        for name in scores
    ]
    columns = [ParallelCoordinatesPlotColumn(metric=f"c::{key}") for key in searched]
    columns.append(ParallelCoordinatesPlotColumn(metric=f"score/{primary}"))
    return ws.Workspace(
        name=f"neuralgraph · {experiment}",
        entity=entity,
        project=project,
        sections=[
            ws.Section(
                name="Scores beside baselines",
                panels=[*score_panels, wr.RunComparer(diff_only=True)],
                is_open=True,
            ),
            ws.Section(
                name="Loss and terms",
                panels=[
                    wr.LinePlot(title="loss", y=["train/loss", "train/regul_total"], log_y=True),
                    wr.LinePlot(title="terms", y=[f"train/{term}" for term in terms], log_y=True),
                ],
                is_open=True,
            ),
            ws.Section(
                name="Figures",
                panels=[wr.MediaBrowser(media_keys=["figure/*"])],
                is_open=True,
            ),
            ws.Section(
                name="Sweep",
                panels=[
                    wr.ParallelCoordinatesPlot(columns=columns),
                    wr.ParameterImportancePlot(with_respect_to=f"score/{primary}"),
                ],
            ),
        ],
    )


def main() -> None:
    """Parse, build, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entity", default="", help="your user or team")
    parser.add_argument("--project", default="neuralgraph")
    parser.add_argument("--experiment", default="metabolism_s")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace, send nothing")
    options = parser.parse_args()
    if not options.entity and not options.dry_run:
        sys.exit("--entity is needed: the W&B user or team that owns the project")
    try:
        workspace = build(options.entity or "entity", options.project, options.experiment)
    except ImportError:
        sys.exit("this script needs wandb-workspaces: pip install 'neuralgraph[wandb]'")
    if options.dry_run:
        outline = {
            section.name: [type(panel).__name__ for panel in section.panels]
            for section in workspace.sections
        }
        text = yaml.safe_dump({workspace.name: outline}, allow_unicode=True, sort_keys=False)
        print(text, end="")
        return
    workspace.save()
    print(workspace.url)


if __name__ == "__main__":
    main()
