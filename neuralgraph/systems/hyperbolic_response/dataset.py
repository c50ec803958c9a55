"""A screen cut into folds: what perturbations do to mean expression, and what is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from neuralgraph.core.bounds import Count, Natural, Part, Positive
from neuralgraph.core.errors import ConfigError, DataError, nearest
from neuralgraph.core.recording import Recording
from neuralgraph.systems.hyperbolic_response.gene_graph import (
    GeneGraph,
    GraphSource,
    make_graph,
)
from neuralgraph.systems.hyperbolic_response.labels import (
    refuse_other_recordings,
    refuse_unequal_weights,
)
from neuralgraph.systems.hyperbolic_response.prepare import (
    log_normalise,
    variable_genes,
)
from neuralgraph.systems.hyperbolic_response.splits import Rule, Split, halves, make_splits

Reference: TypeAlias = Literal["cell_type", "batch", "global"]
"""Which controls a cell is compared with: of its cell type, of its type and batch, or all."""

Half: TypeAlias = Literal["prediction", "truth", "all"]
"""Which controls: those predictions may use, those only the truth is measured with, or both."""


class CellMatrix:
    """Log-normalised expression of single cells; float32, shared by all folds, never copied."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


@dataclass(frozen=True)
class ConditionSet:
    """Conditions (a perturbation in a cell type), their mean expression and matched controls.

    Everything is log-normalised expression at the genes of the fold; R repeats of the cut of the
    controls, C conditions, P perturbable genes, G genes.

    Args:
        names: Perturbation of each condition, such as ``KLF1+MAP2K6``.
        multi_hot: Perturbed genes, ``(C, P)``; 0 elsewhere.
        context: Cell type, ``(C,)`` long.
        n_cell: ``(C,)``.
        mean: Mean over the cells, ``(C, G)``.
        variance: Sampling variance of that mean, ``(C, G)``.
        control: Mean of the matched controls of the prediction half, ``(R, C, G)``.
        control_shared: Mean of all matched controls, ``(C, G)``.
        rows: Rows of the recording of each condition's cells.
        genes: Genes of the fold, ``(G,)`` long, columns of the recording.
        matrix: Where :meth:`cells` looks.
    """

    names: tuple[str, ...]
    multi_hot: Tensor
    context: Tensor
    n_cell: Tensor
    mean: Tensor
    variance: Tensor
    control: Tensor
    control_shared: Tensor
    rows: tuple[Tensor, ...]
    genes: Tensor
    matrix: CellMatrix

    @property
    def n_condition(self) -> int:
        """Number of conditions."""
        return len(self.names)

    @property
    def delta(self) -> Tensor:
        """Effect against the prediction half of the controls (first cut), ``(C, G)``."""
        return self.mean - self.control[0]

    @property
    def delta_shared(self) -> Tensor:
        """Effect against all controls, ``(C, G)``: prediction and truth share their noise."""
        return self.mean - self.control_shared

    def deltas(self) -> Tensor:
        """Effect against the prediction half, for each cut of the controls, ``(R, C, G)``."""
        return self.mean - self.control

    def index(self, name: str) -> int:
        """Row of a condition by its perturbation."""
        if name not in self.names:
            raise DataError(f"no condition is called '{name}': {nearest(name, self.names)}")
        return self.names.index(name)

    def cells(self, condition: int | str) -> Tensor:
        """Log-normalised expression of the cells of a condition, ``(n, G)`` float32."""
        row = self.index(condition) if isinstance(condition, str) else condition
        return self.matrix.values[self.rows[row].cpu()][:, self.genes.cpu()]


@dataclass(frozen=True)
class HeldOutSet(ConditionSet):
    """Conditions for the judge: the truth, measured with controls that no prediction uses.

    Args:
        control_truth: Mean of the matched controls of the truth half, ``(R, C, G)``.
        half_a: Effect in half of the cells against the prediction half, ``(R, C, G)``.
        half_b: Effect in the other half against the truth half: with ``half_a`` the ceiling.
        half_a_shared: As ``half_a``, both halves against all controls.
        half_b_shared: The other half.
        subgroup: What of each condition was seen in training.
    """

    control_truth: Tensor
    half_a: Tensor
    half_b: Tensor
    half_a_shared: Tensor
    half_b_shared: Tensor
    subgroup: tuple[str, ...]

    @property
    def delta_disjoint(self) -> Tensor:
        """Effect against the truth half of the controls (first cut), ``(C, G)``."""
        return self.mean - self.control_truth[0]

    def deltas_disjoint(self) -> Tensor:
        """Effect against the truth half, for each cut of the controls, ``(R, C, G)``."""
        return self.mean - self.control_truth


