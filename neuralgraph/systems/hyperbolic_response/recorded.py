"""A measured perturbation screen, from an AnnData file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural
from neuralgraph.core.data_home import data_folders, find_data
from neuralgraph.core.errors import ConfigError, DataError, MissingDataError, nearest
from neuralgraph.core.recording import Recording
from neuralgraph.core.seeding import numpy_generator
from neuralgraph.systems.hyperbolic_response.labels import (
    find_control,
    find_separator,
    read_target_map,
    targets_of,
)

if TYPE_CHECKING:
    import anndata
    import numpy as np

Expression: TypeAlias = Literal["auto", "counts", "log1p"]
"""What a matrix holds: raw counts, or log1p of normalised counts."""

LARGEST_LOG1P = 15.0
"""log1p(CP10k) is at most log(10001) = 9.2, log1p(CPM) 13.8."""


class RecordedScreen:
    r"""Cells of a perturbation screen with their labels. Measured: it has no truth.

    The seed chooses the cells that stay where ``max_cells`` is set, and nothing else. Nothing is
    fitted here: filters look at one cell at a time.

    Args:
        path: ``.h5ad`` file, a path or a name in the data folders.
        layer: Layer that is read, ``null`` for ``X``.
        expression: ``counts``, ``log1p`` (of normalised counts), or ``auto`` to find out.
        perturbation_column: Column of ``obs`` that names the perturbation of each cell.
        control_label: Its value for unperturbed cells.
        strip: Regular expression removed from labels, such as ``g\d+$`` of guides; ``null`` for
            none.
        combination_separator: What joins the genes of a combination, ``auto`` for ``+`` or ``_``,
            ``null`` where labels are single genes.
        target_map: JSON or table of genes by label (see
            :func:`~neuralgraph.systems.hyperbolic_response.labels.read_target_map`), ``null``
            where labels name genes.
        cell_type_column: Column of ``obs`` with the cell type, ``null`` for one type.
        batch_column: Column of ``obs`` with the batch, ``null`` for one batch.
        gene_column: Column of ``var`` with the gene names, ``null`` for its index.
        protein: Second modality: a key of ``obsm``, or an ``.h5ad`` file; ``null`` for none.
        keep: Values of columns of ``obs`` that cells must have, e.g. ``{cell_type: k562}``.
        max_cells: Cells that stay, drawn stratified; every control stays unless controls alone
            exceed half of them. ``null`` for all.
        max_order: Largest number of genes perturbed at once that stays, ``null`` for any.
        min_genes: Genes a cell must express.
        min_cells: Cells a perturbation must have (in a cell type) to stay.
    """

    def __init__(
        self,
        *,
        path: str,
        layer: str | None,
        expression: Expression,
        perturbation_column: str,
        control_label: str,
        strip: str | None,
        combination_separator: str | None,
        target_map: str | None,
        cell_type_column: str | None,
        batch_column: str | None,
        gene_column: str | None,
        protein: str | None,
        keep: Mapping[str, Any],
        max_cells: Count | None,
        max_order: Count | None,
        min_genes: Natural,
        min_cells: Count,
    ) -> None:
        if min_cells < 4:
            raise ConfigError(
                f"simulator.min_cells must be at least 4 (two in each half), got {min_cells}"
            )
        if max_cells is not None and max_cells < 20:
            raise ConfigError(f"simulator.max_cells must be at least 20, got {max_cells}")
        self.path, self.layer, self.expression = path, layer, expression
        self.perturbation_column, self.control_label = perturbation_column, control_label
        try:
            self.strip = None if strip is None else re.compile(strip)
        except re.error as error:
            raise ConfigError(
                f"simulator.strip is no regular expression: {strip!r} ({error})"
            ) from None
        self.combination_separator, self.target_map = combination_separator, target_map
        self.cell_type_column, self.batch_column = cell_type_column, batch_column
        self.gene_column, self.protein, self.keep = gene_column, protein, dict(keep)
        self.max_cells, self.max_order = max_cells, max_order
        self.min_genes, self.min_cells = min_genes, min_cells

    def simulate(self, seed: int) -> tuple[Recording, None]:
        """Read the file.

        Raises:
            MissingDataError: the file is not there.
            DataError: a column, a label or a number that cannot be used; says what there is.
        """
        import anndata

        path = find_screen(self.path)
        try:
            cells = anndata.read_h5ad(path)
        except MemoryError:
            raise
        except Exception as error:
            raise DataError(f"{path} cannot be read as .h5ad: {error}") from error
        return self.recording(cells, seed=seed, source=path.name), None

    def recording(self, cells: anndata.AnnData, *, seed: int, source: str) -> Recording:
        """The same from cells in memory.

        Args:
            cells: What the file would hold.
            seed: Chooses the cells of ``max_cells``.
            source: Name for messages and reports.
        """
        import numpy as np

        target_map = None
        if self.target_map is not None:
            target_map = read_target_map(find_data(self.target_map))
        names = gene_names(cells, self.gene_column)
        label = labels_of(cells, self.perturbation_column, self.control_label)
        if self.strip is not None:
            label = np.array([self.strip.sub("", key) for key in label], dtype=object)
        is_kept = self._kept(cells)
        matrix = matrix_of(cells, self.layer, source)
        kind = expression_kind(matrix, self.expression, source)
        n_expressed = np.asarray((matrix > 0).sum(1)).ravel()
        is_kept &= n_expressed >= max(self.min_genes, 1)
        notes = [f"{int((~is_kept).sum())} of {len(is_kept)} cells left out by keep and min_genes"]
        if not is_kept.any():
            raise DataError(
                f"{source}: no cell expresses {self.min_genes} genes or more (of {len(names)} "
                "measured): lower simulator.min_genes"
            )
        rows = np.flatnonzero(is_kept)
        find_control(
            sorted(set(label[rows])), self.control_label, f"obs['{self.perturbation_column}']"
        )
        targets = self._targets(sorted(set(label[rows])), names, target_map)
        cell_type = column_or_one(cells, self.cell_type_column, "cell_type")
        batch = column_or_one(cells, self.batch_column, "batch")
        # two labels of the same genes (A+B, B+A) are one perturbation
        canonical: dict[tuple[tuple[str, float], ...], str] = {}
        name_of = {}
        for key, genes in targets.items():
            joined = self.control_label if not genes else "+".join(genes)
            if any(weight != 1 for weight in genes.values()):
                joined = key  # a weighted effect is no combination of its genes
            name_of[key] = canonical.setdefault(tuple(sorted(genes.items())), joined)
        targets = {name_of[key]: genes for key, genes in targets.items()}
        label = np.array([name_of.get(key, key) for key in label], dtype=object)
        if self.max_order is not None:
            rows = rows[[len(targets[label[row]]) <= self.max_order for row in rows]]
        rows, few = self._enough(rows, label, cell_type)
        if few:
            notes.append(f"fewer than {self.min_cells} cells, left out: {', '.join(few)}")
        if self.max_cells is not None and len(rows) > self.max_cells:
            strata = np.char.add(np.char.add(label[rows].astype(str), "\n"), cell_type[rows])
            kept = subsample(strata, label[rows] == self.control_label, self.max_cells, seed=seed)
            notes.append(f"{len(kept)} of {len(rows)} cells drawn, stratified by perturbation")
            rows, more = self._enough(rows[kept], label, cell_type)
            if more:
                notes.append(f"too few cells after drawing, left out: {', '.join(more)}")
        protein, has_protein = self._protein(cells, source)
        if protein is not None:
            rows = rows[has_protein[rows]]
            if len(rows) == 0:
                raise DataError(
                    f"{source} and simulator.protein={self.protein} share no cells: their "
                    "obs_names must agree"
                )
        check_perturbations(label[rows], self.control_label, source)
        conditions = [self.control_label, *sorted(set(label[rows]) - {self.control_label})]
        types, batches = (sorted(map(str, set(of[rows]))) for of in (cell_type, batch))
        values: Any = matrix[rows]
        values = np.asarray(values.todense() if hasattr(values, "todense") else values)
        state = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[:, None]

        def index(values: np.ndarray, known: Sequence[str]) -> Tensor:
            place = {value: i for i, value in enumerate(known)}
            return torch.tensor([place[value] for value in values], dtype=torch.long)

        recording = Recording(
            time=torch.zeros(len(rows), 1),
            state=state,
            names=names,
            inputs={} if protein is None else {"protein": protein[rows][:, None]},
            graph={
                "condition": index(label[rows], conditions),
                "cell_type": index(cell_type[rows], types),
                "batch": index(batch[rows], batches),
            },
            units={"time": "1", "state": "counts" if kind == "counts" else "log1p expression"},
            provenance={
                "design": f"{len(rows)} cells, {len(conditions) - 1} perturbations, "
                f"{len(types)} cell type(s), {len(batches)} batch(es), {len(names)} genes",
                "conditions": conditions,
                "targets": [list(targets[name]) for name in conditions],
                "target_weights": [list(targets[name].values()) for name in conditions],
                "cell_types": types,
                "batches": batches,
                "expression": kind,
                "notes": notes,
                "source": source,
            },
        )
        return recording

    def reveal(self, recording: Recording, truth: None, /) -> dict[str, Tensor]:
        """Nothing beside the recording is known; prior graphs are named by the data set."""
        return {}

    def _kept(self, cells: anndata.AnnData) -> np.ndarray:
        import numpy as np

        is_kept = np.ones(cells.n_obs, dtype=bool)
        for name, wanted in self.keep.items():
            column = obs_column(cells, name).astype(str).to_numpy()
            values = wanted if isinstance(wanted, list | tuple) else [wanted]
            for value in values:
                if str(value) not in column:
                    shown = ", ".join(sorted(set(column))[:12])
                    raise DataError(
                        f"no cell has obs['{name}'] = '{value}' (simulator.keep): its values are "
                        f"{shown}"
                    )
            is_kept &= np.isin(column, [str(value) for value in values])
        if not is_kept.any():
            raise DataError(f"no cell has all of simulator.keep = {self.keep}")
        return is_kept

    def _targets(
        self,
        labels: list[str],
        names: tuple[str, ...],
        target_map: Mapping[str, Mapping[str, float]] | None,
    ) -> dict[str, dict[str, float]]:
        separator = self.combination_separator
        if separator == "auto":
            separator = find_separator((x for x in labels if x != self.control_label), names)
        found = {}
        for label in labels:
            if target_map is not None and label in target_map and label != self.control_label:
                found[label] = dict(sorted(target_map[label].items()))
            else:
                genes = targets_of(label, self.control_label, separator)
                found[label] = {gene: 1.0 for gene in genes}
        return found

    def _enough(
        self, rows: np.ndarray, label: np.ndarray, cell_type: np.ndarray
    ) -> tuple[np.ndarray, list[str]]:
        """Rows of perturbations with enough cells, and the names of the others."""
        import numpy as np

        counts: dict[tuple[str, str], int] = {}
        for row in rows:
            key = (str(label[row]), str(cell_type[row]))
            counts[key] = counts.get(key, 0) + 1
        few = {k for k, n in counts.items() if n < self.min_cells and k[0] != self.control_label}
        keep = [row for row in rows if (label[row], cell_type[row]) not in few]
        n_type = len(set(cell_type))
        return np.array(keep, dtype=int), sorted(
            name if n_type == 1 else f"{name} in {of}" for name, of in few
        )

    def _protein(self, cells: anndata.AnnData, source: str) -> tuple[Tensor | None, np.ndarray]:
        import anndata
        import numpy as np

        everywhere = np.ones(cells.n_obs, dtype=bool)
        if self.protein is None:
            return None, everywhere
        if self.protein in cells.obsm:
            values: Any = np.asarray(cells.obsm[self.protein], dtype=np.float32)
        elif self.protein.endswith(".h5ad"):
            other = anndata.read_h5ad(find_data(self.protein))
            place = {str(name): i for i, name in enumerate(other.obs_names)}
            everywhere = np.array([str(name) in place for name in cells.obs_names])
            values = np.zeros((cells.n_obs, other.n_vars), dtype=np.float32)
            matrix = matrix_of(other, None, self.protein)
            order = [place[str(name)] for name in cells.obs_names[everywhere]]
            dense: Any = matrix[order]
            values[everywhere] = dense.todense() if hasattr(dense, "todense") else dense
        else:
            raise DataError(
                f"{source} has no obsm['{self.protein}']: "
                f"{nearest(self.protein, [str(k) for k in cells.obsm])}; or name an .h5ad file"
            )
        if not np.isfinite(values).all():
            raise DataError(f"the protein values of {self.protein} hold NaN or infinity")
        return torch.from_numpy(values), everywhere


def find_screen(name: str) -> Path:
    """:func:`~neuralgraph.core.data_home.find_data`, which also says what lies beside it."""
    try:
        return find_data(name)
    except MissingDataError as error:
        folders = [folder / Path(name).parent for folder in data_folders()]
        beside = sorted({p.name for f in folders if f.is_dir() for p in f.glob("*.h5ad")})
        if not beside:
            raise
        raise MissingDataError(
            f"{error}; the folder holds {', '.join(beside[:5])}: name one with simulator.path, "
            "and its columns and labels"
        ) from None


def obs_column(cells: anndata.AnnData, name: str) -> Any:
    """A column of ``obs``.

    Raises:
        DataError: it is not there; lists those that are.
    """
    if name not in cells.obs:
        columns = [str(c) for c in cells.obs]
        raise DataError(
            f"obs has no column '{name}': {nearest(name, columns)} Its columns are "
            f"{', '.join(columns)}"
        )
    return cells.obs[name]


def column_or_one(cells: anndata.AnnData, name: str | None, what: str) -> np.ndarray:
    """A column of ``obs`` as text, or one value for all."""
    import numpy as np

    if name is None:
        return np.full(cells.n_obs, "all")
    column = obs_column(cells, name)
    if column.isna().any():
        raise DataError(
            f"{int(column.isna().sum())} cells have no value in obs['{name}'] ({what}): remove "
            "them or fill the gaps"
        )
    return column.astype(str).to_numpy().astype(str)


def labels_of(cells: anndata.AnnData, column: str, control_label: str) -> np.ndarray:
    """Perturbation label of each cell.

    Raises:
        DataError: the column is absent, or cells have no label.
    """
    values = obs_column(cells, column)
    if values.isna().any():
        raise DataError(
            f"{int(values.isna().sum())} cells have no label in obs['{column}']: remove them, or "
            f"label the unperturbed ones '{control_label}'"
        )
    return values.astype(str).to_numpy().astype(object)


def gene_names(cells: anndata.AnnData, column: str | None) -> tuple[str, ...]:
    """Names of the genes, each once.

    Raises:
        DataError: the column is absent, or a name occurs twice.
    """
    if column is None:
        names = tuple(map(str, cells.var_names))
    elif column not in cells.var:
        columns = [str(c) for c in cells.var]
        raise DataError(f"var has no column '{column}': {nearest(column, columns)}")
    else:
        names = tuple(cells.var[column].astype(str))
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = sorted({n for n in names if n in seen or seen.add(n)})
        raise DataError(
            f"gene names must be unique; {len(twice)} occur twice or more: "
            f"{', '.join(twice[:5])}: add them up, or name another column with "
            "simulator.gene_column (scanpy: var_names_make_unique)"
        )
    return names


def matrix_of(cells: anndata.AnnData, layer: str | None, source: str) -> Any:
    """The expression matrix, ``(n_cell, n_gene)``, CSR where the file is sparse."""
    import numpy as np

    if layer is None:
        matrix: Any = cells.X
    elif layer not in cells.layers:
        layers = [str(k) for k in cells.layers]
        raise DataError(f"{source} has no layer '{layer}': {nearest(layer, layers)}")
    else:
        matrix = cells.layers[layer]
    if matrix is None or 0 in matrix.shape:
        raise DataError(f"{source} holds no expression values")
    return matrix.tocsr() if hasattr(matrix, "tocsr") else np.asarray(matrix)


def expression_kind(matrix: Any, promised: str, source: str) -> str:
    """``counts`` or ``log1p``: what a matrix holds, by its values.

    Args:
        matrix: Expression, dense or sparse.
        promised: ``counts``, ``log1p``, or ``auto`` where nothing is promised.
        source: Name for messages.

    Raises:
        DataError: NaN, negative (scaled) values, normalised values without log, or something
            else than promised.
    """
    import numpy as np

    values = matrix.data if hasattr(matrix, "tocsr") else matrix
    if not np.isfinite(values).all():
        raise DataError(
            f"{source}: the expression holds NaN or infinity: remove those cells or genes"
        )
    if values.size and values.min() < 0:
        raise DataError(
            f"{source}: the expression holds negative values (down to {values.min():.3g}), as "
            "after scaling or regressing out: give raw counts or log1p-normalised values, from "
            "X or a layer (simulator.layer)"
        )
    if not values.size or values.max() == 0:
        raise DataError(f"{source}: every expression value is 0")
    largest = float(values.max())
    if bool((values == np.rint(values)).all()):
        found = "counts"
    elif largest <= LARGEST_LOG1P:
        found = "log1p"
    else:
        raise DataError(
            f"{source}: the expression is neither counts (it has fractions) nor log1p of "
            f"normalised counts (it reaches {largest:.4g}, above {LARGEST_LOG1P:g}): give raw "
            "counts, or take log1p (scanpy.pp.log1p) first"
        )
    if promised not in ("auto", found):
        mend = (
            "normalise and log1p first (scanpy.pp.normalize_total, scanpy.pp.log1p)"
            if found == "counts"
            else "name the layer that holds raw counts with simulator.layer"
        )
        raise DataError(
            f"{source}: simulator.expression={promised}, but the values look like {found} "
            f"(largest {largest:.4g}): {mend}, or set simulator.expression={found}"
        )
    return found


def check_perturbations(label: np.ndarray, control_label: str, source: str) -> None:
    """Refuse a screen with fewer than two controls or two perturbations.

    Raises:
        DataError: says what is missing.
    """
    n_control = int((label == control_label).sum())
    if n_control < 2:
        raise DataError(
            f"{source}: {n_control} control cell(s) ('{control_label}') are left after filtering, "
            "at least 2 are needed: lower simulator.min_genes, or widen simulator.keep"
        )
    others = sorted(set(label) - {control_label})
    if len(others) < 2:
        what = f"the one perturbation '{others[0]}'" if others else "no perturbation"
        raise DataError(
            f"{source}: {what} is left beside the controls, at least 2 are needed to learn from "
            "one and be judged on another: check simulator.perturbation_column, min_cells and keep"
        )


def subsample(strata: np.ndarray, is_control: np.ndarray, n_keep: int, *, seed: int) -> np.ndarray:
    """Rows that stay when ``n_keep`` cells are drawn: stratified, and controls first.

    Controls keep all their cells, unless they are more than half of ``n_keep``; the other strata
    share what is left as evenly as their sizes allow, since each is one mean to be measured.

    Args:
        strata: Name of the stratum of each cell.
        is_control: Whether a cell is unperturbed.
        n_keep: Cells to keep in all.
        seed: Of the draw.

    Returns:
        Sorted row numbers, at most ``n_keep``.
    """
    import numpy as np

    random = numpy_generator(seed, "cells that stay")
    kept = []
    n_control = min(int(is_control.sum()), n_keep // 2)
    for is_part, room in ((is_control, n_control), (~is_control, n_keep - n_control)):
        names, sizes = np.unique(strata[is_part], return_counts=True)
        shares = _even_shares(sizes, room)
        for name, share in zip(names, shares, strict=True):
            rows = np.flatnonzero(is_part & (strata == name))
            kept.append(random.permutation(rows)[:share])
    return np.sort(np.concatenate(kept))


def _even_shares(sizes: np.ndarray, room: int) -> np.ndarray:
    """Parts of ``room``, equal but for strata that are smaller."""
    import numpy as np

    share = np.zeros_like(sizes)
    while room > 0 and (share < sizes).any():
        is_open = share < sizes
        step = max(room // int(is_open.sum()), 1)
        for i in np.flatnonzero(is_open):
            more = min(step, int(sizes[i] - share[i]), room)
            share[i] += more
            room -= more
    return share
