"""Scorecard: named numbers with units, what has no value and why, and where they came from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuralgraph.core.files import write_text


@dataclass
class Scorecard:
    """The result of judging one run.

    Args:
        metrics: Finite numbers by name; fractions lie in [0, 1].
        not_computed: Reason for each metric that has no value here.
        units: Unit by metric name; dimensionless where absent.
        meaning: One sentence by metric name.
        given: What the run was told (the prior, true values handed over).
        facts: Verdicts in words: class, diagnosis, identifiability table.
        provenance: Command, versions, seeds, data source.
    """

    metrics: dict[str, float] = field(default_factory=dict[str, float])
    not_computed: dict[str, str] = field(default_factory=dict[str, str])
    units: dict[str, str] = field(default_factory=dict[str, str])
    meaning: dict[str, str] = field(default_factory=dict[str, str])
    given: dict[str, Any] = field(default_factory=dict[str, Any])
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    provenance: dict[str, Any] = field(default_factory=dict[str, Any])

    def add(self, name: str, value: float, unit: str = "") -> None:
        """Record one number; a value that is not finite is moved to ``not_computed``."""
        value = float(value)
        if not math.isfinite(value):
            self.skip(name, f"the value is {value}")
            return
        self.metrics[name] = value
        self.not_computed.pop(name, None)
        if unit:
            self.units[name] = unit

    def skip(self, name: str, reason: str) -> None:
        """Record why a metric has no value."""
        self.metrics.pop(name, None)
        self.not_computed[name] = reason

    def update(self, values: Mapping[str, float]) -> None:
        """Record several numbers."""
        for name, value in values.items():
            self.add(name, value)

    def ordered(self) -> list[tuple[str, float]]:
        """Metrics as a reader wants them: the primary one, those with a baseline, the rest.

        Those listed in ``facts["detail"]`` (bounds of intervals, scores that stand beside others)
        are left to ``scorecard.json``.
        """
        detail = set(self.facts.get("detail", ()))
        baselines = self.facts.get("baselines", {})
        primary = self.provenance.get("primary_metric")
        rank = {True: 1, False: 2}
        return sorted(
            (item for item in self.metrics.items() if item[0] not in detail),
            key=lambda item: 0 if item[0] == primary else rank[item[0] in baselines],
        )

    def skipped(self) -> dict[str, list[str]]:
        """Metrics without a value, by reason: many share one."""
        found: dict[str, list[str]] = {}
        for name, reason in self.not_computed.items():
            found.setdefault(reason, []).append(name)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain content of ``scorecard.json``."""
        return {
            "metrics": self.metrics,
            "not_computed": self.not_computed,
            "units": self.units,
            "meaning": self.meaning,
            "given": self.given,
            "facts": self.facts,
            "provenance": self.provenance,
        }

    def save(self, folder: Path | str) -> None:
        """Write ``scorecard.json`` and ``analysis.log`` (``name: value``), each atomically."""
        folder = Path(folder)
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(folder / "scorecard.json", text + "\n")
        write_text(folder / "analysis.log", self.analysis_log())

    def analysis_log(self) -> str:
        """Lines ``name: value``; verdicts in words follow the numbers, reasons come as comments."""
        lines = [f"{name}: {_number(value)}" for name, value in self.metrics.items()]
        lines += [f"{name}: {text}" for name, text in self.facts.items() if isinstance(text, str)]
        lines += [f"# {name} not computed: {why}" for name, why in self.not_computed.items()]
        return "\n".join(lines) + "\n"

    @classmethod
    def load(cls, folder: Path | str) -> Scorecard:
        """Read ``scorecard.json`` of a run folder."""
        content = json.loads((Path(folder) / "scorecard.json").read_text(encoding="utf-8"))
        return cls(**content)


def _number(value: float) -> str:
    return f"{value:.6g}" if value != int(value) or abs(value) >= 1e9 else f"{int(value)}"
