"""``python -m neuralgraph.evaluate run=DIR``: judge a finished run again."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import guarded, only_run, reported
from neuralgraph.config import CONFIG_FOLDER


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="evaluate")
@reported
def task(cfg: DictConfig) -> None:
    """Score the final checkpoint and write the report; training is not repeated."""
    from neuralgraph import pipeline
    from neuralgraph.run_folder import finished_folder, load_config
    from neuralgraph.terminal import print_result

    only_run("evaluate")
    folder = finished_folder(cfg.run)
    config = load_config(folder)
    parts, session, truth, given = pipeline.reopen(config, folder)
    log = pipeline.training_log(session)
    scorecard = pipeline.judge(
        parts.evaluation, config, session.model, session.data, truth, log, given
    )
    scorecard.save(folder)
    pipeline.examine(parts, config, session, folder)
    pipeline.write_report(parts.report, config, folder, session, truth, scorecard)
    print_result(scorecard, folder)


if __name__ == "__main__":
    guarded(task)