@dataclass(frozen=True)
class Fold:
    """One way to hold out; everything fitted (genes, controls) is fitted on its training cells.

    Args:
        genes: Response genes, ``(G,)`` long, columns of the recording.
        gene_names: Their names.
        gene_node: Their nodes in the gene graph, ``(G,)`` long.
        train: Conditions to learn from.
        validation: Conditions that genes are not chosen on, or ``None``. They are known to every
            predictor like those of ``train``: what is validated on are shares of both, by member.
        test: Conditions to be judged on.
        control_mean: Mean of the controls of the prediction half by cell type, ``(K, G)``.
        control_mean_shared: Of all controls, ``(K, G)``.
        gene_std: Standard deviation over the training cells and controls, ``(G,)``.
        left_out: Names of conditions that serve nothing in this fold.
        control_rows: Rows of the recording of the controls by half: ``prediction``, ``truth``; of
            the first cut.
        control_context: Cell type of the control cells, by half.
        prediction_rows: Rows of the prediction half in every cut, ``(R, n)`` long.
        prediction_context: Their cell type, ``(R, n)`` long.
        matrix: Where :meth:`control_cells` looks.
    """

    genes: Tensor
    gene_names: tuple[str, ...]
    gene_node: Tensor
    train: ConditionSet
    validation: ConditionSet | None
    test: HeldOutSet
    control_mean: Tensor
    control_mean_shared: Tensor
    gene_std: Tensor
    left_out: tuple[str, ...]
    control_rows: Mapping[str, Tensor]
    control_context: Mapping[str, Tensor]
    prediction_rows: Tensor
    prediction_context: Tensor
    matrix: CellMatrix

    def prediction_cells(self, cut: int, context: int | None = None) -> Tensor:
        """Expression of the prediction half of the controls of a cut, ``(n, G)`` float32."""
        rows = self.prediction_rows[cut].cpu()
        if context is not None:
            rows = rows[self.prediction_context[cut].cpu() == context]
        return self.matrix.values[rows][:, self.genes.cpu()]

    def control_cells(self, half: Half, context: int | None = None) -> Tensor:
        """Log-normalised expression of control cells (first cut), ``(n, G)`` float32."""
        parts = ("prediction", "truth") if half == "all" else (half,)
        rows = torch.cat([self.control_rows[part] for part in parts]).cpu()
        if context is not None:
            of = torch.cat([self.control_context[part] for part in parts]).cpu()
            rows = rows[of == context]
        return self.matrix.values[rows][:, self.genes.cpu()]


@dataclass(frozen=True)
class ResponseSpec:
    """Sizes and given facts a model is built from.

    Args:
        gene_names: Measured genes, columns of the recording.
        perturbations: Genes that are perturbed in the screen: a vocabulary of its own.
        contexts: Cell types.
        graph: Gene graph over measured and perturbed genes.
        perturbation_node: Node of each perturbation, ``(P,)`` long.
        control_mean: Controls of the prediction half by fold and cell type, ``(n_fold, K, G)``.
    """

    gene_names: tuple[str, ...]
    perturbations: tuple[str, ...]
    contexts: tuple[str, ...]
    graph: GeneGraph
    perturbation_node: Tensor
    control_mean: Tensor

    @property
    def n_fold(self) -> int:
        """Folds that are trained."""
        return self.control_mean.shape[0]

    @property
    def n_gene(self) -> int:
        """Response genes of a fold."""
        return self.control_mean.shape[2]

    @property
    def n_perturbation(self) -> int:
        """Genes that can be perturbed."""
        return len(self.perturbations)

    @property
    def n_context(self) -> int:
        """Cell types."""
        return len(self.contexts)

    @property
    def n_node(self) -> int:
        """Nodes of the gene graph."""
        return self.graph.n_node

    def multi_hot(self, perturbation: str) -> Tensor:
        """``(1, P)`` of a perturbation named by the user, such as ``KLF1+MAP2K6``.

        Raises:
            DataError: a gene that is not in the vocabulary (says which are near), or one that is
                named twice.
        """
        row = torch.zeros(1, self.n_perturbation, dtype=self.control_mean.dtype)
        for gene in perturbation.split("+"):
            name = gene.strip()
            if name not in self.perturbations:
                raise DataError(
                    f"'{name}' is not perturbed in this screen: {nearest(name, self.perturbations)}"
                )
            place = self.perturbations.index(name)
            if row[0, place] > 0:
                raise DataError(
                    f"'{perturbation}' names '{name}' twice: expected each gene once, such as "
                    f"'{name}' alone"
                )
            row[0, place] = 1.0
        return row


