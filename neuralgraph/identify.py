"""``python -m neuralgraph.identify +experiment=NAME``: what the data determine, before training."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import guarded, plain, reported
from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.errors import ConfigError, NeuralGraphError
from neuralgraph.core.threads import limit_threads

POINTS = ("prior", "truth")


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="identify")
@reported
def task(cfg: DictConfig) -> None:
    """Simulate or load, analyse, and write table, figures and ``identifiability.html``."""
    from hydra.core.hydra_config import HydraConfig

    config = plain(cfg)
    limit_threads(config["n_threads"])

    from neuralgraph import identifying, pipeline
    from neuralgraph.core.files import write_text
    from neuralgraph.reporting import render_identifiability
    from neuralgraph.run_folder import RunFolder
    from neuralgraph.terminal import print_identifiability, print_start

    at, replicates = config["identify"]["at"], config["identify"]["replicates"]
    if at not in POINTS:
        raise ConfigError(f"identify.at must be {' or '.join(POINTS)}, got '{at}'")
    if replicates < 0:
        raise ConfigError(f"identify.replicates must be 0 or above, got {replicates}")
    parts = pipeline.compose(config)
    part = parts.identifiability
    if part is None:
        raise ConfigError(
            "this experiment names no identifiability part: add identifiability=STEM (one of "
            "conf/identifiability), such as identifiability=metabolism"
        )
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir), config, resume=False)
    print_start(config, folder.path, resumed=False)
    try:
        recording, truth, given = pipeline.simulate(parts.simulator, config, folder.path / "data")
        if at == "truth" and truth is None:
            raise ConfigError(
                "identify.at=truth needs simulated data: measured data have no truth; use "
                "identify.at=prior"
            )
        data, model = pipeline.cut_and_build(parts, config, recording, given)
        found = identifying.examine(
            part, model, data, truth, at=at, seed=config["seed"], replicates=replicates
        )
        identifying.save(found, folder.path, precise_below=part.precise_below)
        section = identifying.section(folder.path)
        assert section is not None
        html = render_identifiability(config, folder.path, recording, section)
        write_text(folder.path / "identifiability.html", html)
    except NeuralGraphError:
        folder.fail()
        raise
    except BaseException:
        folder.release()
        raise
    folder.finish()
    print_identifiability(found.summary, folder.path)


if __name__ == "__main__":
    guarded(task)
