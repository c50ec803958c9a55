"""A user's own concentration time series, with a reaction graph from CSV or SBML."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neuralgraph.core.data_home import find_data
from neuralgraph.core.errors import ConfigError, DataError, nearest
from neuralgraph.core.recording import Recording
from neuralgraph.numerics.differentiate import differentiate
from neuralgraph.systems.metabolism.conditions import Derivative, one_of
from neuralgraph.systems.metabolism.kinetics import activity_rank
from neuralgraph.systems.metabolism.network import (
    ReactionNetwork,
    edge_signs,
    is_mass_balanced,
    network_from_edges,
    with_warnings,
)
from neuralgraph.systems.metabolism.prior import RevealsPrior
from neuralgraph.systems.metabolism.sbml import EXCHANGES, directed_network, read_sbml

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("substrate", "product", "catalyst")
EDGE_COLUMNS = ("metabolite", "reaction", "coefficient", "role")


class MetabolismRecorded(RevealsPrior):
    """Measured concentrations: a simulator that cannot be reseeded, and has no truth.

    The table has a time column, one column for each metabolite, and optionally a run column; runs
    must have the same number of frames. Derivatives are estimated. The reaction graph is what the
    user knows; it reaches the learner through ``prior.*`` only. It is one of

    - an edge list, CSV with the columns ``metabolite``, ``reaction``, and optionally
      ``coefficient`` (signed: negative for substrates) and ``role`` (``substrate``, ``product``,
      ``catalyst``); a catalyst has no coefficient, or its net one;
    - a stoichiometric matrix, CSV with metabolite names in the first column and reaction names in
      the first row;
    - an SBML file (reversible reactions are split, see ``metabolism_sbml``).

    Args:
        table: CSV or Parquet file (``.csv``, ``.tsv``, ``.parquet``), a path or a name in the data
            folders.
        time_column: Name of the time column.
        run_column: Name of the run column, or ``None``.
        ignore_columns: Columns that are no metabolites.
        graph: Edge list, matrix or SBML; ``None`` for none, with ``n_rxn`` reactions to be found.
        graph_format: ``edges``, ``matrix`` or ``sbml``.
        n_rxn: Number of reactions where there is no graph, else ``None``.
        exchange: For SBML, see ``metabolism_sbml``.
        time_unit: Unit of the time column, for the report.
        concentration_unit: Unit of the concentrations, for the report.
        derivative: How derivatives are estimated.
    """

    def __init__(
        self,
        *,
        table: str,
        time_column: str,
        run_column: str | None,
        ignore_columns: list[str],
        graph: str | None,
        graph_format: str,
        n_rxn: int | None,
        exchange: str,
        time_unit: str,
        concentration_unit: str,
        derivative: Derivative,
    ) -> None:
        one_of("graph_format", graph_format, ("edges", "matrix", "sbml"))
        one_of("exchange", exchange, EXCHANGES)
        if graph is None and (n_rxn is None or n_rxn < 1):
            raise ConfigError(
                "simulator.graph is not set: give a reaction graph, or the number of reactions to "
                "look for with simulator.n_rxn"
            )
        if graph is not None and n_rxn is not None:
            raise ConfigError(
                "simulator.n_rxn is for recordings without a graph; the graph of simulator.graph "
                "says how many reactions there are: set simulator.n_rxn=null"
            )
        self.table, self.graph, self.graph_format = table, graph, graph_format
        self.time_column, self.run_column = time_column, run_column
        self.ignore_columns = list(ignore_columns)
        self.n_rxn, self.exchange = n_rxn, exchange
        self.time_unit, self.concentration_unit = time_unit, concentration_unit
        self.derivative = derivative

    def simulate(self, seed: int) -> tuple[Recording, None]:
        """Read the table; the seed changes nothing, and there is no truth.

        Raises:
            MissingDataError: a file that is not there.
            DataError: columns, numbers or times that cannot be used.
        """
        path = find_data(self.table)
        frame = read_table(path)
        time, state, names, runs = self._series(frame, path)
        warnings: list[str] = []
        graph: dict[str, Tensor] = {}
        if self.graph is None:
            assert self.n_rxn is not None
            reactions = tuple(f"R{j + 1}" for j in range(self.n_rxn))
            balanced = None
        else:
            network, given = self._graph(names)
            graph = _public(network, given)
            reactions = network.reaction_names
            warnings += network.warnings
            balanced = is_mass_balanced(network) if "sto_all" in graph else None
        if time.shape[1] < self.derivative.degree + 2:
            raise DataError(
                f"{path.name} has {time.shape[1]} frames in each run, too few to estimate "
                f"derivatives with degree {self.derivative.degree}: at least "
                f"{self.derivative.degree + 2} are needed"
            )
        _, dx_dt = differentiate(
            time,
            state,
            method=self.derivative.method,
            window=self.derivative.window,
            degree=self.derivative.degree,
        )
        n_run, n_time, n_met = state.shape
        step = time.diff(dim=1)
        if float(step.max()) > 1.001 * float(step.min()):
            warnings.append(
                f"frames are unevenly spaced ({float(step.min()):g} to {float(step.max()):g} "
                f"{self.time_unit}): rollouts of several steps are not available"
            )
        provenance: dict[str, Any] = {
            "simulator": type(self).__name__,
            "source": path.name,
            "design": (
                f"{n_run} measured run{'s' * (n_run > 1)} of {n_time} frames "
                f"({n_run * n_time} frames), {n_met} metabolites"
            ),
            "n_met": n_met,
            "n_rxn": len(reactions),
            "reaction_names": list(reactions),
            "run_names": [str(r) for r in runs],
            "n_frame": n_time,
            "dt": float(step.median()),
            "lowest_concentration": float(state.min()),
            "dx_dt_source": "estimated",
            "derivative": (
                f"{self.derivative.method}, window {self.derivative.window}, degree "
                f"{self.derivative.degree}"
            ),
            "activity_rank": activity_rank(state),
            "mass_balanced": balanced,
            "flux_limit": False,
            "external_input_mode": "none",
            "warnings": warnings,
        }
        recording = Recording(
            time=time,
            state=state,
            names=names,
            dx_dt=dx_dt,
            dx_dt_source="estimated",
            graph=graph,
            units={
                "time": self.time_unit,
                "state": self.concentration_unit,
                "dx_dt": f"{self.concentration_unit}/{self.time_unit}",
            },
            provenance=provenance,
        )
        return recording, None

    def _series(
        self, frame: pd.DataFrame, path: Path
    ) -> tuple[Tensor, Tensor, tuple[str, ...], list[Any]]:
        columns = [str(c) for c in frame.columns]
        frame.columns = columns
        special = [self.time_column] + ([self.run_column] if self.run_column else [])
        for name in [*special, *self.ignore_columns]:
            if name not in columns:
                raise DataError(
                    f"{path.name} has no column '{name}' ({nearest(name, columns)}): set "
                    "simulator.time_column, run_column and ignore_columns to the table's own"
                )
        names = [c for c in columns if c not in {*special, *self.ignore_columns}]
        if not names:
            raise DataError(f"{path.name} has no metabolite column beside {', '.join(special)}")
        for name in [self.time_column, *names]:
            if frame[name].dtype.kind not in "fiu":
                bad = next((str(v) for v in frame[name] if not _is_number(v)), "?")
                raise DataError(
                    f"column '{name}' of {path.name} is not numeric (it holds '{bad}'): list it in "
                    "simulator.ignore_columns, or correct it"
                )
        values = frame[[self.time_column, *names]].to_numpy(dtype="float64", copy=True)
        table = torch.from_numpy(values)
        bad = (~torch.isfinite(table)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise DataError(
                f"{path.name} has a missing or infinite value in row {row + 2}, column "
                f"'{[self.time_column, *names][column]}' ({len(bad)} such values): remove those "
                "rows or fill the gaps first"
            )
        negative = (table[:, 1:] < 0).nonzero()
        if len(negative):
            row, column = negative[0].tolist()
            raise DataError(
                f"{path.name} has a negative concentration, {float(table[row, 1 + column]):g} in "
                f"row {row + 2}, column '{names[column]}': concentrations must be >= 0; undo a "
                "log or z-score transform first"
            )
        if self.run_column is None:
            groups = [torch.arange(len(table))]
            runs: list[Any] = ["1"]
        else:
            labels = frame[self.run_column].tolist()
            runs = list(dict.fromkeys(labels))
            groups = [
                torch.tensor([i for i, label in enumerate(labels) if label == run]) for run in runs
            ]
        lengths = {len(g) for g in groups}
        if len(lengths) > 1:
            raise DataError(
                f"the runs of {path.name} have between {min(lengths)} and {max(lengths)} frames: "
                "cut or resample them to the same number"
            )
        blocks = torch.stack([table[g] for g in groups])
        time = blocks[:, :, 0].clone()
        backwards = (time.diff(dim=1) <= 0).nonzero()
        if len(backwards):
            run, at = backwards[0].tolist()
            hint = (
                "if it holds several experiments, set simulator.run_column"
                if self.run_column is None
                else "sort the rows of each run"
            )
            raise DataError(
                f"time does not increase in run {runs[run]} of {path.name}: row "
                f"{int(groups[run][at]) + 2} has {float(time[run, at]):g}, the next one "
                f"{float(time[run, at + 1]):g}; {hint}"
            )
        return time, blocks[:, :, 1:].clone(), tuple(names), runs

    def _graph(self, names: tuple[str, ...]) -> tuple[ReactionNetwork, set[str]]:
        """The user's network over the measured metabolites, and which parts of it are given."""
        assert self.graph is not None
        path = find_data(self.graph)
        if self.graph_format == "sbml":
            whole, _ = directed_network(read_sbml(path), exchange=self.exchange)
            return _restricted(whole, names), {"support", "roles", "stoichiometry"}
        table = read_table(path)
        if self.graph_format == "matrix":
            return _from_matrix(table, names, path)
        return _from_edges(table, names, path)


