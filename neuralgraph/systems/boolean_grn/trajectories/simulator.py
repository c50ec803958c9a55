"""A Boolean network, run from random states."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural, Positive
from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, nearest
from neuralgraph.core.files import write_text
from neuralgraph.core.product import Product
from neuralgraph.core.recording import Recording, Truth
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.boolean_grn.attractors import ENGINES, AttractorList, find_attractors
from neuralgraph.systems.boolean_grn.circuit import (
    EXAMPLES,
    SignedCircuit,
    are_connected,
    example_circuit,
    random_circuits,
)
from neuralgraph.systems.boolean_grn.network import BooleanNetwork
from neuralgraph.systems.boolean_grn.oracle import N_GENE_EXACT, RULES, UPDATES

if TYPE_CHECKING:
    from neuralgraph.viz.figure import Figure


class BooleanTrajectories:
    """Trajectories of a Boolean network from uniformly drawn states, and its attractors.

    The network is a ``.bnet`` file, or a small circuit under an update rule.

    Args:
        path: A ``.bnet`` file (a path, or ``folder/file`` of the data folder), or ``null``.
        circuit: Without a file: the name of an example circuit, its text, such as
            ``"A -> B, B -| A"``, or ``random:5`` for a connected circuit of so many genes (two
            regulators a gene on average) that the seed draws.
        rule: Update rule of the circuit; a file has its own functions.
        update: ``synchronous``: all genes at once; ``asynchronous``: one random gene a step.
        n_run: Trajectories to learn from.
        n_test_run: Trajectories held out.
        n_time: Frames of a trajectory.
        engine: How attractors are found: ``exact``, ``symbolic``, or ``auto`` (exact up to 20
            genes).
        n_listed: Attractors written out; all are counted.
        seconds_limit: Seconds for the symbolic search for attractors of several states.
        n_start: Random starts from which a large network's synchronous cycles are sampled.
    """

    def __init__(
        self,
        *,
        path: str | None,
        circuit: str,
        rule: str,
        update: str,
        n_run: Count,
        n_test_run: Natural,
        n_time: Count,
        engine: str,
        n_listed: Count,
        seconds_limit: Positive,
        n_start: Natural,
    ) -> None:
        for what, value, known in (
            ("rule", rule, RULES),
            ("update", update, UPDATES),
            ("engine", engine, ENGINES),
        ):
            if value not in known:
                raise ConfigError(
                    f"simulator.{what}: there is no {what} '{value}': {nearest(value, known)}"
                )
        if n_time < 2:
            raise ConfigError(f"simulator.n_time must be at least 2 frames, got {n_time}")
        self.path = path
        self.update = update
        self.n_run = n_run
        self.n_test_run = n_test_run
        self.n_time = n_time
        self.engine = engine
        self.n_listed = n_listed
        self.seconds_limit = seconds_limit
        self.n_start = n_start
        self.rule = rule
        self.n_drawn: int | None = None
        if path is not None:
            is_in_folder = len(Path(path).parts) > 1  # a bare name is a file here
            self.network = BooleanNetwork.load(find_data(path) if is_in_folder else path)
            self.source = Path(path).name
        elif not isinstance(circuit, str) or not circuit.strip():
            raise ConfigError(
                "the circuit is empty: give simulator.circuit a text such as 'A -> B, B -| A' or "
                f"the name of an example ({', '.join(EXAMPLES)}), or simulator.path a .bnet file"
            )
        elif drawn := re.fullmatch(r"random:(\d+)", circuit):
            self.n_drawn = int(drawn[1])
            self.source = f"a random circuit of {self.n_drawn} genes"
            if not 1 <= self.n_drawn <= N_GENE_EXACT:
                raise ConfigError(f"simulator.circuit={circuit}: give 1 to {N_GENE_EXACT} genes")
        else:
            is_text = any(sign in circuit for sign in (" ", "-", "⊣", "→", ","))
            found = SignedCircuit.from_text(circuit) if is_text else example_circuit(circuit)
            self.network = BooleanNetwork.from_circuit(found, rule=rule)
            self.source = circuit if circuit in EXAMPLES else found.to_text()

    def network_of(self, seed: int) -> BooleanNetwork:
        """The network; drawn from the seed where that was asked for."""
        if self.n_drawn is None:
            return self.network
        generator = numpy_generator(seed, "circuit")
        while True:
            matrices = random_circuits(
                100,
                self.n_drawn,
                in_degree=min(2.0, self.n_drawn),
                share_inhibition=0.5,
                generator=generator,
            )
            matrices = matrices[are_connected(matrices)]
            if len(matrices):
                found = SignedCircuit.from_adjacency(matrices[0])
                return BooleanNetwork.from_circuit(found, rule=self.rule)

    def simulate(self, seed: int) -> tuple[Recording, Truth]:
        """Run the network; the same seed gives the same bytes."""
        network = self.network_of(seed)
        n_run, n_gene = self.n_run + self.n_test_run, network.n_gene
        state = numpy_generator(seed, "start").random((n_run, n_gene)) < 0.5
        order = numpy_generator(seed, "order")
        path = [state]
        for _ in range(self.n_time - 1):
            following = network.step(path[-1])
            if self.update == "asynchronous":
                chosen = order.integers(0, n_gene, n_run)
                is_chosen = np.arange(n_gene) == chosen[:, None]
                following = np.where(is_chosen, following, path[-1])
            path.append(following)
        is_test = torch.zeros(n_run, dtype=torch.bool)
        is_test[self.n_run :] = True
        time = torch.arange(self.n_time, dtype=torch.float64)
        recording = Recording(
            time=time.expand(n_run, -1).contiguous(),
            state=torch.from_numpy(np.stack(path, 1).astype(np.float64)),
            names=network.names,
            units={"time": "step", "state": "1"},
            provenance={
                "design": f"{self.n_run} trajectories of {self.n_time} frames from uniformly drawn "
                f"states, {self.update} update",
                "source": self.source,
                "update": self.update,
                "warnings": list(network.warnings),
            },
            is_test=is_test,
        )
        truth = Truth(
            parameters={"signs": torch.from_numpy(network.signs().astype(np.int64))},
            facts={"bnet": network.to_bnet(), "update": self.update},
        )
        return recording, truth

    def reveal(
        self, recording: Recording, truth: Truth | None, /, *, support: bool
    ) -> dict[str, Tensor]:
        """With ``support``: which genes regulate which, without the signs."""
        if not support:
            return {}
        if truth is None:
            raise ConfigError("prior.support=true needs the network: set it to false")
        return {"is_edge": truth.parameters["signs"] != 0}

    def exhibits(
        self, recording: Recording, truth: Truth, folder: Path
    ) -> Iterator[Figure | Product]:
        """What ``simulate`` shows besides the data: attractors under both updates, and figures."""
        from neuralgraph.systems.boolean_grn.plots.attractors import network_figures

        network = BooleanNetwork.from_bnet(truth.facts["bnet"])
        found = {
            update: find_attractors(
                network,
                update=update,
                engine=self.engine,
                n_listed=self.n_listed,
                seconds_limit=self.seconds_limit,
                n_start=self.n_start,
            )
            for update in UPDATES
        }
        write_text(folder / "network.bnet", network.to_bnet())
        content = {update: each.to_dict() for update, each in found.items()}
        write_text(folder / "attractors.json", json.dumps(content, indent=1) + "\n")
        for update, each in found.items():
            yield Product(
                folder / "attractors.json",
                f"Attractors, {update} update",
                counted(each),
                listed(each),
            )
        yield Product(
            folder / "network.bnet",
            "Network",
            f"{network.n_gene} genes and their functions, from {self.source}.",
            "\n".join(network.to_bnet().splitlines()[:20]),
        )
        yield from network_figures(network, found, recording, folder / "figures")


def counted(found: AttractorList) -> str:
    """Numbers of attractors of each kind, and what the list leaves out."""
    words = {"fixed_point": "fixed points", "cycle": "cycles", "complex": "complex attractors"}
    counts = ", ".join(f"{n:,} {words[kind]}" for kind, n in found.counts.items())
    return ". ".join([f"{counts} ({found.engine} engine)", *found.notes]) + "."


def listed(found: AttractorList, n_shown: int = 24) -> str:
    """A table of attractors as text: kind, size, share of states that lead there, pattern."""
    rows = [f"{'kind':<12} {'states':>9} {'basin':>8} {'reach':>8}  {','.join(found.names)}"]
    for a in found.attractors[:n_shown]:
        basin = "" if a.basin is None else f"{a.basin:.4f}"
        reach = "" if a.reach is None else f"{a.reach:.4f}"
        rows.append(f"{a.kind:<12} {a.n_state:>9,} {basin:>8} {reach:>8}  {a.pattern}")
    if len(found.attractors) > n_shown:
        rows.append(f"… {len(found.attractors) - n_shown:,} more in attractors.json")
    return "\n".join(rows)
