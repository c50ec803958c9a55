"""Named shapes: one vocabulary of axes, checked in tests through jaxtyping.

Axes: ``n_met`` metabolites, ``n_rxn`` reactions, ``n_run`` runs, ``n_time`` frames, ``n_edge``
edges, ``n_var`` state variables; ``*batch`` any leading axes.
"""

from __future__ import annotations

from typing import TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

Concentration: TypeAlias = Float[Tensor, "*batch n_met"]
Flux: TypeAlias = Float[Tensor, "*batch n_rxn"]
State: TypeAlias = Float[Tensor, "n_run n_time n_var"]
Stoichiometry: TypeAlias = Float[Tensor, "n_met n_rxn"]
EdgeValue: TypeAlias = Float[Tensor, " n_edge"]
EdgeIndex: TypeAlias = Int[Tensor, " n_edge"]
Adjacency: TypeAlias = Float[Tensor, "n_var n_var"]