def read_table(path: Path) -> pd.DataFrame:
    """CSV, TSV or Parquet as a data frame."""
    import pandas as pd

    suffix = "".join(path.suffixes[-2:]).lower()
    try:
        if suffix.endswith(".parquet"):
            try:
                frame = pd.read_parquet(path)
            except ImportError as error:
                raise DataError(
                    f"reading {path.name} needs pyarrow: pip install pyarrow, or save the table as "
                    "CSV"
                ) from error
        elif ".csv" in suffix or ".tsv" in suffix or suffix.endswith(".txt"):
            frame = pd.read_csv(path, sep="\t" if ".csv" not in suffix else ",")
        else:
            raise DataError(f"{path.name} is no .csv, .tsv or .parquet file")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as a table: {error}") from error
    if not len(frame):
        raise DataError(f"{path} holds no rows")
    return frame


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _metabolite_index(found: list[str], names: tuple[str, ...], path: Path) -> list[int]:
    index = {n: i for i, n in enumerate(names)}
    unknown = list(dict.fromkeys(n for n in found if n not in index))
    if unknown:
        shown = "; ".join(f"'{n}': {nearest(n, names)}" for n in unknown[:5])
        raise DataError(
            f"{path.name} names {len(unknown)} metabolite(s) that the table does not measure "
            f"({shown}): correct the names, or drop their reactions"
        )
    return [index[n] for n in found]


