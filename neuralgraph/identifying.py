"""What the data determine, as files: the analysis, its table, figures and words.

Shared by ``identify`` (before training) and by the reports of fitted models.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuralgraph.core.contracts import Identifier
from neuralgraph.core.errors import NeuralGraphError
from neuralgraph.core.files import write_text
from neuralgraph.core.recording import Truth
from neuralgraph.core.seeding import torch_generator
from neuralgraph.numerics.coverage import Coverage, monte_carlo
from neuralgraph.numerics.design import (
    LONGEST,
    More,
    Score,
    can_be_scored,
    propose,
    score_candidates,
    score_more,
)
from neuralgraph.numerics.information import (
    COMBINATION,
    DETERMINED,
    SMALLEST_GAP,
    UNDETERMINED,
    Analysis,
    Problem,
    Row,
    analyse,
    relative_noise,
    residual_noise,
)
from neuralgraph.viz.figure import Figure

POINTS = {
    "prior": "local, at the drawn parameters (as training would start)",
    "truth": "local, at the simulator's true parameters (asked for by identify.at=truth)",
    "fitted": "local, at the fitted parameters",
}
FOLD = 3.0
"""How much wider or higher candidate starts are."""
N_DRAW = 3
"""Random starts of each kind of candidate."""
N_MORE = (0, 1, 2, 4, 8, 16, 32, 64)
"""Further trajectories for which errors are predicted."""
N_SHOWN = 20
"""Lines of each list in the report; everything is in the table."""
COLUMNS = (
    "parameter",
    "group",
    "status",
    "combination",
    "estimate",
    "standard_error",
    "relative_error",
    "precise",
    "unit",
    "note",
)


@dataclass(frozen=True)
class Findings:
    """An analysis with everything that is said about it.

    Args:
        analysis: The analysis.
        rows: Its table.
        summary: Plain content of ``identifiability.json``.
    """

    analysis: Analysis
    rows: list[Row]
    summary: dict[str, Any]


def examine(
    part: Identifier,
    model: nn.Module,
    data: Any,
    truth: Truth | None,
    *,
    at: str,
    seed: int,
    replicates: int = 0,
) -> Findings:
    """Analyse, score further experiments, and check by Monte Carlo where asked for.

    Args:
        part: The system's side.
        model: As drawn or fitted.
        data: Data, with prior and design.
        truth: Point of linearisation where ``at`` is ``truth``, else unused.
        at: ``prior``, ``truth`` or ``fitted``.
        seed: Of the candidates' starts and of the Monte Carlo noise.
        replicates: Number of refits, 0 for none.
    """
    problem: Problem = part.problem(
        model, data, truth if at == "truth" else None, is_fitted=at == "fitted"
    )
    if at == "fitted":
        noise = residual_noise(problem)
    else:
        noise = relative_noise(problem, part.noise_relative)
    analysis = analyse(problem, noise, rtol=part.rtol)
    rows = analysis.rows()
    scores: list[Score] = []
    more: More | None = None
    why = ""
    if not len(problem.parameters):
        why = "nothing is to be found under this prior"
    elif problem.equations is None:
        why = "this model says nothing of states beyond those of the data"
    elif not can_be_scored(analysis):
        why = "too many parameters depend on each other for a quick answer"
    else:
        if problem.candidates is not None:
            candidates = list(problem.candidates())
        else:
            candidates = propose(
                problem,
                torch_generator(seed, "identify_candidates"),
                n_alike=N_DRAW,
                n_wide=N_DRAW,
                pulse=_pulses(analysis, part.n_pulse),
                fold=FOLD,
            )
        scores = score_candidates(analysis, candidates)
        alike = [c for c in candidates if c.kind == "more"]
        if alike:
            more = score_more(analysis, alike, N_MORE, precise_below=part.precise_below)
        if not candidates:
            why = "every candidate trajectory diverged at the point of linearisation"
    coverage: Coverage | None = None
    if replicates > 0 and len(problem.parameters):
        coverage = monte_carlo(analysis, replicates, torch_generator(seed, "identify_replicates"))
    summary = _summary(analysis, rows, part, at, scores, more, why, coverage)
    return Findings(analysis, rows, summary)


def examine_fitted(part: Identifier | None, session: Any, folder: Path, *, seed: int) -> None:
    """Write the section of a fitted model; a failure is written down, it does not end the run.

    Args:
        part: The system's side; ``None``: nothing is written.
        session: With the fitted model and its data.
        folder: Run folder.
        seed: Of the candidates' starts.
    """
    if part is None:
        return
    try:
        found = examine(part, session.model, session.data, None, at="fitted", seed=seed)
        save(found, folder, precise_below=part.precise_below)
    except (NeuralGraphError, ValueError, RuntimeError) as error:
        text = json.dumps({"not_computed": str(error)}, indent=2, ensure_ascii=False)
        write_text(folder / "identifiability.json", text + "\n")


def _pulses(analysis: Analysis, n: int) -> list[int]:
    """Variables whose equations hold the least certain parameters."""
    value = analysis.problem.parameters.value.double()
    error = analysis.standard_error / value.abs().clamp_min(1e-300)
    error = torch.where(torch.isfinite(error), error, torch.full_like(error, 1e300))
    worst = torch.zeros(len(analysis.problem.variable), dtype=torch.float64)
    for one in analysis.problem.design:
        if one.columns.numel():
            worst[one.variable] = error[one.columns].median()
    order = torch.argsort(worst, descending=True, stable=True)
    return order[:n].tolist()


# -- words and numbers --------------------------------------------------------------------------


def _summary(
    analysis: Analysis,
    rows: Sequence[Row],
    part: Identifier,
    at: str,
    scores: Sequence[Score],
    more: More | None,
    why_no_design: str,
    coverage: Coverage | None,
) -> dict[str, Any]:
    problem = analysis.problem
    groups = group_table(rows, part.precise_below)
    by_name = _by_name(scores)
    summary: dict[str, Any] = {
        "not_computed": "",
        "point": POINTS[at],
        "noise": analysis.noise.source,
        "noise_sd": [float(s) for s in analysis.noise.sd],
        "assumed": list(problem.assumed),
        "n_frame": problem.n_frame,
        "n_variable": len(problem.variable),
        "n_analysed": analysis.n_par,
        "rank": analysis.rank,
        "rtol": analysis.rtol,
        "gap": analysis.gap if math.isfinite(analysis.gap) else None,
        "precise_below": part.precise_below,
        "groups": groups,
        "combinations": [
            {
                "combination": c.text,
                "value": c.value,
                "standard_error": c.standard_error,
                "relative_error": None if c.value == 0 else c.standard_error / abs(c.value),
            }
            for c in analysis.combinations
        ],
        "undetermined": [
            {"parameter": r.parameter, "note": r.note} for r in rows if r.status == UNDETERMINED
        ],
        "spectrum": [float(v) for v in analysis.spectrum],
        "design": {
            "candidates": by_name,
            "more": None if more is None else asdict(more),
            "not_scored": why_no_design,
            "is_law_held": analysis.learned is not None,
        },
        "coverage": None if coverage is None else _finite(asdict(coverage)),
    }
    summary["sentences"] = sentences(summary)
    return _finite(summary)


def group_table(rows: Sequence[Row], precise_below: float) -> list[dict[str, Any]]:
    """Counts and errors for each kind of parameter, in the order of the table."""
    result: list[dict[str, Any]] = []
    for group in dict.fromkeys(r.group for r in rows):
        of = [r for r in rows if r.group == group]
        errors = sorted(r.relative_error for r in of if r.relative_error is not None)
        count = {s: sum(r.status == s for r in of) for s in (DETERMINED, COMBINATION, UNDETERMINED)}
        result.append(
            {
                "group": group,
                "n": len(of),
                **count,
                "precise": sum(e < precise_below for e in errors),
                "median_error": errors[len(errors) // 2] if errors else None,
                "largest_error": errors[-1] if errors else None,
            }
        )
    return result


def _by_name(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """One line for each kind of candidate: the mean over its random starts."""
    result: list[dict[str, Any]] = []
    for name in dict.fromkeys(s.name for s in scores):
        of = [s for s in scores if s.name == name]

        def mean(key: str, of: Sequence[Score] = of) -> float:
            return sum(getattr(s, key) for s in of) / len(of)

        result.append(
            {
                "name": name,
                "kind": of[0].kind,
                "n_draw": len(of),
                "rank_gain": mean("rank_gain"),
                "newly_determined": mean("newly_determined"),
                "d_factor": mean("d_factor"),
                "a_factor": mean("a_factor"),
                "e_factor": mean("e_factor"),
                "median_error": mean("median_error"),
            }
        )
    return sorted(result, key=lambda s: (-s["rank_gain"], -s["newly_determined"], s["d_factor"]))


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """The findings in words, most important first."""
    groups = summary["groups"]
    total = sum(g["n"] for g in groups)
    if not total:
        return ["Nothing is to be found under this prior."]
    count = {s: sum(g[s] for g in groups) for s in (DETERMINED, COMBINATION, UNDETERMINED)}
    precise = sum(g["precise"] for g in groups)
    bound = f"{100 * summary['precise_below']:g} %"
    text = f"Of {total} parameters these data determine {count[DETERMINED]}"
    if count[COMBINATION]:
        text += f", {count[COMBINATION]} more only in combinations"
    if count[UNDETERMINED]:
        text += f", {count[UNDETERMINED]} not at all"
    result = [f"{text}. {precise} have a predicted standard error below {bound} of their value."]
    gap = summary["gap"]
    free = summary["n_analysed"] - summary["rank"]
    if free and gap is not None and gap < SMALLEST_GAP:
        result.append(
            f"The rank is not clear-cut: the smallest singular value that counts as determined is "
            f"only {gap:.3g} times the largest that counts as 0. Treat the weakest as undecided."
        )
    design = summary["design"]
    if design["not_scored"]:
        result.append(f"No further experiments were scored: {design['not_scored']}.")
    elif design["candidates"]:
        result += _advice(summary, bound)
    coverage = summary.get("coverage")
    if coverage and coverage["mean"] is not None:
        result.append(
            f"Checked by {coverage['n_replicate']} refits of data with fresh noise"
            f"{', what else is learned held as it is' if design.get('is_law_held') else ''}: "
            f"the 95 % intervals held the value in {100 * coverage['mean']:.1f} % of the cases "
            f"(mean over {coverage['n_parameter']} determined parameters, lowest "
            f"{100 * coverage['lowest']:.1f} %)."
        )
    return result


def _advice(summary: Mapping[str, Any], bound: str) -> list[str]:
    design = summary["design"]
    best = design["candidates"][0]
    result: list[str] = []
    free = summary["n_analysed"] - summary["rank"]
    if best["rank_gain"] > 0:
        result.append(
            f"To determine more: {best['name']} would settle {best['rank_gain']:.3g} further "
            f"combinations ({best['newly_determined']:.3g} parameters)."
        )
    elif free:
        result.append(
            "None of the trajectories tried would determine more: what is left is a property of "
            "the network and the prior, not of too few data. More knowledge (a prior, a measured "
            "flux) would help, more frames would not."
        )
    lowest = min(design["candidates"], key=lambda c: c["d_factor"])
    result.append(
        f"To lower the errors: {lowest['name']} is the best single addition tried; it lowers them "
        f"by {100 * (1 - lowest['d_factor']):.2g} % (geometric mean; {LONGEST} frames at most)."
    )
    more = design["more"]
    if more:
        now, most = more["share_precise"][0], more["share_precise"][-1]
        last = more["n_more"][-1]
        before, after = more["median_error"][0], more["median_error"][-1]
        highest = max(more["rank"])
        if highest > summary["rank"]:
            n = more["n_more"][more["rank"].index(highest)]
            these = "trajectory" if n == 1 else "trajectories"
            result.append(
                f"{n} further {these} like those so far would determine {highest} "
                f"of {summary['n_analysed']} combinations; {summary['rank']} are now."
            )
        held = "With what else is learned held as it is, " if design.get("is_law_held") else ""
        text = (
            f"{held}{100 * now:.0f} % of the parameters have an error below {bound} now; with "
            f"{last} further trajectories like those so far it would be {100 * most:.0f} %"
        )
        if math.isfinite(before) and math.isfinite(after):
            text += f", and the median error {100 * after:.2g} % instead of {100 * before:.2g} %"
        result.append(text + ".")
    return result


def _finite(value: Any) -> Any:
    """The same without numbers that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return value


