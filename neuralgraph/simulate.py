"""``python -m neuralgraph.simulate +experiment=NAME``: data and truth, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import guarded, plain, reported
from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.errors import NeuralGraphError
from neuralgraph.core.threads import limit_threads

if TYPE_CHECKING:
    from neuralgraph.core.product import Product
    from neuralgraph.core.recording import Recording, Truth


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="simulate")
@reported
def task(cfg: DictConfig) -> None:
    """Write ``data/recording.pt``, ``data/truth.pt``, ``data/given.pt``, ``data/series.csv``.

    A simulator with a method ``exhibits(recording, truth, folder)`` adds figures and files of its
    own, which are printed and gathered in ``report.html``.
    """
    from hydra.core.hydra_config import HydraConfig

    from neuralgraph import pipeline
    from neuralgraph.building import bind_switches, build
    from neuralgraph.run_folder import RunFolder
    from neuralgraph.terminal import print_recording

    config = plain_simulation(cfg)
    simulator = build(config["simulator"], "simulator")
    bind_switches(simulator.reveal, config["prior"])
    limit_threads(config["n_threads"])
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir), config, resume=False)
    try:
        recording, truth, _ = pipeline.simulate(simulator, config, folder.path / "data")
        write_table(recording, folder.path / "data" / "series.csv")
        products = write_exhibits(simulator, config, recording, truth, folder.path)
    except NeuralGraphError:
        folder.fail()
        raise
    except BaseException:
        folder.release()
        raise
    folder.finish()
    print_recording(recording, truth, folder.path / "data")
    print_products(products, folder.path)


def write_exhibits(
    simulator: Any,
    config: Mapping[str, Any],
    recording: Recording,
    truth: Truth | None,
    folder: Path,
) -> list[Product]:
    """Figures and files a simulator shows besides its data, and a page with all of them."""
    from neuralgraph.core.files import write_text
    from neuralgraph.core.product import Product
    from neuralgraph.gallery import render_gallery

    exhibits = getattr(simulator, "exhibits", None)
    if exhibits is None:
        return []
    shown = list(exhibits(recording, truth, folder))
    products = [item for item in shown if isinstance(item, Product)]
    facts = {k: v for k, v in recording.provenance.items() if not isinstance(v, (list, dict))}
    html = render_gallery(
        config,
        folder,
        kind="simulation",
        facts=facts,
        warnings=recording.provenance.get("warnings", []),
        products=products,
        figures=[item for item in shown if not isinstance(item, Product)],
    )
    write_text(folder / "report.html", html)
    return products


def print_products(products: Sequence[Product], folder: Path) -> None:
    """What the simulator shows besides its data: first lines, and where the page lies."""
    from neuralgraph.terminal import console, print_report

    for product in products:
        console.print(f"\n[bold]{product.title}[/bold]  [dim]{product.caption}[/dim]")
        console.print(product.preview, markup=False)
    if products:
        console.print()
        print_report(folder)


def write_table(recording: Recording, path: Path) -> None:
    """The states as a table with the columns run, time and one for each variable."""
    import csv
    import io

    from neuralgraph.core.files import write_text

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "time", *recording.names])
    for run in range(recording.n_run):
        rows = zip(recording.time[run].tolist(), recording.state[run].tolist(), strict=True)
        writer.writerows([run, time, *state] for time, state in rows)
    write_text(path, buffer.getvalue())


def plain_simulation(cfg: DictConfig) -> dict:
    """The part of the config a simulation needs; the rest may be absent."""
    from omegaconf import OmegaConf

    kept = ("name", "question", "seed", "resume", "n_threads", "prior", "simulator", "budget")
    return plain(OmegaConf.masked_copy(cfg, list(kept)))


if __name__ == "__main__":
    guarded(task)