@dataclass(frozen=True)
class ResponseBatch:
    """Training conditions of a batch, of any folds; B items.

    Args:
        fold: Fold of each item, ``(B,)`` long.
        multi_hot: Perturbed genes, ``(B, P)``.
        context: Cell type, ``(B,)`` long.
    """

    fold: Tensor
    multi_hot: Tensor
    context: Tensor


class ResponseData:
    """Folds of a screen; one item to learn from is one training condition of one fold.

    Cells are log-normalised one by one; conditions are split; only then is anything fitted. The
    controls of each stratum (cell type and batch) are cut in two halves: predictions are made with
    the first, and the truth is measured with the second, so that noise of the controls is not
    mistaken for skill.

    Args:
        recording: Cells with their labels.
        given: What the learner is told (the simulator's graph, or nothing).
        split: What is held out, see :func:`~.splits.make_splits`.
        fold: Number of one fold, or ``all``.
        n_fold: Number of folds where the split has a choice, else ``null``.
        seed_of_split: Of folds, halves and validation.
        n_control_split: Repeats of the cut of the controls. Each has a model of its own that learns
            from its prediction half; response genes, their standard deviations and a correlation
            graph are fitted on the prediction half of the first one.
        n_top_genes: Most variable genes in the training cells of a fold, ``null`` for all.
        min_cells_per_gene: Training cells that must express a gene for it to be kept.
        target_sum: Counts a cell is normalised to.
        reference: Controls a cell is compared with.
        validation_fraction: Share of the training perturbations that genes are not chosen on, see
            :class:`Fold`; 0 unless a loop of your own chooses by :meth:`validation`.
        unseen_single_fraction: With ``combination``: share of the genes perturbed alone that no
            training condition holds, so that combinations of them are ``seen0`` and ``seen1``.
        max_order: Largest number of genes perturbed at once, ``null`` for any.
        graph: Source of the gene graph.
        graph_path: Its file (``string``, ``trrust``), a path or a name in the data folders.
        graph_names_path: Table from STRING identifiers to symbols (``string``), ``null`` where the
            links hold symbols.
        graph_threshold: Least combined score of an edge, exclusive (``string``: 700), or least
            absolute correlation (``correlation``).
        graph_bridges: Genes neither measured nor perturbed that may join the graph because they
            link two of its nodes or more (``string``, ``trrust``).
        allow_isolated: Whether perturbed genes without an edge are accepted.
    """

    def __init__(
        self,
        recording: Recording,
        given: Mapping[str, Tensor],
        *,
        split: Rule,
        fold: Natural | Literal["all"],
        n_fold: Count | None,
        seed_of_split: int,
        n_control_split: Count,
        n_top_genes: Count | None,
        min_cells_per_gene: Natural,
        target_sum: Positive,
        reference: Reference,
        validation_fraction: Part,
        unseen_single_fraction: Part,
        max_order: Count | None,
        graph: GraphSource,
        graph_path: str | None,
        graph_names_path: str | None,
        graph_threshold: Positive | None,
        graph_bridges: Natural,
        allow_isolated: bool,
    ) -> None:
        refuse_other_recordings(recording)
        facts = recording.provenance
        conditions: list[str] = list(facts["conditions"])
        targets: list[tuple[str, ...]] = [tuple(t) for t in facts["targets"]]
        refuse_unequal_weights(facts)
        self.control_label = conditions[0]
        self.conditions = conditions
        self.contexts: tuple[str, ...] = tuple(facts["cell_types"])
        self.gene_names = recording.names
        self.reference: Reference = reference
        self.split: Rule = split
        self.n_control_split = n_control_split
        self.seed_of_split = seed_of_split
        self.source = str(facts.get("source", "simulated"))
        label, cell_type = recording.graph["condition"], recording.graph["cell_type"]
        batch = recording.graph["batch"]
        values = recording.state[:, 0]
        if facts["expression"] == "counts":
            values = log_normalise(values, target_sum)
        self.matrix = CellMatrix(values.float())

        # conditions: a perturbation in a cell type
        order = torch.tensor([len(genes) for genes in targets])[label]
        is_used = (label > 0) & (order <= (max_order or int(order.max())))
        n_type = len(self.contexts)
        key = label * n_type + cell_type
        keys = key[is_used].unique()
        self._label_of = torch.div(keys, n_type, rounding_mode="floor")
        self._context_of = keys % n_type
        self._rows = [(is_used & (key == k)).nonzero()[:, 0] for k in keys]
        self._targets = [targets[i] for i in self._label_of]
        self.perturbations = tuple(sorted({gene for genes in self._targets for gene in genes}))
        if len(set(self._targets)) < 2:
            raise DataError(
                f"{self.source} holds {len(set(self._targets))} perturbation(s) beside the "
                "controls, at least 2 are needed to learn from one and be judged on another"
            )
        multi_hot = torch.zeros(len(keys), len(self.perturbations), dtype=torch.float64)
        place = {name: i for i, name in enumerate(self.perturbations)}
        for row, i in enumerate(self._label_of.tolist()):
            for gene in targets[i]:
                multi_hot[row, place[gene]] = 1.0
        self._multi_hot = multi_hot

        # controls: strata they are matched in, and their halves
        n_batch = len(facts["batches"])
        self._cell_type, self._fine = cell_type, cell_type * n_batch + batch
        self._stratum = {
            "cell_type": cell_type,
            "batch": self._fine,
            "global": torch.zeros_like(cell_type),
        }[reference]
        self._control_rows = (label == 0).nonzero()[:, 0]
        self._check_controls(facts, is_used)
        self._is_prediction = torch.stack(
            [
                halves(
                    self._fine[self._control_rows],
                    seed=seed_of_split,
                    name=f"halves of the controls {repeat}",
                )
                for repeat in range(n_control_split)
            ]
        )

        splits = make_splits(
            split,
            self._targets,
            self._context_of.tolist(),
            n_fold=n_fold,
            validation_fraction=validation_fraction,
            unseen_single_fraction=unseen_single_fraction,
            seed=seed_of_split,
        )
        if fold != "all":
            if not 0 <= fold < len(splits):
                raise ConfigError(
                    f"dataset.fold must be between 0 and {len(splits) - 1}, or all, got {fold}"
                )
            splits = [splits[fold]]
        prediction = self._control_rows[self._is_prediction[0]]
        measured = set(self.gene_names)
        self.graph = make_graph(
            graph,
            (*self.gene_names, *(p for p in self.perturbations if p not in measured)),
            given,
            measured=self.gene_names,
            control=self.matrix.values[prediction],
            path=graph_path,
            names_path=graph_names_path,
            threshold=graph_threshold,
            n_bridge=graph_bridges,
        )
        alone = self.graph.isolated(self.perturbations)
        if alone and not allow_isolated and graph != "identity":
            known = [n for n in self.graph.names if n not in set(alone)]
            raise DataError(
                f"{len(alone)} of {len(self.perturbations)} perturbed genes have no edge in the "
                f"gene graph ({self.graph.source}): "
                + "; ".join(f"'{name}', {nearest(name, known, n=2)}" for name in alone[:3])
                + (" …" if len(alone) > 3 else "")
                + " Correct the names, take another graph, or set dataset.allow_isolated=true"
            )
        self.isolated = tuple(alone)
        node = {name: i for i, name in enumerate(self.graph.names)}
        self._gene_node = torch.tensor([node[name] for name in self.gene_names])
        self._made: dict[bytes, _Summaries] = {}
        chosen = self._choose_genes(splits, n_top_genes, min_cells_per_gene)
        self.folds: list[Fold] = [
            self._make_fold(cut, genes) for cut, genes in zip(splits, chosen, strict=True)
        ]
        self._made.clear()
        self.spec = ResponseSpec(
            gene_names=self.gene_names,
            perturbations=self.perturbations,
            contexts=self.contexts,
            graph=self.graph,
            perturbation_node=torch.tensor([node[name] for name in self.perturbations]),
            control_mean=torch.stack([fold.control_mean for fold in self.folds]),
        )
        self._items = _items(self.folds)

    # --- what a loop may ask for ---------------------------------------------------------------

    def starts(self, horizon: int) -> Tensor:
        """One index for each training condition of each fold."""
        return torch.arange(self._items.fold.numel())

    def batch(self, index: Tensor, horizon: int = 1) -> ResponseBatch:
        """Training conditions by index."""
        index = index.to(self._items.fold.device)
        return ResponseBatch(
            **{f.name: getattr(self._items, f.name)[index] for f in fields(ResponseBatch)}
        )

    def validation(self) -> ResponseBatch | None:
        """The validation conditions of every fold as one batch, or ``None``."""
        if any(fold.validation is None for fold in self.folds):
            return None
        return _items(self.folds, validation=True)

    def stratum_of(self, cells: Tensor) -> Tensor:
        """Stratum in which cells (rows) are matched with controls, the shape of ``cells``."""
        return self._stratum[cells]

    def quarters(self, repeat: int) -> tuple[Tensor, Tensor]:
        """The prediction half of the controls of a cut, cut in two again: rows of the recording."""
        rows = self._control_rows[self._is_prediction[repeat]]
        first = halves(
            self._fine[rows], seed=self.seed_of_split, name=f"quarters of the controls {repeat}"
        )
        return rows[first], rows[~first]

    def matched_controls(self, cells: Sequence[Tensor], controls: Tensor, genes: Tensor) -> Tensor:
        """Mean of ``controls`` (rows) in the strata of each group of cells, ``(n_group, G)``.

        A stratum that has none among these controls takes the mean of all of them.
        """
        values = self.matrix.values[controls][:, genes].double()
        of_control = self._stratum[controls]
        strata = of_control.unique()
        means = torch.stack([values[of_control == s].mean(0) for s in strata])
        part = torch.stack(
            [(self._stratum[rows][:, None] == strata).double().mean(0) for rows in cells]
        )
        missing = 1 - part.sum(1, keepdim=True)
        return part @ means + missing * values.mean(0)

    def to(self, device: torch.device | str) -> ResponseData:
        """A copy on a device; single cells stay where they are."""
        return self._converted(device=device)

    def astype(self, dtype: torch.dtype) -> ResponseData:
        """A copy in another float type; single cells stay float32."""
        return self._converted(dtype=dtype)

    def _converted(
        self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> ResponseData:
        copy = object.__new__(ResponseData)
        copy.__dict__.update(self.__dict__)
        for name in ("folds", "spec", "_items", "graph"):
            setattr(copy, name, _moved(getattr(self, name), device, dtype))
        return copy

    # --- how it is made ------------------------------------------------------------------------

    def _check_controls(self, facts: Mapping[str, Any], is_used: Tensor) -> None:
        if self._control_rows.numel() < 2:
            raise DataError(
                f"{self.source}: {self._control_rows.numel()} control cell(s) "
                f"('{self.control_label}'), at least 2 are needed for two halves"
            )
        of_control = self._stratum[self._control_rows]
        for value in self._stratum[is_used].unique().tolist():
            n = int((of_control == value).sum())
            if n < 2:
                n_batch = len(facts["batches"])
                where = {
                    "cell_type": f"cell type '{self.contexts[min(value, len(self.contexts) - 1)]}'",
                    "batch": f"batch '{facts['batches'][value % n_batch]}' of cell type "
                    f"'{self.contexts[value // n_batch]}'",
                    "global": "the screen",
                }[self.reference]
                raise DataError(
                    f"{where} has {n} control cell(s), at least 2 are needed for two halves: "
                    "compare with the controls of the cell type (dataset.reference=cell_type) or "
                    "all (dataset.reference=global), or leave it out with simulator.keep"
                )

    def _training_values(self, cut: Split) -> Tensor:
        """Cells that a fold may be fitted on: of training conditions, and controls."""
        rows = [self._rows[i] for i in cut.train]
        return self.matrix.values[torch.cat([*rows, self._control_rows[self._is_prediction[0]]])]

    def _choose_genes(
        self, splits: Sequence[Split], n_top: int | None, min_cells: int
    ) -> list[Tensor]:
        """Response genes of each fold, as many in one as in the other.

        Where a gene reaches ``min_cells`` in some folds only, the others leave out as many of
        their rarest.
        """
        found, count = [], []
        for cut in splits:
            values = self._training_values(cut)
            genes = variable_genes(values, n_top, min_cells)
            found.append(genes)
            count.append((values[:, genes] > 0).sum(0))
        fewest = min(genes.numel() for genes in found)
        return [
            genes[n.argsort(descending=True, stable=True)[:fewest].sort().values]
            for genes, n in zip(found, count, strict=True)
        ]

    def _make_fold(self, cut: Split, genes: Tensor) -> Fold:
        values = self._training_values(cut)
        control = {
            "prediction": self._control_rows[self._is_prediction[0]],
            "truth": self._control_rows[~self._is_prediction[0]],
        }
        everyone = torch.cat(list(control.values()))
        halved = torch.stack([self._control_rows[is_first] for is_first in self._is_prediction])
        validation = self._conditions(cut.validation, genes) if cut.validation else None
        return Fold(
            genes=genes,
            gene_names=tuple(self.gene_names[i] for i in genes.tolist()),
            gene_node=self._gene_node[genes],
            train=self._conditions(cut.train, genes),
            validation=validation,
            test=self._held_out(cut.test, genes, cut.subgroup),
            control_mean=self._by_type(control["prediction"], genes),
            control_mean_shared=self._by_type(everyone, genes),
            gene_std=values[:, genes].double().std(0),
            left_out=tuple(self._name(i) for i in cut.left_out),
            control_rows=control,
            control_context={half: self._cell_type[rows] for half, rows in control.items()},
            prediction_rows=halved,
            prediction_context=self._cell_type[halved],
            matrix=self.matrix,
        )

    def _name(self, row: int) -> str:
        return self.conditions[int(self._label_of[row])]

    def _by_type(self, rows: Tensor, genes: Tensor) -> Tensor:
        """Mean of control cells by cell type; a type without controls takes those of all."""
        values, of = self.matrix.values[rows][:, genes].double(), self._cell_type[rows]
        overall = values.mean(0)
        means = [
            values[of == k].mean(0) if bool((of == k).any()) else overall
            for k in range(len(self.contexts))
        ]
        return torch.stack(means)

    def _summaries(self, genes: Tensor) -> _Summaries:
        """Summaries at some genes, shared by the folds that respond with the same ones."""
        key = genes.numpy().tobytes()
        if key not in self._made:
            self._made[key] = _Summaries(self, genes)
        return self._made[key]

    def _conditions(self, rows: Sequence[int], genes: Tensor) -> ConditionSet:
        index = torch.tensor(rows, dtype=torch.long)
        every = [self._summaries(genes).of(row) for row in rows]
        return ConditionSet(
            names=tuple(self._name(i) for i in rows),
            multi_hot=self._multi_hot[index],
            context=self._context_of[index],
            n_cell=torch.tensor([len(self._rows[i]) for i in rows], dtype=torch.float64),
            mean=torch.stack([one.mean for one in every]),
            variance=torch.stack([one.variance for one in every]),
            control=torch.stack([one.control for one in every], 1),
            control_shared=torch.stack([one.control_shared for one in every]),
            rows=tuple(self._rows[i] for i in rows),
            genes=genes,
            matrix=self.matrix,
        )

    def _held_out(
        self, rows: Sequence[int], genes: Tensor, subgroup: tuple[str, ...]
    ) -> HeldOutSet:
        base = self._conditions(rows, genes)
        every = [self._summaries(genes).halves_of(row) for row in rows]

        def stacked(name: str) -> Tensor:
            return torch.stack([one[name] for one in every], 1)

        return HeldOutSet(
            **{f.name: getattr(base, f.name) for f in fields(base)},
            control_truth=stacked("control_truth"),
            half_a=stacked("half_a"),
            half_b=stacked("half_b"),
            half_a_shared=stacked("half_a_shared"),
            half_b_shared=stacked("half_b_shared"),
            subgroup=subgroup,
        )

    def _cell_halves(self, row: int, repeat: int) -> Tensor:
        name = f"halves of {self._name(row)} in {self.contexts[int(self._context_of[row])]}"
        return halves(self._fine[self._rows[row]], seed=self.seed_of_split, name=f"{name} {repeat}")


@dataclass(frozen=True)
class _Summary:
    """One condition: see :class:`ConditionSet`, without its leading axis C."""

    mean: Tensor
    variance: Tensor
    control: Tensor
    control_shared: Tensor


class _Summaries:
    """Means of conditions and of their matched controls at some genes, each made once."""

    def __init__(self, data: ResponseData, genes: Tensor) -> None:
        self.data, self.genes = data, genes
        controls = data._control_rows
        of = data._stratum[controls]
        self.strata = of.unique()
        values = data.matrix.values[controls][:, genes].double()

        def means(chosen: Tensor) -> Tensor:
            return torch.stack([values[chosen & (of == s)].mean(0) for s in self.strata])

        # (R, n_stratum, G) of each half, (n_stratum, G) of all
        self.first = torch.stack([means(is_first) for is_first in data._is_prediction])
        self.second = torch.stack([means(~is_first) for is_first in data._is_prediction])
        self.both = means(torch.ones_like(of, dtype=torch.bool))
        self._of: dict[int, _Summary] = {}
        self._halves: dict[int, dict[str, Tensor]] = {}

    def part(self, cells: Tensor) -> Tensor:
        """Share of the cells in each stratum of controls, ``(n_stratum,)``."""
        return (self.data._stratum[cells][:, None] == self.strata).double().mean(0)

    def of(self, row: int) -> _Summary:
        """Of a condition."""
        if row not in self._of:
            cells = self.data._rows[row]
            values = self.data.matrix.values[cells][:, self.genes].double()
            part = self.part(cells)
            self._of[row] = _Summary(
                values.mean(0), values.var(0) / len(cells), part @ self.first, part @ self.both
            )
        return self._of[row]

    def halves_of(self, row: int) -> dict[str, Tensor]:
        """What the judge measures a held-out condition with, by name, ``(R, G)`` each."""
        if row not in self._halves:
            data, cells = self.data, self.data._rows[row]
            values = data.matrix.values[cells][:, self.genes].double()
            found: dict[str, list[Tensor]] = {}
            for repeat in range(data.n_control_split):
                is_first = data._cell_halves(row, repeat)
                controls = {"a": self.first[repeat], "b": self.second[repeat]}
                for half, chosen in (("a", is_first), ("b", ~is_first)):
                    mean, part = values[chosen].mean(0), self.part(cells[chosen])
                    found.setdefault(f"half_{half}", []).append(mean - part @ controls[half])
                    found.setdefault(f"half_{half}_shared", []).append(mean - part @ self.both)
            made = {name: torch.stack(parts) for name, parts in found.items()}
            made["control_truth"] = self.part(cells) @ self.second
            self._halves[row] = made
        return self._halves[row]


def _items(folds: Sequence[Fold], *, validation: bool = False) -> ResponseBatch:
    """Conditions of all folds, one after the other."""
    found: dict[str, list[Tensor]] = {f.name: [] for f in fields(ResponseBatch)}
    for number, fold in enumerate(folds):
        chosen = fold.validation if validation else fold.train
        assert chosen is not None
        found["fold"].append(torch.full((chosen.n_condition,), number, device=chosen.mean.device))
        for name in ("multi_hot", "context"):
            found[name].append(getattr(chosen, name))
    return ResponseBatch(**{name: torch.cat(parts) for name, parts in found.items()})


def _moved(value: Any, device: Any, dtype: torch.dtype | None) -> Any:
    """A copy with every tensor on a device and in a float type, through dataclasses and lists."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: _moved(getattr(value, f.name), device, dtype) for f in fields(value)}
        return replace(value, **changed)
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device, dtype) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device, dtype) for key, item in value.items()}
    return value
