"""Training speed of Metabolism_Propagation beside a plain per-frame loop of the same arithmetic.

    python scripts/bench_training.py                 # table on screen
    python scripts/bench_training.py --out bench.json

Both sides train the same network (the model as its configuration ships it) from the same values in
one process and one thread, in turns, with fused Adam. The plain loop does what the documents'
trainer does: one forward pass per frame, the MLP on every edge, ``index_add``, the loss summed over
the batch. Ours goes through :meth:`Session.step`. The second table grows the network: cost per step
against number of edges.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import softplus

from neuralgraph.nn.mlp import MLP, PowerLawMLP
from neuralgraph.systems.metabolism.dataset import MetabolismBatch, MetabolismSpec
from neuralgraph.systems.metabolism.loss import MetabolismObjective
from neuralgraph.systems.metabolism.model import Metabolism_Propagation
from neuralgraph.training.adam import Adam
from neuralgraph.training.session import Session

LN10 = math.log(10.0)
CONF = Path(__file__).resolve().parents[1] / "conf" / "model"
MODELS = ("metabolism_mass_action", "metabolism_learned_rate")


def shipped(stem: str) -> dict[str, Any]:
    """Knobs of ``model=stem``, as the configuration ships them."""
    config = yaml.safe_load((CONF / f"{stem}.yaml").read_text(encoding="utf-8"))
    return {name: value for name, value in config.items() if not name.startswith("_")}


def random_spec(n_met: int, n_rxn: int, *, given: bool, generator: torch.Generator) -> Any:
    """Random network: 1-3 substrates and 1-3 products with |s| 1 or 2, or two-metabolite cycles.

    Args:
        n_met: Number of metabolites.
        n_rxn: Number of reactions.
        given: Coefficients are given and every reaction is A + B -> 2 B (document 002); else only
            support and roles are (document 001).
        generator: Source of the draw.
    """
    sub: list[tuple[int, int, float]] = []
    net: list[tuple[int, int, float]] = []
    for j in range(n_rxn):
        n_sub, n_prod = (1, 1) if given else torch.randint(1, 4, (2,), generator=generator).tolist()
        drawn = torch.randint(n_met, (4 * (n_sub + n_prod),), generator=generator).tolist()
        mets = list(dict.fromkeys(drawn))[: n_sub + n_prod]
        drawn = torch.randint(1, 3, (len(mets),), generator=generator).tolist()
        size = [1] * len(mets) if given else drawn
        for i, (met, s) in enumerate(zip(mets, size, strict=True)):
            if i < n_sub or given:
                sub.append((met, j, float(s)))
            net.append((met, j, float(-s if i < n_sub else s)))
    met_sub, rxn_sub, sto_sub = (torch.tensor(x) for x in zip(*sub, strict=True))
    met_all, rxn_all, sto_all = (torch.tensor(x) for x in zip(*net, strict=True))
    return MetabolismSpec(
        n_met=n_met,
        n_rxn=n_rxn,
        met_sub=met_sub,
        rxn_sub=rxn_sub,
        met_all=met_all,
        rxn_all=rxn_all,
        sign_all=sto_all.sign(),
        sto_sub=sto_sub if given else None,
        sto_all=sto_all if given else None,
        order_sub=None,
        log_k=None,
        metabolite_names=tuple(f"M{i}" for i in range(n_met)),
        reaction_names=tuple(f"R{j}" for j in range(n_rxn)),
        concentration_scale=5.0,
        frame_interval=0.1,
        input_mode="none",
        has_roles=True,
        has_support=True,
    )


@dataclass
class Frames:
    """Random frames, as a dataset the session can draw from."""

    spec: Any
    concentration: Tensor
    dx_dt: Tensor

    def to(self, device: Any) -> Frames:
        """The same frames."""
        return self

    def starts(self, horizon: int) -> Tensor:
        """Every frame."""
        return torch.arange(len(self.concentration))

    def batch(self, index: Tensor, horizon: int = 1) -> MetabolismBatch:
        """Frames by index."""
        return MetabolismBatch(
            concentration=self.concentration[index],
            dx_dt=self.dx_dt[index],
            inputs=None,
            future=None,
            future_inputs=None,
            dt=0.1,
            run=index,
            frame=index,
            time=index.to(self.concentration.dtype),
        )

    def validation(self) -> None:
        """None."""
        return None


class PerFrame:
    """The same parameters, run one frame at a time, edge by edge."""

    def __init__(self, model: Metabolism_Propagation) -> None:
        self.model = model
        self.order = model.sto_sub.detach().abs()
        self.levels, self.level = torch.unique(self.order, return_inverse=True)

    def __call__(self, concentration: Tensor) -> Tensor:
        """Derivatives of one frame, ``(n_met,)``."""
        m = self.model
        if m.kinetics == "learned_rate":
            pairs = torch.stack([concentration[m.met_sub], m.sto_sub.abs()], dim=1)
            message = plain_mlp(m.msg_mlp, pairs)
            h = message.new_zeros(m.n_rxn, message.shape[1]).index_add(0, m.rxn_sub, message)
            rate = softplus(plain_mlp(m.rate_mlp, h)).squeeze(1)
        else:
            log_f = self.log_substrate(concentration[m.met_sub])
            rate = log_f.new_zeros(m.n_rxn).index_add(0, m.rxn_sub, log_f).exp()
        v = torch.pow(10.0, m.log_k) * rate
        out = v.new_zeros(m.n_met).index_add(0, m.met_all, m.sto_all * v[m.rxn_all])
        if m.has_homeostasis:
            state = torch.cat([concentration.unsqueeze(1), m.a], dim=1)
            out = out + plain_mlp(m.MLP_node, state).squeeze(1)
        return out

    def log_substrate(self, c: Tensor) -> Tensor:
        """Logarithm of ``MLP_sub`` of every substrate edge; N(0, s) once per |s|, not per edge."""
        f = self.model.MLP_sub
        assert isinstance(f, PowerLawMLP)
        log_c = c.clamp_min(f.floor).log()
        value = plain_mlp(f.net, torch.stack([log_c, self.order], dim=1)).squeeze(1)
        at_one = plain_mlp(f.net, torch.stack([torch.zeros_like(self.levels), self.levels], dim=1))
        return value - at_one.squeeze(1)[self.level] + f.power * self.order * log_c

    def loss(self, batch: MetabolismBatch) -> Tensor:
        """Mean squared error, frame by frame."""
        total = batch.concentration.new_zeros(())
        for c, y in zip(batch.concentration, batch.dx_dt, strict=True):
            total = total + (self(c) - y).square().mean()
        return total / len(batch.concentration)


def plain_mlp(mlp: MLP, x: Tensor) -> Tensor:
    """Layer by layer with torch's own operations."""
    x = x * mlp.input_scale
    for layer in mlp.children():
        x = layer(x)
    return x


