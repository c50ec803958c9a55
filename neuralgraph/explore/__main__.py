"""``python -m neuralgraph.explore +experiment=NAME``: a closed-loop search over an experiment."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import claim_folder, guarded, plain, reported
from neuralgraph.config import CONFIG_FOLDER
from neuralgraph.core.threads import limit_threads


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="explore")
@reported
def task(cfg: DictConfig) -> float | None:
    """One search; returns the best primary metric."""
    config = plain(cfg)
    limit_threads(config["n_threads"])

    from neuralgraph.explore.loop import explore, has_more
    from neuralgraph.explore.setup import identity, prepare
    from neuralgraph.explore.views import Screen, print_end, print_start

    search = prepare(config)
    folder = claim_folder(identity(config), has_more=lambda path: has_more(search, path))
    print_start(search, folder.path, resumed=folder.resumed)
    try:
        with Screen(search, folder.path) as screen:
            history = explore(search, folder.path, screen)
    except BaseException:
        folder.release()  # what has run is kept, and the search can go on
        raise
    folder.finish()
    print_end(search, history, folder.path)
    return None if history.best_run is None else history.best_run.metric


if __name__ == "__main__":
    guarded(task)
