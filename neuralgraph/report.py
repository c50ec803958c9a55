"""``python -m neuralgraph.report run=DIR``: draw the figures and the report of a run again."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import guarded, only_run, reported
from neuralgraph.config import CONFIG_FOLDER


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="report")
@reported
def task(cfg: DictConfig) -> None:
    """Read scorecard, checkpoint and data; write ``figures/`` and ``report.html``."""
    from neuralgraph import pipeline
    from neuralgraph.core.scorecard import Scorecard
    from neuralgraph.run_folder import finished_folder, load_config
    from neuralgraph.terminal import print_report

    only_run("report")
    folder = finished_folder(cfg.run)
    config = load_config(folder)
    parts, session, truth, _ = pipeline.reopen(config, folder)
    scorecard = Scorecard.load(folder)
    pipeline.write_report(parts.report, config, folder, session, truth, scorecard)
    print_report(folder)


if __name__ == "__main__":
    guarded(task)