def build(
    name: str, n_met: int, n_rxn: int, dtype: torch.dtype, **changed: Any
) -> tuple[Metabolism_Propagation, Frames]:
    """A model of this kind and size, and frames for it."""
    generator = torch.Generator().manual_seed(1)
    spec = random_spec(n_met, n_rxn, given=name.endswith("mass_action"), generator=generator)
    model = Metabolism_Propagation(spec, generator=generator, **{**shipped(name), **changed})
    c = 2.5 + 5.0 * torch.rand(256, n_met, generator=generator)
    y = torch.randn(256, n_met, generator=generator)
    model.to(dtype)
    return model, Frames(spec, c.to(dtype), y.to(dtype))


class Ours:
    """Steps through a real session."""

    def __init__(self, model: Metabolism_Propagation, data: Any) -> None:
        self.session = Session(model, data, cast(Any, MetabolismObjective()), optimizer=Adam)

    def run(
        self, batches: list[MetabolismBatch], rounds: Callable[[Callable[[], None]], Any]
    ) -> Any:
        """Hand ``rounds`` a function that takes all steps once."""
        with self.session.phase("bench", train={"": 1e-3}) as phase:
            for _ in phase.epochs(1):

                def once() -> None:
                    for batch in batches:
                        self.session.step(batch)

                return rounds(once)


def cpu_and_wall(once: Callable[[], None], n_step: int) -> tuple[float, float]:
    """Processor and wall seconds per step."""
    wall, cpu = time.perf_counter(), time.process_time()
    once()
    return (time.process_time() - cpu) / n_step, (time.perf_counter() - wall) / n_step