def _from_edges(
    table: pd.DataFrame, names: tuple[str, ...], path: Path
) -> tuple[ReactionNetwork, set[str]]:
    columns = [str(c) for c in table.columns]
    for need in EDGE_COLUMNS[:2]:
        if need not in columns:
            raise DataError(
                f"the edge list {path.name} needs a column '{need}' ({nearest(need, columns)}); "
                f"its columns are {', '.join(EDGE_COLUMNS)}, the last two optional"
            )
    for column in columns:
        if column not in EDGE_COLUMNS:
            raise DataError(
                f"the edge list {path.name} has an unknown column '{column}' "
                f"({nearest(column, EDGE_COLUMNS)})"
            )
    met = _metabolite_index([str(m) for m in table["metabolite"]], names, path)
    labels = [str(r) for r in table["reaction"]]
    reactions = tuple(dict.fromkeys(labels))
    rxn = [reactions.index(r) for r in labels]
    size = [None] * len(met)
    if "coefficient" in columns:
        size = [float(s) if _is_number(s) and s == s else None for s in table["coefficient"]]
    roles = [None] * len(met)
    if "role" in columns:
        roles = [str(r).strip().lower() if isinstance(r, str) else None for r in table["role"]]
        for role in roles:
            if role is not None and role not in ROLES:
                raise DataError(f"{path.name} has the role '{role}': use one of {', '.join(ROLES)}")
    for i, (s, role) in enumerate(zip(size, roles, strict=True)):
        if s is None and role is None:
            continue
        if s == 0 and role != "catalyst":
            raise DataError(f"{path.name} has a coefficient 0 in row {i + 2}: drop the row")
        if s is not None and ((role == "substrate" and s > 0) or (role == "product" and s < 0)):
            raise DataError(
                f"{path.name}, row {i + 2}: a {role} with coefficient {s:g}; substrates have "
                "negative coefficients, products positive ones"
            )
    known_role = [
        r or (None if s is None else "substrate" if s < 0 else "product")
        for s, r in zip(size, roles, strict=True)
    ]
    given = {"support"}
    if all(r is not None for r in known_role):
        given.add("roles")
    net = [i for i, r in enumerate(known_role) if not (r == "catalyst" and not size[i])]
    if "roles" in given and all(size[i] is not None for i in net):
        given.add("stoichiometry")
    sub = [i for i, r in enumerate(known_role) if r in ("substrate", "catalyst")]

    def edges(rows: list[int], values: list[float]) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.tensor([met[i] for i in rows], dtype=torch.long),
            torch.tensor([rxn[i] for i in rows], dtype=torch.long),
            torch.tensor(values, dtype=torch.float64),
        )

    def signed(i: int) -> float:
        value = size[i]
        if value is not None:
            return value
        return -1.0 if known_role[i] == "substrate" else 1.0

    sub_size = [1.0 if known_role[i] == "catalyst" else abs(signed(i)) for i in sub]
    network = network_from_edges(
        edges(sub, sub_size), edges(net, [signed(i) for i in net]), names, reactions
    )
    return with_warnings(network) if "stoichiometry" in given else network, given


