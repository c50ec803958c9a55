"""Where runs are executed: processes of this machine, Ray, or Slurm through submitit.

All of them do the same (:func:`neuralgraph.explore.runs.do`) and give the same results. A worker
that dies takes one attempt with it: the loss is recorded and the job is tried again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, Protocol

from neuralgraph.core.errors import MissingExtraError, NeuralGraphError
from neuralgraph.core.threads import VARIABLES
from neuralgraph.explore.runs import Job, Result, do
from neuralgraph.explore.settings import Settings

OnDone = Callable[[int, Result], None]
POLL_S = 0.05


class WorkerLost(Exception):
    """A worker died with its job."""


class Workers(Protocol):
    """Somewhere to run."""

    def run(self, jobs: Sequence[Job], on_done: OnDone) -> list[Result]:
        """Do all jobs; results in the order of the jobs, ``on_done`` as each one ends."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


def lost(attempts: Sequence[str]) -> Result:
    """Result of a job that no worker survived."""
    return Result(
        "failed", {}, {}, {}, {}, problem=f"lost with its worker {len(attempts)} times",
        losses=tuple(attempts),
    )  # fmt: skip


# -- processes of this machine ------------------------------------------------------------------


class LocalWorkers:
    """Persistent processes, one thread each.

    Args:
        n: Processes; not more than there are cores.
        retries: Attempts after a loss.
        log: File that collects what the processes say.
    """

    def __init__(self, n: int, *, retries: int, log: Path) -> None:
        self.n = max(1, min(n, n_cores()))
        self.retries = retries
        self.log = log
        self.processes: list[subprocess.Popen[str] | None] = [None] * self.n
        self._file: IO[str] | None = None

    def run(self, jobs: Sequence[Job], on_done: OnDone) -> list[Result]:
        """Each process takes the next job."""
        results: list[Result | None] = [None] * len(jobs)
        waiting = list(range(len(jobs)))
        lock = threading.Lock()
        problems: list[BaseException] = []

        def serve(slot: int) -> None:
            while True:
                with lock:
                    if not waiting or problems:
                        return
                    index = waiting.pop(0)
                try:
                    result = self._do(slot, jobs[index])
                except BaseException as error:
                    problems.append(error)
                    return
                with lock:
                    results[index] = result
                    on_done(index, result)

        threads = [
            threading.Thread(target=serve, args=(slot,), daemon=True)
            for slot in range(min(self.n, len(jobs)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # joined in pieces, so that Ctrl-C comes through
                thread.join(0.5)
        if problems:
            raise problems[0]
        return [r for r in results if r is not None]

    def _do(self, slot: int, job: Job) -> Result:
        losses: list[str] = []
        while len(losses) <= self.retries:
            process = self._process(slot)
            try:
                return replace(_ask(process, job), losses=tuple(losses))
            except WorkerLost as error:
                losses.append(str(error))
                self.processes[slot] = None
        return lost(losses)

    def _process(self, slot: int) -> subprocess.Popen[str]:
        process = self.processes[slot]
        if process is None or process.poll() is not None:
            if self._file is None:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.log.open("a", encoding="utf-8")
            process = subprocess.Popen(
                [sys.executable, "-m", "neuralgraph.explore.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._file,
                text=True,
                env=_environment(),
            )
            self.processes[slot] = process
        return process

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            if process is None:
                continue
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self.processes = [None] * self.n
        if self._file is not None:
            self._file.close()
            self._file = None


def _ask(process: subprocess.Popen[str], job: Job) -> Result:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(asdict(job)) + "\n")
        process.stdin.flush()
    except OSError:
        raise WorkerLost(_epitaph(process)) from None
    line = process.stdout.readline()
    if not line.endswith("\n"):
        raise WorkerLost(_epitaph(process))
    content = json.loads(line)
    return Result(**{**content, "losses": tuple(content["losses"])})


def _epitaph(process: subprocess.Popen[str]) -> str:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                continue
    return f"process {process.pid} ended with status {process.wait()}"


def _environment() -> dict[str, str]:
    environment = {**os.environ, **dict.fromkeys(VARIABLES, "1")}
    paths = [p for p in sys.path if p and Path(p).is_dir()]
    here = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([here, os.getcwd(), *paths]))
    return environment


def n_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# -- Ray ----------------------------------------------------------------------------------------


class RayWorkers:
    """Ray: on this machine, or on a running cluster that shares the run folder.

    Args:
        n: Runs at a time, for Ray on this machine.
        retries: Attempts after a worker or its node is lost.
        address: A running cluster, ``None`` for this machine.
    """

    def __init__(self, n: int, *, retries: int, address: str | None) -> None:
        try:
            import ray
            import ray.exceptions
        except ImportError as error:
            raise MissingExtraError("ray", "ray", "explore.workers=ray") from error
        self.ray = ray
        self.retries = retries
        self.is_mine = not ray.is_initialized()
        if self.is_mine:
            # the workers run in the caller's environment; Ray must not build one of its own
            os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
            options: dict[str, Any] = {
                "include_dashboard": False,
                "logging_level": "ERROR",
                "log_to_driver": False,
                "runtime_env": {
                    "env_vars": {
                        **dict.fromkeys(VARIABLES, "1"),
                        "PYTHONPATH": _environment()["PYTHONPATH"],
                    }
                },
            }
            if address is None:
                options["num_cpus"] = max(1, min(n, n_cores()))
            else:
                options["address"] = address
                del options["include_dashboard"]
            ray.init(**options)
        self.task: Any = ray.remote(num_cpus=1, max_retries=0)(do)

    def run(self, jobs: Sequence[Job], on_done: OnDone) -> list[Result]:
        """One task for each job; a lost one is submitted again."""
        ray = self.ray
        results: list[Result | None] = [None] * len(jobs)
        losses: list[list[str]] = [[] for _ in jobs]
        pending: dict[Any, int] = {self.task.remote(job): i for i, job in enumerate(jobs)}
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=1.0)
            for reference in ready:
                index = pending.pop(reference)
                try:
                    result = replace(ray.get(reference), losses=tuple(losses[index]))
                except ray.exceptions.RayTaskError as error:
                    raise NeuralGraphError(f"a Ray task broke: {error}") from error
                except ray.exceptions.RayError as error:
                    losses[index].append(f"{type(error).__name__} on Ray")
                    if len(losses[index]) <= self.retries:
                        pending[self.task.remote(jobs[index])] = index
                        continue
                    result = lost(losses[index])
                results[index] = result
                on_done(index, result)
        return [r for r in results if r is not None]

    def close(self) -> None:
        """Leave the cluster (and end it, where it was ours)."""
        if self.is_mine:
            self.ray.shutdown()


# -- Slurm --------------------------------------------------------------------------------------


class SubmititWorkers:
    """Slurm jobs through submitit; every run is a job of its own.

    Args:
        settings: Holds the resources and the retries.
        folder: For submitit's own files; on a file system the nodes share.
    """

    def __init__(self, settings: Settings, *, folder: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            raise MissingExtraError("submitit", "slurm", "explore.workers=submitit") from error
        slurm = settings.slurm
        self.retries = settings.worker_retries
        self.n_parallel = settings.n_parallel
        self.executor = submitit.AutoExecutor(folder=str(folder), cluster=slurm.cluster)
        self.executor.update_parameters(
            timeout_min=slurm.timeout_min, mem_gb=slurm.memory_GB, cpus_per_task=slurm.n_cpus
        )
        if slurm.partition is not None:
            self.executor.update_parameters(slurm_partition=slurm.partition)

    def run(self, jobs: Sequence[Job], on_done: OnDone) -> list[Result]:
        """One Slurm job for each; a lost one is submitted again."""
        results: list[Result | None] = [None] * len(jobs)
        losses: list[list[str]] = [[] for _ in jobs]
        waiting = list(range(len(jobs)))
        pending: dict[int, Any] = {}
        while waiting or pending:
            while waiting and len(pending) < self.n_parallel:
                index = waiting.pop(0)
                pending[index] = self._submit(jobs[index])
            for index, handle in list(pending.items()):
                if not handle.done():
                    continue
                del pending[index]
                result = self._collect(handle, index, losses)
                if result is None:
                    waiting.insert(0, index)
                    continue
                results[index] = result
                on_done(index, result)
            time.sleep(POLL_S)
        return [r for r in results if r is not None]

    def _submit(self, job: Job) -> Any:
        before = dict(os.environ)
        os.environ.update(_environment())
        try:
            return self.executor.submit(do, job)
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _collect(self, handle: Any, index: int, losses: list[list[str]]) -> Result | None:
        try:
            return replace(handle.result(), losses=tuple(losses[index]))
        except Exception as error:  # submitit has many ways to say that a job is gone
            losses[index].append(f"job {handle.job_id}: {type(error).__name__}")
            return lost(losses[index]) if len(losses[index]) > self.retries else None

    def close(self) -> None:
        """Jobs that run are left to Slurm."""


def build(settings: Settings, folder: Path) -> Workers:
    """The workers that ``explore.workers`` names."""
    if settings.workers == "ray":
        return RayWorkers(
            settings.n_parallel, retries=settings.worker_retries, address=settings.ray_address
        )
    if settings.workers == "submitit":
        return SubmititWorkers(settings, folder=folder / "submitit")
    return LocalWorkers(
        settings.n_parallel, retries=settings.worker_retries, log=folder / "workers.log"
    )