def side_by_side(
    name: str, *, batch_size: int, n_step: int, n_round: int, **changed: Any
) -> dict[str, Any]:
    """Steps per second of both, measured in turns."""
    dtype = torch.float32
    model, data = build(name, 100, 256, dtype, **changed)
    twin, _ = build(name, 100, 256, dtype)
    twin.load_state_dict(model.state_dict())
    per_frame = PerFrame(twin)
    generator = torch.Generator().manual_seed(2)
    batches = [
        data.batch(torch.randint(256, (batch_size,), generator=generator)) for _ in range(n_step)
    ]
    first = MetabolismObjective()(model, batches[0]).total.detach()
    gap = float((first - per_frame.loss(batches[0]).detach()).abs() / first)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3, fused=True)

    def plain() -> None:
        for batch in batches:
            loss = per_frame.loss(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    def rounds(once: Callable[[], None]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
        once()
        plain()
        return [(cpu_and_wall(once, n_step), cpu_and_wall(plain, n_step)) for _ in range(n_round)]

    turns = Ours(model, data).run(batches, rounds)
    result = {
        "model": name,
        "tabulate": model.tabulate,
        "float": "float32",
        "batch_size": batch_size,
        "steps_per_s": 1 / statistics.median(ours[1] for ours, _ in turns),
        "steps_per_s_per_frame_loop": 1 / statistics.median(plain[1] for _, plain in turns),
        "ratio_wall": statistics.median(plain[1] / ours[1] for ours, plain in turns),
        "ratio_cpu": statistics.median(plain[0] / ours[0] for ours, plain in turns),
        "steps_per_cpu_s": 1 / min(ours[0] for ours, _ in turns),
        "relative_loss_gap_first_step": gap,
    }
    return result


def scaling(name: str, sizes: list[tuple[int, int]], *, batch_size: int) -> list[dict[str, Any]]:
    """Cost of a step against the number of edges."""
    rows = []
    for n_met, n_rxn in sizes:
        for tabulate in (None, 128) if name.endswith("mass_action") else (None,):
            model, data = build(name, n_met, n_rxn, torch.float32, tabulate=tabulate)
            n_step = max(3, 20_000 // n_met)
            batches = [data.batch(torch.arange(batch_size))] * n_step

            def rounds(once: Callable[[], None], n_step: int = n_step) -> tuple[float, float]:
                once()
                times = [cpu_and_wall(once, n_step) for _ in range(3)]
                return min(cpu for cpu, _ in times), min(wall for _, wall in times)

            cpu, wall = Ours(model, data).run(batches, rounds)
            n_edge = model.met_sub.numel() + model.met_all.numel()
            rows.append(
                {
                    "model": name,
                    "tabulate": tabulate,
                    "n_met": n_met,
                    "n_rxn": n_rxn,
                    "n_edge": n_edge,
                    "ms_per_step": 1e3 * wall,
                    "cpu_ms_per_step": 1e3 * cpu,
                    "cpu_us_per_edge": 1e6 * cpu / n_edge,
                }
            )
    return rows


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="steps in a turn")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--no-scaling", action="store_true", help="leave the second table out")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 120)
    sides = {"batch_size": args.batch_size, "n_step": args.steps, "n_round": args.rounds}
    speed = [side_by_side(name, **sides) for name in MODELS]
    speed.insert(1, side_by_side("metabolism_mass_action", tabulate=None, **sides))
    table = Table(title=f"100 metabolites, 256 reactions, batch {args.batch_size}, 1 thread")
    for column in (
        "model",
        "table",
        "float",
        "steps/s",
        "per-frame loop",
        "ratio",
        "ratio (CPU time)",
    ):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in speed:
        table.add_row(
            row["model"],
            str(row["tabulate"] or "-"),
            row["float"],
            f"{row['steps_per_s']:.0f}",
            f"{row['steps_per_s_per_frame_loop']:.1f}",
            f"{row['ratio_wall']:.1f}x",
            f"{row['ratio_cpu']:.1f}x",
        )
    console.print(table)
    grown: list[dict[str, Any]] = []
    if not args.no_scaling:
        sizes = [(100, 256), (1_000, 2_500), (10_000, 25_000)]
        for name in MODELS:
            grown += scaling(name, sizes, batch_size=args.batch_size)
        table = Table(title=f"Cost of a step, batch {args.batch_size}, 1 thread, float32")
        for column in ("model", "table", "n_met", "n_rxn", "edges", "ms/step", "us/edge (CPU)"):
            table.add_column(column, justify="left" if column == "model" else "right")
        for row in grown:
            table.add_row(
                row["model"],
                str(row["tabulate"] or "-"),
                f"{row['n_met']:,}",
                f"{row['n_rxn']:,}",
                f"{row['n_edge']:,}",
                f"{row['ms_per_step']:.2f}",
                f"{row['cpu_us_per_edge']:.2f}",
            )
        console.print(table)
    if args.out is not None:
        args.out.write_text(json.dumps({"speed": speed, "scaling": grown}, indent=2) + "\n")


if __name__ == "__main__":
    main()