def _from_matrix(
    table: pd.DataFrame, names: tuple[str, ...], path: Path
) -> tuple[ReactionNetwork, set[str]]:
    rows = [str(m) for m in table.iloc[:, 0]]
    reactions = tuple(str(c) for c in table.columns[1:])
    n_met, shape = len(names), (len(rows), len(reactions))
    if shape[0] != n_met and shape[1] == n_met and set(reactions) <= set(names):
        raise DataError(
            f"the stoichiometric matrix must be (n_met, n_rxn) = ({n_met}, …), got {shape}: "
            "transpose it"
        )
    met = _metabolite_index(rows, names, path)
    if shape[0] != n_met or len(set(met)) != n_met:
        missing = [n for n in names if n not in set(rows)]
        raise DataError(
            f"the stoichiometric matrix must be (n_met, n_rxn) with the {n_met} metabolites of "
            f"the table, got {shape[0]} rows (missing: {', '.join(missing[:5])}): add rows of "
            "zeros for metabolites that no reaction changes"
        )
    try:
        values = torch.from_numpy(table.iloc[:, 1:].to_numpy(dtype="float64", copy=True))
    except (TypeError, ValueError) as error:
        raise DataError(f"the matrix {path.name} holds text where numbers belong") from error
    if not bool(torch.isfinite(values).all()):
        raise DataError(
            f"the matrix {path.name} has missing values: write 0 where there is no edge"
        )
    S = torch.zeros(n_met, len(reactions), dtype=torch.float64)
    S[torch.tensor(met)] = values
    at, rxn = S.nonzero(as_tuple=True)
    size = S[at, rxn]
    sub = size < 0
    network = network_from_edges((at[sub], rxn[sub], -size[sub]), (at, rxn, size), names, reactions)
    return with_warnings(network), {"support", "roles", "stoichiometry"}


def _restricted(network: ReactionNetwork, names: tuple[str, ...]) -> ReactionNetwork:
    """The part of a model's network that concerns the measured metabolites."""
    known = {n: i for i, n in enumerate(network.metabolite_names)}
    unknown = [n for n in names if n not in known]
    if unknown:
        shown = "; ".join(f"'{n}': {nearest(n, known)}" for n in unknown[:5])
        raise DataError(
            f"the SBML model does not know {len(unknown)} measured metabolite(s) ({shown}): rename "
            "the columns, or list them in simulator.ignore_columns"
        )
    place = torch.full((network.n_met,), -1, dtype=torch.long)
    place[torch.tensor([known[n] for n in names])] = torch.arange(len(names))
    live = torch.zeros(network.n_rxn, dtype=torch.bool)
    live[network.rxn_all[place[network.met_all] >= 0]] = True
    new_rxn = torch.cumsum(live, 0) - 1
    columns = []
    hidden = 0
    for met, rxn, size in (
        (network.met_sub, network.rxn_sub, network.sto_sub),
        (network.met_all, network.rxn_all, network.sto_all),
    ):
        kept = (place[met] >= 0) & live[rxn]
        hidden = max(hidden, len(set(rxn[live[rxn] & ~kept].tolist())))
        columns.append((place[met[kept]], new_rxn[rxn[kept]], size[kept]))
    warnings = [w for w in network.warnings if "duplicated" not in w and "no reaction" not in w]
    if hidden:
        warnings.append(
            f"{hidden} of {int(live.sum())} reactions also involve metabolites that were not "
            "measured"
        )
    reactions = [n for n, keep in zip(network.reaction_names, live.tolist(), strict=True) if keep]
    return with_warnings(network_from_edges(columns[0], columns[1], names, reactions, warnings))


def _public(network: ReactionNetwork, given: set[str]) -> dict[str, Tensor]:
    """What the user's graph holds, under the names of the prior."""
    graph = {"met_all": network.met_all, "rxn_all": network.rxn_all}
    if "roles" in given:
        graph.update(met_sub=network.met_sub, rxn_sub=network.rxn_sub)
        graph["sign_all"] = edge_signs(network)
    if "stoichiometry" in given:
        graph.update(sto_sub=network.sto_sub, sto_all=network.sto_all)
    return graph
