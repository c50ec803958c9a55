"""Options of a search, ``explore.*``."""

from __future__ import annotations

from dataclasses import dataclass

from neuralgraph.core.bounds import Count, Natural, Positive
from neuralgraph.core.errors import ConfigError, nearest
from neuralgraph.explore.tree import FORMS, check_c

PROPOSERS = ("rules", "random", "optuna", "command")
WORKERS = ("local", "ray", "submitit")
SMALLEST_MEMORY = 60
"""Lines below which the memory file cannot hold its headings and one iteration."""


@dataclass(frozen=True)
class Slurm:
    """Resources of a job under ``explore.workers=submitit``.

    Args:
        cluster: ``slurm``, ``local`` (processes of this machine), ``debug``; ``null``: Slurm where
            there is one.
        partition: Slurm partition, ``null`` for the default.
        timeout_min: Time limit of a run.
        memory_GB: Memory of a run.
        n_cpus: Cores of a run.
    """

    cluster: str | None
    partition: str | None
    timeout_min: Count
    memory_GB: Count
    n_cpus: Count


@dataclass(frozen=True)
class Settings:
    """Everything under ``explore``.

    Args:
        n_iter_block: Iterations of a block; every run is one iteration.
        n_blocks: Blocks.
        n_parallel: Runs of a batch; a batch is decided together and merged in slot order.
        ucb_c: Exploration constant of the UCB, in [0.5, 3].
        ucb_form: ``mean`` or ``document``.
        seed: Of the search's own choices; ``null``: the run's seed.
        proposer: ``rules``, ``random``, ``optuna`` or ``command``.
        command: Program of the proposer ``command``, as a shell would read it.
        command_retries: Bad answers of the command before the rules take over.
        command_timeout_s: Seconds it may take.
        n_epochs: Sets ``loop.n_epochs`` of every run and takes it out of the space.
        data_augmentation_loop: Sets ``loop.data_augmentation_loop`` likewise.
        allow_code: Allow code modifications (the variants of ``search_plan``).
        reward_best: Best possible value of the primary metric; ``null``: 1 or 0.
        reward_scale: Distance from the best value at which the reward is one half.
        replicate_share: Largest share of the runs spent on replicates.
        n_together: Changes that one explore or principle-test run combines at most; 1: every run is
            one change away from its parent (but for the plan's own moves and recombine).
        memory_max_lines: Lines of the memory file; ``null``: as the plan says.
        report: Whether each run draws its figures.
        workers: ``local``, ``ray`` or ``submitit``.
        worker_retries: Attempts after the loss of a worker.
        ray_address: A running cluster; ``null``: Ray on this machine.
        slurm: Resources of a job.
    """

    n_iter_block: Count
    n_blocks: Count
    n_parallel: Count
    ucb_c: float
    ucb_form: str
    seed: Natural | None
    proposer: str
    command: str | None
    command_retries: Natural
    command_timeout_s: Positive
    n_epochs: Count | None
    data_augmentation_loop: Count | None
    allow_code: bool
    reward_best: float | None
    reward_scale: Positive
    replicate_share: float
    n_together: Count
    memory_max_lines: Count | None
    report: bool
    workers: str
    worker_retries: Natural
    ray_address: str | None
    slurm: Slurm

    def __post_init__(self) -> None:
        check_c(self.ucb_c)
        for name, known in (
            ("ucb_form", FORMS),
            ("proposer", PROPOSERS),
            ("workers", WORKERS),
        ):
            got = getattr(self, name)
            if got not in known:
                raise ConfigError(f"explore.{name}={got}: {nearest(got, known)}")
        if self.proposer == "command" and not (self.command or "").strip():
            raise ConfigError(
                "explore.proposer=command needs explore.command='program arguments': it reads a "
                "request on stdin and prints proposals as JSON (docs/explore.md)"
            )
        if not 0 <= self.replicate_share <= 1:
            raise ConfigError(
                f"explore.replicate_share is a share in [0, 1], got {self.replicate_share:g}"
            )
        if self.memory_max_lines is not None and self.memory_max_lines < SMALLEST_MEMORY:
            raise ConfigError(
                f"explore.memory_max_lines must be at least {SMALLEST_MEMORY}, "
                f"got {self.memory_max_lines}"
            )

    @property
    def n_iterations(self) -> int:
        """Iterations of the whole search."""
        return self.n_iter_block * self.n_blocks
