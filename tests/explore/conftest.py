"""A toy search: three parameters, a metric that is a formula, runs that cost nothing."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from neuralgraph.explore.history import History, Iteration, Proposal
from neuralgraph.explore.loop import Watcher, explore
from neuralgraph.explore.notebook import Change, CodeChange
from neuralgraph.explore.plan import Plan, read_plan
from neuralgraph.explore.reward import Reward
from neuralgraph.explore.runs import Result
from neuralgraph.explore.settings import Settings, Slurm
from neuralgraph.explore.setup import Search
from neuralgraph.explore.space import SEED, VARIANT, read_space

CONFIG = {
    "name": "toy",
    "seed": 7,
    "training_seed": None,
    "n_threads": 1,
    "simulator": {"seed": None},
    "loop": {"_target_": "neuralgraph.training.loops.fit", "rate": 1e-3, "batch": 16},
    "loss": {"penalty": 0.0},
    "trainer": {"progress": True},
    "logger": {"group": None},
    "report": {},
}
SPACE = {
    "loop.rate": {"low": 1e-4, "high": 1e-1, "scale": "log", "group": "schedule", "name": "lr"},
    "loop.batch": {"values": [8, 16, 32, 64], "group": "schedule"},
    "loss.penalty": {"values": [0.0, 0.1, 1.0], "group": "regularisation"},
}
SETTINGS = Settings(
    n_iter_block=6, n_blocks=2, n_parallel=2, ucb_c=1.414, ucb_form="mean", seed=None,
    proposer="rules", command=None, command_retries=1, command_timeout_s=30.0, n_epochs=None,
    data_augmentation_loop=None, allow_code=False, reward_best=None, reward_scale=1.0,
    replicate_share=0.2, n_together=6, memory_max_lines=None, report=False, workers="local",
    worker_retries=1, ray_address=None, slurm=Slurm("local", None, 5, 1, 1),
)  # fmt: skip


def score(config) -> float:
    """Best at lr 1e-2 and a penalty of 0.1, with a little noise of the seed."""
    away = abs(math.log10(config["loop"]["rate"]) + 2) / 3 + abs(config["loss"]["penalty"] - 0.1)
    noise = zlib.crc32(repr((config["training_seed"], config["loop"], config["loss"])).encode())
    return 1.0 - 0.5 * away + 0.005 * (noise / 2**32 - 0.5)


class Pool:
    """Workers that compute a formula; ``answers`` overrides single iterations."""

    def __init__(self, answers=None, die_after=None):
        self.answers = answers or {}
        self.die_after = die_after
        self.n = 0
        self.configs = []

    def run(self, jobs, on_done):
        results = []
        for index, job in enumerate(jobs):
            if job.kind == "run":
                if self.die_after is not None and self.n >= self.die_after:
                    raise KeyboardInterrupt
                self.n += 1
                self.configs.append(job.config)
            metric = score(job.config)
            facts = {"class": "converged" if metric > 0.95 else "partial"}
            result = Result(
                "finished", {"test_R2": metric, "final_loss": 1 - metric}, {}, facts, {}
            )
            number = int(job.folder.rsplit("/", 1)[-1]) if job.kind == "run" else 0
            results.append(self.answers.get(number, result))
            on_done(index, results[-1])
        return results

    def close(self):
        pass


def toy(*, space=None, plan=None, **settings) -> Search:
    node = SPACE if space is None else space
    chosen = replace(SETTINGS, **settings)
    read = read_space(node, CONFIG, list((plan or {}).get("variants") or ()))
    root = {k: CONFIG[k.split(".")[0]][k.split(".")[1]] for k in read}
    return Search(
        name="toy", question="Does it search?", config=CONFIG, settings=chosen, space=read,
        plan=read_plan(plan, read), root={**root, SEED: 7, VARIANT: None}, metric="test_R2",
        reward=Reward("maximize", None, 1.0), seed=7,
    )  # fmt: skip


def made(number, parent=None, *, rewards=0.5, verdict="partial", strategy="exploit", block=1,
         metrics=None, **values) -> Iteration:  # fmt: skip
    """One finished iteration by hand; ``values`` are short names."""
    keys = {"lr": "loop.rate", "batch": "loop.batch", "penalty": "loss.penalty", "seed": SEED,
            "variant": VARIANT}  # fmt: skip
    base = {"loop.rate": 1e-3, "loop.batch": 16, "loss.penalty": 0.0, SEED: 7, VARIANT: None}
    new = {**base, **{keys[k]: v for k, v in values.items()}}
    changes = tuple(Change(k, base[k], v) for k, v in new.items() if v != base[k])
    metric = None if rewards == 0 else 2 - 1 / rewards
    return Iteration(
        number=number, block=block, batch=number, slot=0,
        proposal=Proposal(parent, new, changes, strategy, "by hand"),
        status="finished", verdict=verdict, verdict_document="", metric=metric, reward=rewards,
        metrics={**({} if metric is None else {"test_R2": metric}), **(metrics or {})},
    )  # fmt: skip


def history(*iterations) -> History:
    root = {"loop.rate": 1e-3, "loop.batch": 16, "loss.penalty": 0.0, SEED: 7, VARIANT: None}
    return History(iterations, root)


def composed(*overrides):
    """Plain config of the verb ``explore``."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from neuralgraph.cli import plain
    from neuralgraph.config import CONFIG_FOLDER

    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return plain(compose("explore", list(overrides)))


@pytest.fixture
def kit():
    """Everything above, and a search run to its end in memory."""

    def run(folder, pool=None, **options):
        return explore(toy(**options), folder, Watcher(), pool or Pool())

    return SimpleNamespace(
        toy=toy, made=made, history=history, Pool=Pool, run=run, config=CONFIG, space=SPACE,
        score=score, composed=composed, Plan=Plan, CodeChange=CodeChange,
    )  # fmt: skip