# -- files --------------------------------------------------------------------------------------


def save(found: Findings, folder: Path, *, precise_below: float) -> None:
    """Write ``identifiability.csv``, ``identifiability.json`` and the figures."""
    write_text(folder / "identifiability.csv", table(found.rows, precise_below))
    figures = draw(found, folder / "figures")
    summary = {
        **found.summary,
        "figures": [
            {
                "path": f.path.relative_to(folder).as_posix(),
                "title": f.title,
                "caption": f.caption,
            }
            for f in figures
        ],
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / "identifiability.json", text + "\n")


def table(rows: Sequence[Row], precise_below: float) -> str:
    """Content of ``identifiability.csv``."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for r in rows:
        precise = "" if r.relative_error is None else _yes(r.relative_error < precise_below)
        writer.writerow(
            [
                r.parameter,
                r.group,
                r.status,
                r.combination,
                _digits(r.estimate),
                _digits(r.standard_error),
                _digits(r.relative_error),
                precise,
                r.unit,
                r.note,
            ]
        )
    return buffer.getvalue()


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _digits(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.10g}"


def draw(found: Findings, folder: Path) -> list[Figure]:
    """Spectrum, predicted errors and further experiments."""
    from neuralgraph.viz import identifiability as panels
    from neuralgraph.viz import style

    analysis, summary = found.analysis, found.summary
    if not analysis.n_par:
        return []
    figures: list[Figure] = []
    with style.house():
        figure = style.canvas(style.WIDTH, 3.0)
        panels.spectrum(
            figure.add_subplot(), analysis.spectrum, rank=analysis.rank, rtol=analysis.rtol
        )
        gap = summary["gap"]
        says = "no direction is free" if analysis.rank == analysis.n_par else "the gap is infinite"
        if gap is not None:
            says = f"the smallest kept is {gap:.2g} times the largest dropped"
        figures.append(
            style.save(
                figure,
                folder / "identifiability_spectrum.png",
                "What is determined and what is free",
                "Singular values of the sensitivity of the derivatives (rows in units of each "
                "derivative, columns of unit length), each relative to the largest of its set of "
                f"entangled parameters. Values of 0 are drawn at 1e-17; {says}. A clear step means "
                "that the rank does not hang on the tolerance.",
            )
        )
        errors = {
            g["group"]: [
                r.relative_error
                for r in found.rows
                if r.group == g["group"] and r.relative_error is not None
            ]
            for g in summary["groups"]
        }
        if any(errors.values()):
            figure = style.canvas(style.WIDTH, 3.4)
            panels.error_shares(
                figure.add_subplot(),
                {k: [e for e in v if e is not None] for k, v in errors.items()},
                {g["group"]: g["n"] for g in summary["groups"]},
                precise=summary["precise_below"],
            )
            figures.append(
                style.save(
                    figure,
                    folder / "identifiability_errors.png",
                    "Predicted standard errors",
                    "Share of the parameters of each kind whose predicted standard error, relative "
                    "to the value, lies below x. A curve that ends below 1 leaves out parameters "
                    "that no method can determine alone from these data. Dashed: the bound of a "
                    "precise parameter.",
                )
            )
        design = summary["design"]
        if design["candidates"] and design["more"]:
            shown = _shown(design["candidates"])
            figure = style.canvas(style.WIDTH * 1.35, 0.24 * len(shown) + 1.6)
            left, right = figure.subplots(1, 2, width_ratios=[1, 1.1])
            more = design["more"]
            panels.more_trajectories(
                left,
                more["n_more"],
                more["median_error"],
                more["high_error"],
                precise=summary["precise_below"],
            )
            panels.candidates(
                right,
                [c["name"] for c in shown],
                [c["d_factor"] for c in shown],
                [c["rank_gain"] for c in shown],
            )
            figures.append(
                style.save(
                    figure,
                    folder / "identifiability_design.png",
                    "Which experiment next",
                    "Left: predicted errors of determined parameters after further trajectories "
                    "from random starts in the range so far. Right: what one further trajectory "
                    f"would do (random starts: mean of {N_DRAW}); green ones determine "
                    "combinations that are free now. Each candidate has the frames of one "
                    f"trajectory so far, {LONGEST} at most.",
                )
            )
    return figures


def _shown(candidates: Sequence[Mapping[str, Any]], most: int = 10) -> list[Mapping[str, Any]]:
    """The best candidates, with the plain ones among them for comparison."""
    plain = [c for c in candidates if c["kind"] != "pulse"]
    pulses = [c for c in candidates if c["kind"] == "pulse"][: max(0, most - len(plain))]
    return [c for c in candidates if c in plain or c in pulses]


def section(folder: Path) -> dict[str, Any] | None:
    """Content of the section in a report, from the files of :func:`save`; ``None`` without."""
    file = folder / "identifiability.json"
    if not file.exists():
        return None
    summary = json.loads(file.read_text(encoding="utf-8"))
    if summary["not_computed"]:
        return summary
    with (folder / "identifiability.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    known = [r for r in rows if r["relative_error"]]
    known.sort(key=lambda r: -float(r["relative_error"]))
    summary["least_precise"] = known[:N_SHOWN]
    summary["n_row"] = len(rows)
    summary["n_shown"] = N_SHOWN
    return summary
