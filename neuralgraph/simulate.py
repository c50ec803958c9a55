"""``python -m neuralgraph.simulate +experiment=NAME``: data and truth, without training."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import guarded, plain
from neuralgraph.config import CONFIG_FOLDER


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="simulate")
def task(cfg: DictConfig) -> None:
    """Write ``data/recording.pt``, ``data/truth.pt``, ``data/given.pt`` and ``concentrations.csv``."""
    import torch
    from hydra.core.hydra_config import HydraConfig

    from neuralgraph import pipeline
    from neuralgraph.building import bind_switches, build
    from neuralgraph.run_folder import RunFolder
    from neuralgraph.terminal import print_recording

    config = plain_simulation(cfg)
    simulator = build(config["simulator"], "simulator")
    bind_switches(simulator.reveal, config["prior"])
    torch.set_num_threads(config["n_threads"])
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir), config, resume=False)
    recording, truth, _ = pipeline.simulate(simulator, config, folder.path / "data")
    folder.finish()
    print_recording(recording, truth, folder.path / "data")


def plain_simulation(cfg: DictConfig) -> dict:
    """The part of the config a simulation needs; the rest may be absent."""
    from omegaconf import OmegaConf

    kept = ("name", "question", "seed", "n_threads", "prior", "simulator", "budget")
    return plain(OmegaConf.masked_copy(cfg, kept))  # type: ignore[arg-type]


if __name__ == "__main__":
    guarded(task)
