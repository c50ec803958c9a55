"""Cost of a model and step: an ensemble in one batch, and its models one by one.

    python scripts/bench_ensemble.py --models 1 10 100

Prints processor seconds for each model and training step, and the ratio. The looped models are
the same field with one arm and one start, trained one after the other.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from neuralgraph.core.seeding import torch_generator
from neuralgraph.systems.perturb_ode.dataset import ScreenData
from neuralgraph.systems.perturb_ode.loop import train_arms
from neuralgraph.systems.perturb_ode.loss import ScreenObjective
from neuralgraph.systems.perturb_ode.model import FieldEnsemble
from neuralgraph.systems.perturb_ode.simulator import HillScreen
from neuralgraph.training.session import Session


def screen() -> ScreenData:
    """Data of the default screen in single precision."""
    recording, _ = HillScreen(
        n_gene=12, min_regulators=1, max_regulators=3, n_train_single=9, n_test_single=3,
        n_test_double=20, n_medium=0, days=[2.0, 3.0, 4.0, 5.0], noise=0.15, n_replicate=2,
        has_control=True, measurement=None,
    ).simulate(42)  # fmt: skip
    data = ScreenData(recording, {}, weighting="uniform", start="measured", gate_margin=0.1)
    return data.astype(torch.float32)


def seconds(data: ScreenData, n_model: int, n_step: int, n_hidden: int) -> float:
    """Processor seconds of ``n_step`` training steps of ``n_model`` models in one batch."""
    model = FieldEnsemble(
        data.spec, field="free", arms={"standard": {}}, n_seed=n_model, n_seed_of=None,
        n_seed_inner=1, n_hidden=n_hidden, n_layer=1, max_step=0.5, medium="additive",
        solver="rk4", rtol=1e-5, atol=1e-6, generator=torch_generator(0, "bench"),
    )  # fmt: skip
    objective: Any = ScreenObjective(data_loss="squared", dispersion=0.0, rollout_day=10.0)
    session = Session(model, data, objective, seed=0)
    began = time.process_time()
    train_arms(session, n_epochs=n_step, learning_rate=1e-3, clip_norm=1.0, curve_every=10**9)
    return time.process_time() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = screen()
    seconds(data, 1, 2, arguments.hidden)  # warm
    one = seconds(data, 1, arguments.steps, arguments.hidden) / arguments.steps
    print(f"one by one: {1e3 * one:.2f} ms a model and step")
    for n_model in arguments.models:
        every = seconds(data, n_model, arguments.steps, arguments.hidden)
        each = every / arguments.steps / n_model
        print(f"{n_model:4d} in one batch: {1e3 * each:.3f} ms, {one / each:.1f} times cheaper")


if __name__ == "__main__":
    main()
