"""``python -m neuralgraph.predict checkpoint=RUN perturbation=A+B``: genes up and down."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import guarded, reported
from neuralgraph.config import CONFIG_FOLDER


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="predict")
@reported
def task(cfg: DictConfig) -> None:
    """Print the genes that respond most, and write all of them to a table."""
    from neuralgraph.core.errors import ConfigError
    from neuralgraph.core.files import write_text
    from neuralgraph.systems.hyperbolic_response.predicting import predict

    if cfg.perturbation is None:
        raise ConfigError("say what to perturb: perturbation=GENE or perturbation=GENE+GENE")
    if not isinstance(cfg.n_top, int) or cfg.n_top < 1:
        raise ConfigError(f"n_top must be a whole number, 1 or above, got {cfg.n_top!r}")
    folder, model, data = load(cfg.checkpoint)
    answer = predict(model, data, str(cfg.perturbation), cell_type=cfg.cell_type)
    rows = answer.rows()
    if cfg.n_top > len(rows):
        raise ConfigError(f"n_top={cfg.n_top}, but {len(rows)} genes are predicted: lower it")
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    name = answer.perturbation + ("" if len(data.contexts) == 1 else f"_{answer.cell_type}")
    path = Path(cfg.out) if cfg.out else folder / "predictions" / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())
    print_answer(answer, rows, cfg.n_top, path)


def load(checkpoint: str | None) -> tuple[Path, Any, Any]:
    """Run folder, model with the weights of the checkpoint, and data.

    Raises:
        ConfigError: nothing named, or a run of another kind of model.
        RunFolderError: no finished run there.
    """
    from neuralgraph import pipeline
    from neuralgraph.core.errors import ConfigError
    from neuralgraph.run_folder import finished_folder, load_config
    from neuralgraph.systems.hyperbolic_response.model import ResponseModel
    from neuralgraph.training.checkpoint import load_checkpoint, load_weights

    if checkpoint is None:
        raise ConfigError("say which run: checkpoint=DIR, a run folder or a checkpoint in it")
    path = Path(checkpoint).absolute()
    is_file = path.is_file()
    folder = finished_folder(str(path.parent.parent if is_file else path))
    config = load_config(folder)
    _, session, _, _ = pipeline.reopen(config, folder)
    if not isinstance(session.model, ResponseModel):
        raise ConfigError(
            f"{checkpoint} holds a {type(session.model).__name__}, which predicts no response to "
            "a named perturbation: give a run of +experiment=hyperbolic_response…"
        )
    if is_file and path.name != "final.pt":
        load_weights(session.model, load_checkpoint(path)["model"], source=str(path))
    return folder, session.model, session.data


def print_answer(answer: Any, rows: list[dict[str, Any]], n_top: int, path: Path) -> None:
    """The genes at both ends, with 90 % intervals."""
    from rich.table import Table

    from neuralgraph.terminal import console, shown

    console.print(f"[bold]{answer.perturbation}[/bold] in {answer.cell_type}: {answer.note}")
    up = [row for row in rows if row["predicted"] > 0][:n_top]
    down = [row for row in reversed(rows) if row["predicted"] < 0][:n_top]
    for title, chosen in (("up", up), ("down", down)):
        table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
        table.add_column(title, no_wrap=True, min_width=12)
        heads = ["predicted", "90 % interval", "baseline"]
        heads += ["measured"] if answer.measured is not None else []
        for head in heads:
            table.add_column(head, justify="right", no_wrap=True)
        for row in chosen:
            cells = [
                f"{row['predicted']:+.3f}",
                f"[{row['low_90']:+.3f}, {row['high_90']:+.3f}]".replace("[", r"\["),
                f"{row['baseline']:+.3f}",
            ]
            cells += [f"{row['measured']:+.3f}"] if answer.measured is not None else []
            table.add_row(str(row["gene"]), *cells)
        console.print()
        console.print(table)
    console.print()
    console.print(f"{len(rows)} genes in [bold]{shown(path)}[/bold] (log expression vs. control)")


if __name__ == "__main__":
    guarded(task)
