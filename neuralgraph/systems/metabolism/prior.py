"""What the learner is told: the one way from the truth towards training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError
from neuralgraph.core.recording import Recording, Truth


class RevealsPrior:
    """The one way from the truth towards training: named switches, printed with the run."""

    def reveal(
        self,
        recording: Recording,
        truth: Truth | None,
        /,
        *,
        support: bool,
        roles: bool,
        stoichiometry: bool,
        rate_constants: bool,
    ) -> dict[str, Tensor]:
        """What the learner is told.

        Args:
            recording: The recording.
            truth: Its truth, or ``None`` for measured data: the user's own reaction graph
                (``recording.graph``) is then what can be told.
            support: Which (metabolite, reaction) pairs have a net coefficient: ``met_all``,
                ``rxn_all``.
            roles: Which metabolites are on the substrate side: ``met_sub``, ``rxn_sub``; with
                ``support`` also ``sign_all`` in {-1, 0 (both sides), +1}, ``order_sub`` where the
                rate-law family fixes the kinetic orders, and ``drive_sub``, ``drive_rxn`` where
                functions of time act in the laws.
            stoichiometry: The coefficients themselves: ``sto_sub``, ``sto_all`` (and so support
                and roles).
            rate_constants: ``log_k``.
        Returns:
            Named tensors; ``n_rxn`` is always there.
        Raises:
            ConfigError: a switch asks for what is not known.
        """
        known: Mapping[str, Tensor] = truth.parameters if truth is not None else recording.graph
        support, roles = support or stoichiometry, roles or stoichiometry
        n_rxn = len(recording.provenance["reaction_names"])
        given = {"n_rxn": torch.tensor(n_rxn)}
        names: list[str] = []
        if support:
            names += ["met_all", "rxn_all"]
        if roles:
            names += ["met_sub", "rxn_sub"]
        if support and roles:
            names += ["sign_all"]
        if stoichiometry:
            names += ["sto_sub", "sto_all"]
        if rate_constants:
            names += ["log_k"]
        for name in names:
            if name not in known:
                switch = {
                    "met_all": "support",
                    "rxn_all": "support",
                    "sto_sub": "stoichiometry",
                    "sto_all": "stoichiometry",
                    "log_k": "rate_constants",
                }.get(name, "roles")
                raise ConfigError(
                    f"prior.{switch}=true needs '{name}', which "
                    + (
                        "the reaction graph of this recording does not hold: add it to "
                        "simulator.graph, or set the switch to false"
                        if truth is None
                        else "this rate law does not have: set the switch to false"
                    )
                )
            given[name] = known[name].clone()
        if roles and "drive_sub" in known:  # functions of time that act in the laws
            given.update(drive_sub=known["drive_sub"].clone(), drive_rxn=known["drive_rxn"].clone())
        if roles and truth is not None and truth.facts.get("order_rule") == "one":
            given["order_sub"] = known["order_sub"].clone()
        return given
