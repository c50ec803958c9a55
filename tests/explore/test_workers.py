"""Workers: real runs in other processes, deaths, the same results whatever the worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from neuralgraph.config import experiment
from neuralgraph.explore.runs import Job, do
from neuralgraph.explore.workers import LocalWorkers, RayWorkers, SubmititWorkers

SMALL = ("simulator.n_var=5", "simulator.n_run=6", "simulator.n_time=12", "trainer.progress=false")


def job(folder: Path, *overrides: str) -> Job:
    config = experiment("linear_smoke", *SMALL, "loop.n_epochs=2", *overrides)
    config["report"] = {"_target_": "neuralgraph.explore.runs.NoFigures"}
    config["identifiability"] = None
    return Job("run", config, str(folder), None)


def ignore(index: int, result: object) -> None:
    """No one looks on."""


def test_local_workers_retry_a_job_whose_process_dies_and_record_the_loss(tmp_path):
    here = do(job(tmp_path / "here"))
    pool = LocalWorkers(2, retries=1, log=tmp_path / "workers.log")
    try:
        first = pool.run([job(tmp_path / "a")], ignore)[0]
        process = pool.processes[0]
        assert process is not None
        assert first.metrics == here.metrics and first.losses == ()

        killer = threading.Thread(target=_kill_when, args=(tmp_path / "b/run.json", process.pid))
        killer.start()
        killed = pool.run([job(tmp_path / "b", "loop.n_epochs=100")], ignore)[0]
        killer.join()
        assert killed.status == "finished" and len(killed.losses) == 1
        assert "status -9" in killed.losses[0]

        bad = pool.run([job(tmp_path / "c", "loop.learning_rate=1e30")], ignore)[0]
        assert bad.status in ("finished", "failed") and bad.losses == ()
    finally:
        pool.close()


def _kill_when(path: Path, pid: int) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)


def test_a_job_that_no_worker_survives_is_failed_and_not_lost(tmp_path, monkeypatch):
    from neuralgraph.explore import workers

    def dead(process, job):
        raise workers.WorkerLost("killed")

    monkeypatch.setattr(workers, "_ask", dead)
    pool = LocalWorkers(1, retries=2, log=tmp_path / "workers.log")
    monkeypatch.setattr(pool, "_process", lambda slot: None)
    result = pool.run([job(tmp_path / "a")], ignore)[0]
    assert result.status == "failed" and len(result.losses) == 3
    assert "lost with its worker" in result.problem


@pytest.mark.long
def test_submitit_gives_the_same_results(tmp_path, kit):
    pytest.importorskip("submitit", reason="the optional extra slurm is not installed")
    here = do(job(tmp_path / "here"))
    pool = SubmititWorkers(kit.toy().settings, folder=tmp_path / "submitit")
    assert pool.run([job(tmp_path / "a")], ignore)[0].metrics == here.metrics


@pytest.mark.long
def test_two_ray_nodes_on_one_host_one_removed_mid_run(tmp_path):
    ray = pytest.importorskip("ray", reason="the optional extra ray is not installed")
    from ray.cluster_utils import Cluster

    here = do(job(tmp_path / "here", "loop.n_epochs=200"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    pool = RayWorkers(2, retries=2, address=cluster.address)
    try:
        jobs = [job(tmp_path / f"r{i}", "loop.n_epochs=200") for i in range(4)]

        def remove() -> None:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and not list(tmp_path.glob("r[01]/run.json")):
                time.sleep(0.05)
            cluster.remove_node(second, allow_graceful=False)

        remover = threading.Thread(target=remove)
        remover.start()
        results = pool.run(jobs, ignore)
        remover.join()
        assert [r.metrics for r in results] == [here.metrics] * 4
    finally:
        pool.close()
        cluster.shutdown()
        assert not ray.is_initialized()
