"""``python -m neuralgraph.design phenotype=NAME n_genes=5 n=20``: circuits of a phenotype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from neuralgraph.cli import guarded, reported
from neuralgraph.config import CONFIG_FOLDER

if TYPE_CHECKING:
    from neuralgraph.systems.boolean_grn.design.search import Design
    from neuralgraph.systems.boolean_grn.design.task import DesignTask


@hydra.main(version_base="1.3", config_path=CONFIG_FOLDER, config_name="design")
@reported
def task(cfg: DictConfig) -> None:
    """Write ``circuits.json``, ``circuits/*.bnet``, ``figures/*.png`` and ``report.html``."""
    from hydra.core.hydra_config import HydraConfig

    from neuralgraph.building import build
    from neuralgraph.core.seeding import numpy_generator
    from neuralgraph.core.threads import limit_threads
    from neuralgraph.run_folder import RunFolder
    from neuralgraph.systems.boolean_grn.design.search import search

    config = checked(cfg)
    wanted = design_task(config)
    proposer = build(config["generator"], "generator")
    limit_threads(config["n_threads"])
    known = training_circuits(config)
    found = search(
        wanted,
        proposer(wanted, numpy_generator(config["seed"], "design")),
        n=config["n"],
        n_batch=config["n_batch"],
        n_evaluation_max=config["n_evaluation_max"],
        objective=config["objective"],
        known=known,
    )
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir), config, resume=False)
    try:
        write(config, wanted, found, known, folder.path)
    except BaseException:
        folder.release()
        raise
    folder.finish()
    print_design(config, found, folder.path)


def checked(cfg: DictConfig) -> dict[str, Any]:
    """Resolved plain config, with the types the search needs.

    Raises:
        ConfigError: no phenotype, or a value of another type.
    """
    from omegaconf import OmegaConf

    from neuralgraph.core.errors import ConfigError
    from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES

    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if config["phenotype"] is None:
        raise ConfigError(f"say what to design: phenotype=NAME, one of {', '.join(PHENOTYPES)}")
    kinds = {
        "a whole number": (int, ("n_genes", "n", "seed", "n_threads", "n_evaluation_max",
                                 "n_batch", "n_card")),
        "text": (str, ("phenotype", "objective", "rule", "update", "feedback")),
        "true or false": (bool, ("is_connected",)),
    }  # fmt: skip
    for words, (kind, names) in kinds.items():
        for name in names:
            is_bool = isinstance(config[name], bool)
            if not isinstance(config[name], kind) or (kind is int and is_bool):
                raise ConfigError(f"{name} must be {words}, got {config[name]!r}")
    training = config["training"]
    is_seed = isinstance(training, int) and not isinstance(training, bool)
    if not (training is None or isinstance(training, str) or is_seed):
        raise ConfigError(
            "training must be the run folder of a classifier, the seed of the default one, or "
            f"null, got {training!r}"
        )
    if config["n_threads"] < 1:
        raise ConfigError(f"n_threads must be at least 1, got {config['n_threads']}")
    if config["n_card"] < 0:
        raise ConfigError(f"n_card must be 0 or above, got {config['n_card']}")
    return config


def training_circuits(config: dict[str, Any]) -> frozenset[bytes]:
    """Keys of the circuits that do not count as new.

    With a whole number they are those of the default classifier trained with that seed, drawn
    again, where circuits of the size can be among them and are not all known anyway.

    Raises:
        ConfigError: neither a seed, nor a folder, nor ``null``.
        DataError: the folder holds no circuits.
    """
    from neuralgraph.building import build
    from neuralgraph.systems.boolean_grn.design.search import load_population, training_keys
    from neuralgraph.systems.boolean_grn.design.task import N_GENE_ENUMERATED

    training, n_gene = config["training"], config["n_genes"]
    if training is None:
        return frozenset()
    if isinstance(training, str):
        return training_keys(load_population(training), f"training={training}")
    if n_gene <= N_GENE_ENUMERATED or n_gene > max(config["population"]["sizes_learn"]):
        return frozenset()
    population = build(config["population"], "simulator")
    return training_keys(population.simulate(training)[0], "population")


def design_task(config: dict[str, Any]) -> DesignTask:
    """What is designed."""
    from neuralgraph.systems.boolean_grn.design.task import DesignTask

    return DesignTask(
        phenotype=config["phenotype"],
        n_gene=config["n_genes"],
        rule=config["rule"],
        update=config["update"],
        feedback=config["feedback"],
        is_connected=config["is_connected"],
    )


def write(
    config: dict[str, Any],
    wanted: DesignTask,
    found: Design,
    known: frozenset[bytes],
    folder: Path,
) -> None:
    """Every file of a design."""
    from neuralgraph.core.files import write_text
    from neuralgraph.core.product import Product
    from neuralgraph.gallery import render_gallery
    from neuralgraph.systems.boolean_grn.attractors import find_attractors
    from neuralgraph.systems.boolean_grn.circuit import SignedCircuit
    from neuralgraph.systems.boolean_grn.network import BooleanNetwork
    from neuralgraph.systems.boolean_grn.plots.design import design_figures
    from neuralgraph.systems.boolean_grn.simulator import core_keys

    circuits = [SignedCircuit.from_adjacency(matrix) for matrix in found.circuits]
    keys = core_keys(found.circuits)
    entries = []
    for k, (circuit, key) in enumerate(zip(circuits, keys, strict=True)):
        file = folder / "circuits" / f"circuit_{k + 1:03d}.bnet"
        write_text(file, BooleanNetwork.from_circuit(circuit, rule=wanted.rule).to_bnet())
        attractors = find_attractors(circuit, update=wanted.update, rule=wanted.rule, n_listed=100)
        entries.append(
            {
                "circuit": circuit.to_text(),
                "genes": list(circuit.names),
                "adjacency": circuit.adjacency.tolist(),
                "phenotype": wanted.phenotype,
                "robustness": float(found.robustness[k]),
                "n_edge": circuit.n_edge,
                "is_new": key not in known if known else None,
                "bnet": file.relative_to(folder).as_posix(),
                "attractors": attractors.to_dict(),
            }
        )
    n_known = sum(len(key) == config["n_genes"] ** 2 for key in known)
    numbers = summary(config, found, n_known if known else None)
    content = {"summary": numbers, "notes": list(found.notes), "circuits": entries}
    write_text(folder / "circuits.json", json.dumps(content, indent=1) + "\n")
    figures = design_figures(
        circuits, found.robustness, wanted.phenotype, wanted.rule, folder / "figures",
        config["n_card"],
    )  # fmt: skip
    table = {
        "title": "Circuits",
        "note": "Robustness: share of the one-edge mutants that keep the phenotype.",
        "header": ["", "circuit", "edges", "robustness", "attractors"],
        "body": [
            [
                str(k + 1),
                entry["circuit"],
                str(entry["n_edge"]),
                f"{entry['robustness']:.2f}",
                ", ".join(
                    f"{n} {kind.replace('_', ' ')}{'s' if n > 1 else ''}"
                    for kind, n in entry["attractors"]["counts"].items()
                    if n
                ),
            ]
            for k, entry in enumerate(entries)
        ],
    }
    products = [
        Product(
            folder / "circuits.json",
            "For other programs",
            "Matrices (rows are sources), text, robustness and attractors of every circuit; the "
            "folder circuits holds each of them as .bnet.",
        )
    ]
    html = render_gallery(
        config,
        folder,
        kind="design",
        facts=numbers,
        warnings=found.notes,
        tables=[table],
        products=products,
        figures=list(figures),
    )
    write_text(folder / "report.html", html)


def summary(config: dict[str, Any], found: Design, n_known: int | None) -> dict[str, Any]:
    """Numbers of a design, as they stand in ``circuits.json``."""
    from neuralgraph.systems.boolean_grn.oracle import PHENOTYPES

    numbers: dict[str, Any] = {
        "phenotype": config["phenotype"],
        "n_genes": config["n_genes"],
        "circuits": len(found.circuits),
        "asked_for": config["n"],
        "confirmed_by_the_oracle": float(
            (found.facts.label == PHENOTYPES.index(config["phenotype"])).mean()
        ),
        "mean_robustness": float(found.robustness.mean()),
        "oracle_evaluations": found.n_evaluation,
        "oracle_evaluations_per_success": found.evaluations_per_success,
        "oracle_evaluations_for_robustness": found.n_evaluation_robustness,
    }
    if found.n_class is not None:
        numbers["classes_that_exist"] = found.n_class
    if n_known is not None:
        numbers["training_circuits_of_this_size"] = n_known
        numbers["novelty_of_what_was_met"] = found.novelty
    return numbers


def print_design(config: dict[str, Any], found: Design, folder: Path) -> None:
    """The circuits in the terminal."""
    from rich.table import Table

    from neuralgraph.systems.boolean_grn.circuit import SignedCircuit
    from neuralgraph.terminal import console, number, print_report, shown

    console.print(
        f"[bold]{len(found.circuits)} × {config['phenotype']}[/bold] of {config['n_genes']} genes, "
        f"each confirmed by the oracle; {found.n_evaluation:,} evaluations, "
        f"{number(found.evaluations_per_success)} for each success"
    )
    for note in found.notes:
        console.print(f"[yellow]{note}[/yellow]")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", justify="right")
    table.add_column("robustness", justify="right")
    table.add_column("circuit")
    for k, matrix in enumerate(found.circuits):
        circuit = SignedCircuit.from_adjacency(matrix)
        table.add_row(str(k + 1), f"{found.robustness[k]:.2f}", circuit.to_text())
    console.print(table)
    console.print(f"written to [bold]{shown(folder)}[/bold]")
    print_report(folder)


if __name__ == "__main__":
    guarded(task)
