"""A reaction network as an SBML file (level 3 version 2, core)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from neuralgraph.core.errors import DataError, MissingExtraError
from neuralgraph.core.files import write_text

COMPARTMENT = "cell"
SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "hour": 3600.0, "d": 86400.0}
SUBSTANCE_SCALE = {"M": 0, "mM": -3, "uM": -6, "µM": -6, "nM": -9}


class Writable(Protocol):
    """What is written of a reaction; see :class:`~.products.Reaction`."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def left(self) -> Mapping[int, float]:
        """Coefficients on the left by metabolite."""
        ...

    @property
    def right(self) -> Mapping[int, float]:
        """Coefficients on the right by metabolite."""
        ...

    @property
    def order(self) -> Mapping[int, float]:
        """Kinetic order of each substrate."""
        ...

    @property
    def k(self) -> float | None:
        """Rate constant, or ``None`` for no kinetic law."""
        ...

    @property
    def modifiers(self) -> Sequence[int]:
        """Metabolites that act on the rate alone."""
        ...

    @property
    def is_reversible(self) -> bool:
        """Whether the rate may be negative."""
        ...

    @property
    def confidence(self) -> float | None:
        """Lowest confidence of its coefficients, or ``None``."""
        ...


def write_sbml(
    path: Path,
    *,
    title: str,
    metabolite_names: Sequence[str],
    reactions: Sequence[Writable],
    initial: Tensor,
    time_unit: str,
    concentration_unit: str,
    notes: Sequence[str],
) -> None:
    r"""Write a network; every reaction runs one way, from left to right.

    Identifiers are ``M_`` and ``R_`` with the name, letters that SBML does not allow replaced by
    ``_``; the names themselves stand in the attribute ``name``.

    Args:
        path: The file.
        title: Name of the model.
        metabolite_names: One for each species.
        reactions: The reactions; the law is $k \prod c^{order}$ where k is known.
        initial: Initial concentrations, ``(n_met,)``.
        time_unit: Unit of time (``s``, ``min``, ``h`` and ``d`` are declared in the file).
        concentration_unit: ``M``, ``mM``, ``uM`` or ``nM`` are declared in the file.
        notes: Sentences for the notes of the model.

    Raises:
        MissingExtraError: python-libsbml is not installed.
        DataError: libsbml finds an error in what was written.
    """
    try:
        import libsbml
    except ImportError as error:
        raise MissingExtraError("python-libsbml", "sbml", "Writing SBML") from error
    document = libsbml.SBMLDocument(3, 2)
    model = document.createModel()
    model.setId(_identifier("", title, set()))
    model.setName(title)
    _units(libsbml, model, time_unit, concentration_unit)
    if notes:
        model.setNotes(_html([*notes]))
    box = model.createCompartment()
    box.setId(COMPARTMENT)
    box.setConstant(True)
    box.setSize(1.0)
    box.setSpatialDimensions(3.0)

    used: set[str] = {COMPARTMENT}
    species = [_identifier("M_", name, used) for name in metabolite_names]
    for name, one, value in zip(metabolite_names, species, initial.tolist(), strict=True):
        entry = model.createSpecies()
        entry.setId(one)
        entry.setName(name)
        entry.setCompartment(COMPARTMENT)
        entry.setInitialConcentration(float(value))
        entry.setHasOnlySubstanceUnits(False)
        entry.setBoundaryCondition(False)
        entry.setConstant(False)
    for reaction in reactions:
        _add(libsbml, model, reaction, species, _identifier("R_", reaction.name, used))
    document.checkInternalConsistency()
    text = libsbml.writeSBMLToString(document)
    again = libsbml.readSBMLFromString(text)
    if again.getNumErrors(libsbml.LIBSBML_SEV_ERROR) or text is None:
        raise DataError(f"the network is no valid SBML: {again.getError(0).getMessage().strip()}")
    write_text(path, text)


def _add(libsbml: Any, model: Any, reaction: Writable, species: list[str], identifier: str) -> None:
    entry = model.createReaction()
    entry.setId(identifier)
    entry.setName(reaction.name)
    entry.setReversible(reaction.is_reversible)
    for side, create in (
        (reaction.left, entry.createReactant),
        (reaction.right, entry.createProduct),
    ):
        for i, size in sorted(side.items()):
            reference = create()
            reference.setSpecies(species[i])
            reference.setStoichiometry(float(size))
            reference.setConstant(True)
    if reaction.confidence is not None:
        entry.setNotes(_html([f"lowest confidence of a coefficient: {reaction.confidence:.4g}"]))
    acting = {*reaction.modifiers, *(i for i in reaction.order if i not in reaction.left)}
    for i in sorted(acting):
        entry.createModifier().setSpecies(species[i])
    if reaction.k is None:
        return
    law = entry.createKineticLaw()
    constant = law.createLocalParameter()
    constant.setId("k")
    constant.setValue(float(reaction.k))
    factors = [
        species[i] if order == 1 else f"{species[i]}^{order!r}"
        for i, order in sorted(reaction.order.items())
        if order != 0
    ]
    law.setMath(libsbml.parseL3Formula(" * ".join([COMPARTMENT, "k", *factors])))


def _units(libsbml: Any, model: Any, time_unit: str, concentration_unit: str) -> None:
    def define(name: str, kind: int, scale: int, multiplier: float) -> None:
        definition = model.createUnitDefinition()
        definition.setId(name)
        unit = definition.createUnit()
        unit.setKind(kind)
        unit.setExponent(1.0)
        unit.setScale(scale)
        unit.setMultiplier(multiplier)

    if time_unit in SECONDS:
        define("time", libsbml.UNIT_KIND_SECOND, 0, SECONDS[time_unit])
        model.setTimeUnits("time")
    if concentration_unit in SUBSTANCE_SCALE:
        define("substance", libsbml.UNIT_KIND_MOLE, SUBSTANCE_SCALE[concentration_unit], 1.0)
        define("volume", libsbml.UNIT_KIND_LITRE, 0, 1.0)
        model.setSubstanceUnits("substance")
        model.setExtentUnits("substance")
        model.setVolumeUnits("volume")


def _identifier(prefix: str, name: str, used: set[str]) -> str:
    """A free SBML identifier that shows the name."""
    base = prefix + re.sub(r"\W", "_", name, flags=re.ASCII)
    if not re.match(r"[A-Za-z_]", base):
        base = "_" + base
    chosen, n = base, 1
    while chosen in used:
        n += 1
        chosen = f"{base}_{n}"
    used.add(chosen)
    return chosen


def _html(sentences: Sequence[str]) -> str:
    from html import escape

    body = "".join(f"<p>{escape(s)}</p>" for s in sentences)
    return f'<body xmlns="http://www.w3.org/1999/xhtml">{body}</body>'
