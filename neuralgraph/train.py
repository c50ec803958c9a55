"""``python -m neuralgraph.train +experiment=NAME``: one command from a question to a report."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import claim_folder, guarded, plain, reported
from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.errors import NeuralGraphError
from neuralgraph.core.threads import limit_threads


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="train")
@reported
def task(cfg: DictConfig) -> float | None:
    """One run; returns the primary metric (for sweepers)."""
    config = plain(cfg)
    limit_threads(config["n_threads"])  # before the libraries that read it are loaded

    from neuralgraph import pipeline
    from neuralgraph.terminal import print_result, print_start

    pipeline.compose(config)
    folder = claim_folder(config)
    print_start(config, folder.path, resumed=folder.resumed)
    try:
        scorecard = pipeline.run(config, folder.path)
    except NeuralGraphError:
        folder.fail()
        raise
    except BaseException:
        folder.release()
        raise
    folder.finish()
    print_result(scorecard, folder.path)
    return scorecard.metrics.get(scorecard.provenance["primary_metric"])


if __name__ == "__main__":
    guarded(task)
