"""Metabolism_Propagation: reaction kinetics as message passing on the bipartite reaction graph."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from neuralgraph.core.errors import ConfigError, DataError
from neuralgraph.nn.bipartite import BipartitePropagation
from neuralgraph.nn.mlp import MLP, PowerLawMLP, rate_of_messages, rate_of_sums
from neuralgraph.numerics.incidence import GroupSum, Incidence
from neuralgraph.numerics.interpolation import cubic_interpolate

if TYPE_CHECKING:
    from neuralgraph.systems.metabolism.dataset import MetabolismSpec

KINETICS = ("learned_rate", "mass_action")
AGGREGATIONS = ("multiply", "add")
SUBSTRATE_FORMS = ("power_law", "plain")
INPUT_MODES = ("none", "additive", "multiplicative_substrate", "multiplicative_product")
LN10 = math.log(10.0)
SMALLEST_CONCENTRATION = 1e-8
"""Floor under the concentration where its logarithm is taken, mM."""
SMALLEST_FACTOR = 1e-8
"""Floor under |MLP_sub| in a product of substrates (``substrate_form='plain'``)."""


class Metabolism_Propagation(BipartitePropagation):
    r"""Right-hand side of a metabolic network, $\dot c = S\,v(c) + h(c, a)$.

    Two kinetics, each a message from substrates to reactions, then from reactions to every
    metabolite they change:

    - ``learned_rate``: $v_j = k_j\,\mathrm{softplus}\big(\mathrm{rate\_mlp}(\sum_{i \in
      \mathrm{sub}(j)} \mathrm{msg\_mlp}(c_i, |s_{ij}|))\big)$;
    - ``mass_action``: $v_j = k_j \prod_i f(c_i, |s_{ij}|)$ or $k_j \sum_i f$ with $f$ =
      ``MLP_sub``; $f(c, s) = c^s$ is the law of mass action.

    $k_j = 10^{\texttt{log\_k}_j}$. The homeostasis $h$ is ``MLP_node(c_i, a_i)``. ``sto_sub``
    enters as $|\cdot|$ and is not tied to ``sto_all``: a catalyst has $|s| = 1$ and net 0 or +1.
    In a product no softplus is taken unless asked for: it is at least 0.69 for a positive product,
    so that no reaction could slow down, and $k$ and homeostasis come out distorted.

    What ``spec`` gives is fixed, as buffers that no optimiser can reach: ``sto_all``, ``sto_sub``,
    ``log_k``. Where only signs are given (``sign_all``), ``sto_all`` is the sign times the absolute
    value of what the optimiser moves: its slope is +1 or -1 everywhere, at 0 too, so that no edge
    gets stuck, and a coefficient that is pushed through 0 is reflected, so that no sign flips. The
    attribute ``sto_all`` and the entry of that name in the state dict are the signed coefficients
    themselves in every case; :meth:`set_stoichiometry` writes them. Where roles are not given,
    every candidate edge may be a substrate, and its message is measured from |s| = 0, so that such
    an edge leaves the rate untouched.

    External ``inputs`` act as ``spec.input_mode`` says: not at all (``none``), added to dc/dt
    (``additive``), or as the mean over a reaction's substrates or products, times its rate
    (``multiplicative_substrate``, ``multiplicative_product``).

    Distinct (metabolite, |s|) pairs are evaluated once, not once per edge, when |s| is given.

    Args:
        spec: Sizes, graph and given values (``data.spec``).
        kinetics: ``learned_rate`` or ``mass_action``.
        hidden_dim_sub, n_layers_sub: Of ``msg_mlp`` or ``MLP_sub``; layers are linear layers.
        message_dim: Width of a message (``learned_rate``).
        hidden_dim_rate, n_layers_rate: Of ``rate_mlp`` (``learned_rate``).
        aggregation: ``multiply`` or ``add`` over substrates (``mass_action``).
        substrate_form: ``power_law`` (a learned correction to a power law, f(1, s) = 1) or
            ``plain`` (an MLP of [c, |s|], of which the absolute value counts in a product).
        initial_power: Starting exponent of ``power_law``, relative to |s|.
        softplus: Whether a softplus follows the aggregation (``mass_action``; the documents').
        homeostasis: Whether ``MLP_node`` and the embeddings ``a`` exist.
        hidden_dim_node, n_layers_node, embedding_dim: Of ``MLP_node``.
        initial_scale_node: Factor on the last layer of ``MLP_node`` at the start, > 0: with an
            all-zero start neither the layers before it nor ``a`` ever move.
        initial_scale_embedding: Standard deviation of ``a`` at the start.
        initial_scale_S: Size of the coefficients at the start: standard deviation where the sign
            is unknown, magnitude (times 0.5 to 1.5) where it is known.
        initial_log_k: Range of the uniform start of ``log_k``.
        flux_limit: Whether a reaction may consume at most what is there within ``dt`` (the frame
            interval): $v_j$ times the least, over its substrates, of
            $\min(1, c_i / (\Delta t \sum_{j'} |s_{ij'}| v_{j'}))$, as in the simulator.
        tabulate: Number of log-concentration nodes on which ``MLP_sub`` is evaluated and
            interpolated (local cubic) where |s| is given and that is fewer evaluations, or
            ``None``: never. 128 nodes agree with the function itself to 1e-6.
        fused: Sparse products (fast) or plain edge-list message passing (reference).
        generator: Source of the initial values.

    Raises:
        ConfigError: an unknown option, or one that the given prior does not allow.

    Source:
        Documents 001 and 002; the gauge and the missing softplus: own.
    """

    met_sub: Tensor
    rxn_sub: Tensor
    met_all: Tensor
    rxn_all: Tensor
    met_input: Tensor
    order_input: Tensor | None
    order_levels: Tensor
    level_input: Tensor
    n_sub_per_rxn: Tensor
    sign_all: Tensor | None
    sto_sub: Tensor
    log_k: Tensor
    a: nn.Parameter
    msg_mlp: MLP
    rate_mlp: MLP
    MLP_sub: MLP | PowerLawMLP
    MLP_node: MLP
    met_grouped: Tensor
    n_sub_grouped: Tensor
    edges_of_rxn: GroupSum | None
    to_reaction: Incidence
    to_metabolite: Incidence

    def __init__(
        self,
        spec: MetabolismSpec,
        *,
        generator: torch.Generator,
        kinetics: str = "learned_rate",
        hidden_dim_sub: int = 32,
        n_layers_sub: int = 2,
        message_dim: int = 16,
        hidden_dim_rate: int = 32,
        n_layers_rate: int = 2,
        aggregation: str = "multiply",
        substrate_form: str = "power_law",
        initial_power: float = 0.5,
        softplus: bool = False,
        homeostasis: bool = False,
        hidden_dim_node: int = 64,
        n_layers_node: int = 3,
        embedding_dim: int = 2,
        initial_scale_node: float = 0.1,
        initial_scale_embedding: float = 0.1,
        initial_scale_S: float = 1.0,
        initial_log_k: tuple[float, float] = (-2.0, 1.0),
        flux_limit: bool = False,
        tabulate: int | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__(fused=fused)
        _one_of("kinetics", kinetics, KINETICS)
        _one_of("aggregation", aggregation, AGGREGATIONS)
        _one_of("substrate_form", substrate_form, SUBSTRATE_FORMS)
        _one_of("spec.input_mode", spec.input_mode, INPUT_MODES)
        self.kinetics = kinetics
        self.aggregation = aggregation
        self.is_softplus = bool(softplus)
        self.input_mode = spec.input_mode
        self.flux_limit = bool(flux_limit)
        self.notes: list[str] = []
        """Sentences for the top of the report about what this model cannot express."""
        if spec.flux_limit and not self.flux_limit:
            self.notes.append(
                "the rates of these data are limited by what is left of a substrate "
                "(simulator.flux_limit=true), which this model cannot express: set "
                "model.flux_limit=true"
            )
            logging.getLogger("neuralgraph").warning(self.notes[-1])
        self.dt = float(spec.frame_interval)
        self.tabulate = tabulate
        self.n_met, self.n_rxn = int(spec.n_met), int(spec.n_rxn)
        self.concentration_scale = float(spec.concentration_scale)
        if tabulate is not None and tabulate < 8:
            raise ConfigError(f"tabulate needs at least 8 nodes, got {tabulate}; null is exact")
        low, high = (float(x) for x in initial_log_k)
        if not low <= high:
            raise ConfigError(f"initial_log_k must be (low, high), got ({low:g}, {high:g})")
        if not initial_scale_S > 0:
            raise ConfigError(f"initial_scale_S must be positive, got {initial_scale_S}")

        self._build_graph(spec)
        self._build_stoichiometry(spec, float(initial_scale_S), generator)
        if spec.log_k is not None:
            self.register_buffer("log_k", spec.log_k.clone())
        else:
            log_k = low + (high - low) * torch.rand(self.n_rxn, generator=generator)
            self.log_k = nn.Parameter(log_k)

        scale = 1.0 / self.concentration_scale
        if kinetics == "learned_rate":
            if tabulate is not None:
                raise ConfigError(
                    "tabulate serves MLP_sub of kinetics=mass_action; set tabulate=null"
                )
            self.msg_mlp = MLP(
                2,
                message_dim,
                hidden_dim=hidden_dim_sub,
                n_layers=n_layers_sub,
                generator=generator,
                input_scale=(scale, 1.0),
            )
            if not self.has_roles:
                # messages are differences from |s| = 0, in which the last bias cancels
                self.msg_mlp.last.register_parameter("bias", None)
            self.rate_mlp = MLP(
                message_dim,
                1,
                hidden_dim=hidden_dim_rate,
                n_layers=n_layers_rate,
                generator=generator,
            )
        elif substrate_form == "power_law":
            self.MLP_sub = PowerLawMLP(
                hidden_dim=hidden_dim_sub,
                n_layers=n_layers_sub,
                generator=generator,
                power=initial_power,
            )
        else:
            self.MLP_sub = MLP(
                2,
                1,
                hidden_dim=hidden_dim_sub,
                n_layers=n_layers_sub,
                generator=generator,
                input_scale=(scale, 1.0),
            )
        self.has_homeostasis = bool(homeostasis)
        if homeostasis:
            noise = torch.randn(self.n_met, embedding_dim, generator=generator)
            self.a = nn.Parameter(initial_scale_embedding * noise)
            self.MLP_node = MLP(
                1 + embedding_dim,
                1,
                hidden_dim=hidden_dim_node,
                n_layers=n_layers_node,
                generator=generator,
                input_scale=(scale, *[1.0] * embedding_dim),
                last_scale=initial_scale_node,
            )

        given = (spec.sto_all, spec.sto_sub, spec.order_sub, spec.log_k, spec.sign_all)
        floats = [x.dtype for x in given if x is not None and x.is_floating_point()]
        self.to(floats[0] if floats else torch.float32)

    # -- construction ---------------------------------------------------------------------------

    def _build_graph(self, spec: MetabolismSpec) -> None:
        n_met, n_rxn = self.n_met, self.n_rxn
        if spec.met_all is None or spec.rxn_all is None:
            rxn_all = torch.arange(n_rxn).repeat_interleave(n_met)
            met_all = torch.arange(n_met).repeat(n_rxn)
        else:
            met_all, rxn_all = spec.met_all.long(), spec.rxn_all.long()
        if spec.met_sub is None or spec.rxn_sub is None:
            met_sub, rxn_sub = met_all, rxn_all
        else:
            met_sub, rxn_sub = spec.met_sub.long(), spec.rxn_sub.long()
        self.has_roles = bool(spec.has_roles)
        for name, value in (
            ("met_sub", met_sub),
            ("rxn_sub", rxn_sub),
            ("met_all", met_all),
            ("rxn_all", rxn_all),
        ):
            self.register_buffer(name, value, persistent=False)
        self.to_metabolite = Incidence(met_all, rxn_all, n_met, n_rxn)

        known = spec.sto_sub
        if self.kinetics == "mass_action" and spec.order_sub is not None:
            known = spec.order_sub  # kinetic orders need not be coefficients
        if known is not None:
            # each (metabolite, |s|) is one input of the substrate function
            key = torch.stack([met_sub.double(), known.double().abs()], dim=1)
            pair, inverse = torch.unique(key, dim=0, return_inverse=True)
            met_input, order_input = pair[:, 0].long(), pair[:, 1].contiguous()
        else:
            met_input, inverse = met_sub, torch.arange(met_sub.numel())
            order_input = None
        self.register_buffer("met_input", met_input, persistent=False)
        self.register_buffer(
            "order_input",
            None if order_input is None else order_input.to(torch.float32),
            persistent=False,
        )
        # values of |s| in use where they are given, else 1 and 2
        levels = torch.unique(order_input) if order_input is not None else torch.tensor([1.0, 2.0])
        self.register_buffer("order_levels", levels.to(torch.float32), persistent=False)
        if order_input is not None:
            level = torch.searchsorted(levels, order_input)
            self.register_buffer("level_input", level, persistent=False)
        self.to_reaction = Incidence(rxn_sub, inverse, n_rxn, met_input.numel())
        count = torch.bincount(rxn_sub, minlength=n_rxn).to(torch.float32)
        self.register_buffer("n_sub_per_rxn", count, persistent=False)
        self.edges_of_rxn = None
        if order_input is None:
            # every edge is an input of its own: messages are computed in the order they are summed
            self.edges_of_rxn = GroupSum(rxn_sub, n_rxn)
            grouped = met_sub[self.edges_of_rxn.order]
            self.register_buffer("met_grouped", grouped, persistent=False)
            n_sub = count[self.edges_of_rxn.group]
            self.register_buffer("n_sub_grouped", n_sub, persistent=False)
        if self.flux_limit:
            self.consumption = Incidence(met_sub, rxn_sub, n_met, n_rxn)
        if self.input_mode == "multiplicative_substrate":
            if not self.has_roles:
                raise ConfigError(
                    "input_mode=multiplicative_substrate needs to know the substrates: set "
                    "prior.roles=true"
                )
            self.input_to_reaction = Incidence(rxn_sub, met_sub, n_rxn, n_met)
        elif self.input_mode == "multiplicative_product":
            sign = spec.sign_all if spec.sto_all is None else spec.sto_all.sign()
            if sign is None:
                raise ConfigError(
                    "input_mode=multiplicative_product needs to know the products: set "
                    "prior.support=true and prior.roles=true"
                )
            is_product = sign > 0
            self.input_to_reaction = Incidence(
                rxn_all[is_product], met_all[is_product], n_rxn, n_met
            )

    def _build_stoichiometry(
        self, spec: MetabolismSpec, scale: float, generator: torch.Generator
    ) -> None:
        n_sub, n_all = self.met_sub.numel(), self.met_all.numel()
        sign = None if spec.sign_all is None else spec.sign_all.to(torch.float32)
        self.register_buffer("sign_all", sign, persistent=False)
        # sto_all is stored under its own name and read through the property of that name, which
        # reflects it: hence the direct entries
        if spec.sto_all is not None:
            self._buffers["sto_all"] = spec.sto_all.clone()
        else:
            start = scale * torch.randn(n_all, generator=generator)
            if sign is not None:
                magnitude = scale * (0.5 + torch.rand(n_all, generator=generator))
                start = torch.where(sign == 0, start, sign * magnitude)
            self._parameters["sto_all"] = nn.Parameter(start)
        if spec.sto_sub is not None:
            self.register_buffer("sto_sub", spec.sto_sub.abs())
        elif self.order_input is not None:
            self.register_buffer("sto_sub", self.order_input[self.to_reaction.col])
        elif self.has_roles:
            self.sto_sub = nn.Parameter(scale * (0.5 + torch.rand(n_sub, generator=generator)))
        else:
            self.sto_sub = nn.Parameter(scale * torch.randn(n_sub, generator=generator))

    # -- stoichiometry --------------------------------------------------------------------------

    @property
    def is_stoichiometry_given(self) -> bool:
        """Whether ``sto_all`` is fixed."""
        return self._parameters.get("sto_all") is None

    @property
    def sto_all(self) -> Tensor:
        """Signed net coefficient of each ``all`` edge, ``(n_all_edge,)``."""
        moved = self._parameters.get("sto_all")
        if moved is None:
            return cast(Tensor, self._buffers["sto_all"])
        if self.sign_all is None:
            return moved
        return cast(Tensor, _Reflected.apply(moved, self.sign_all))

    def train(self, mode: bool = True) -> Metabolism_Propagation:
        """As in torch; also puts coefficients that were reflected on the side of their sign.

        The state dict holds them there, and an epoch begins here: a run that is resumed from a
        checkpoint and one that never stopped move the same numbers.
        """
        moved = self._parameters.get("sto_all")
        if moved is not None:
            with torch.no_grad():
                moved.copy_(self.sto_all)
        return super().train(mode)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.sign_all is not None and not self.is_stoichiometry_given and not keep_vars:
            destination[prefix + "sto_all"] = self.sto_all.detach()

    def set_stoichiometry(
        self, *, sto_all: Tensor | None = None, sto_sub: Tensor | None = None
    ) -> None:
        """Write coefficients into the model, as a closed-form start does.

        Args:
            sto_all: Signed net coefficients, ``(n_all_edge,)``, of the known signs.
            sto_sub: Coefficients of the substrates, ``(n_sub_edge,)``.

        Raises:
            ConfigError: they are given, hence fixed.
            DataError: a wrong shape, or a sign other than the known one.
        """
        for name, value, edges in (
            ("sto_all", sto_all, self.met_all),
            ("sto_sub", sto_sub, self.met_sub),
        ):
            if value is None:
                continue
            target = self._parameters.get(name)
            if target is None:
                raise ConfigError(f"{name} of this model is given (prior): it cannot be set")
            if value.shape != edges.shape:
                raise DataError(f"{name} must be ({edges.numel()},), got {tuple(value.shape)}")
            value = value.detach().to(target)
            with torch.no_grad():
                if name == "sto_all":
                    self._refuse_wrong_sign(value)
                target.copy_(value)

    def _refuse_wrong_sign(self, value: Tensor) -> None:
        if self.sign_all is None:
            return
        wrong = (self.sign_all * value < 0).nonzero()
        if wrong.numel():
            edge = int(wrong[0])
            raise DataError(
                f"sto_all has {float(value[edge]):g} at edge {edge}, whose known sign is "
                f"{int(self.sign_all[edge]):+d}: signs are given, only magnitudes can be set"
            )

    def matrix(self) -> Tensor:
        """Dense stoichiometric matrix, ``(n_met, n_rxn)``."""
        return self.to_metabolite.dense(self.sto_all)

    @property
    def order(self) -> Tensor:
        """|s| of each input of the substrate function, ``(n_input,)``."""
        return self.sto_sub.abs() if self.order_input is None else self.order_input

    # -- the right-hand side --------------------------------------------------------------------

    def forward(self, concentration: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Time derivative of every concentration.

        Args:
            concentration: ``(n_batch, n_met)``, >= 0.
            inputs: External input per metabolite, ``(n_batch, n_met)``; needed when ``input_mode``
                is not ``none``, else unused.

        Returns:
            dc/dt, ``(n_batch, n_met)``, concentration per time unit.
        """
        reaction, homeostasis = self.parts(concentration, inputs)
        return reaction if homeostasis is None else reaction + homeostasis

    def parts(
        self, concentration: Tensor, inputs: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The two summands of :meth:`forward`: reactions (with additive input), homeostasis."""
        c, external = self._columns(concentration), self._input_columns(inputs)
        reaction = self.sum_messages(self.to_metabolite, self._flux(c, external), self.sto_all)
        if external is not None and self.input_mode == "additive":
            reaction = reaction + external
        return reaction.t(), self._homeostasis(c).t() if self.has_homeostasis else None

    def flux(self, concentration: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Reaction velocities, ``(n_batch, n_rxn)``."""
        return self._flux(self._columns(concentration), self._input_columns(inputs)).t()

    def homeostasis(self, concentration: Tensor) -> Tensor:
        """Homeostatic part of dc/dt, ``(n_batch, n_met)``; zeros when the model has none."""
        if not self.has_homeostasis:
            return torch.zeros_like(concentration)
        return self._homeostasis(self._columns(concentration)).t()

    def _columns(self, concentration: Tensor) -> Tensor:
        if concentration.ndim != 2 or concentration.shape[1] != self.n_met:
            raise DataError(
                f"concentration must be (n_batch, n_met) = (*, {self.n_met}), got "
                f"{tuple(concentration.shape)}"
            )
        if concentration.dtype != self.log_k.dtype:
            raise DataError(
                f"concentration is {concentration.dtype}, the model {self.log_k.dtype}: call "
                "model.to(dtype) or data.astype(dtype)"
            )
        return concentration.t().contiguous()

    def _input_columns(self, inputs: Tensor | None) -> Tensor | None:
        if self.input_mode == "none":
            return None
        if inputs is None:
            raise DataError(
                f"input_mode={self.input_mode} needs inputs (n_batch, n_met), the batch has none"
            )
        return inputs.t().contiguous()

    def _homeostasis(self, c: Tensor) -> Tensor:
        return self.MLP_node.grid(c, self.a)

    def _flux(self, c: Tensor, external: Tensor | None) -> Tensor:
        if self.kinetics == "learned_rate":
            v = self._learned_rate(c)
        else:
            v = self._mass_action(c)
        if self.input_mode.startswith("multiplicative"):
            v = v * self._mean_input(external)
        return self._limited(v, c) if self.flux_limit else v

    def _learned_rate(self, c: Tensor) -> Tensor:
        """``(n_met, n_batch) -> (n_rxn, n_batch)``."""
        n_batch = c.shape[1]
        is_grouped = self.fused and self.edges_of_rxn is not None
        met_input, order, count = self.met_input, self.order, self.n_sub_per_rxn
        if is_grouped:
            assert self.edges_of_rxn is not None
            order = order.index_select(0, self.edges_of_rxn.order)
            met_input, count = self.met_grouped, self.n_sub_grouped
        c_input, order = c.index_select(0, met_input), order.unsqueeze(1)
        if is_grouped and self.has_roles:
            assert self.edges_of_rxn is not None
            rate = rate_of_messages(
                self.edges_of_rxn, c_input, order, count, self.msg_mlp, self.rate_mlp
            )
            return self._times_k(self.edges_of_rxn.in_given_order(rate))
        message = self.msg_mlp.hidden_grid(c_input, order)
        if not self.has_roles:
            at_zero = self.msg_mlp.hidden_grid(c, c.new_zeros(self.n_met, 1))
            message = message - at_zero.index_select(0, met_input)
        # the sum over substrates commutes with the last layer of msg_mlp
        width = message.shape[2]
        if is_grouped:
            assert self.edges_of_rxn is not None
            total = self.edges_of_rxn(message)
        else:
            total = self.sum_messages(self.to_reaction, message.view(-1, n_batch * width), None)
        total = total.view(self.n_rxn, n_batch, width)
        rate = rate_of_sums(total, count, self.msg_mlp, self.rate_mlp)
        if is_grouped:
            assert self.edges_of_rxn is not None
            rate = self.edges_of_rxn.in_given_order(rate)
        return self._times_k(rate)

    def _times_k(self, rate: Tensor) -> Tensor:
        return softplus(rate) * torch.exp(LN10 * self.log_k).unsqueeze(1)

    def _mass_action(self, c: Tensor) -> Tensor:
        """``(n_met, n_batch) -> (n_rxn, n_batch)``."""
        is_product = self.aggregation == "multiply"
        message = self._substrate(c, is_product)
        if is_product and not self.is_softplus and self.fused:
            return cast(Tensor, _ProductRate.apply(self.to_reaction, message, self.log_k))
        total = self.sum_messages(self.to_reaction, message, None)
        log_k = (LN10 * self.log_k).unsqueeze(1)
        if is_product and not self.is_softplus:
            return torch.exp(total + log_k)
        if is_product:
            total = total.exp()
        if self.is_softplus:
            total = softplus(total)
        return total * log_k.exp()

    def _substrate(self, c: Tensor, is_log: bool) -> Tensor:
        """MLP_sub (its logarithm when ``is_log``) of each input, ``(n_input, n_batch)``."""
        c_input = c.index_select(0, self.met_input)
        n_level = self.order_levels.numel()
        n_node = self.tabulate if self.order_input is not None else None
        # on a GPU the evaluations are cheaper than the waiting that building a table takes
        is_cpu = c.device.type == "cpu"
        if n_node is not None and is_cpu and c_input.numel() > 2 * n_level * n_node:
            value = self._substrate_from_table(c_input, is_log, n_node)
        else:
            value = self._substrate_at(c_input, self.order, is_log)
        if not self.has_roles:
            at_zero = self._substrate_at(c, c.new_zeros(self.n_met), is_log)
            value = value - at_zero.index_select(0, self.met_input)
        return value

    def _substrate_from_table(self, c: Tensor, is_log: bool, n_node: int) -> Tensor:
        """The same from ``n_node`` values per |s|, spaced evenly in log c over what c covers."""
        x = c.clamp_min(SMALLEST_CONCENTRATION).log().view(-1)
        low, high = (end.item() for end in x.detach().aminmax())
        # one node of margin on both sides, so that four neighbours always exist
        step = max((high - low) / (n_node - 3), 1e-6)
        node = torch.linspace(low - step, low + (n_node - 2) * step, n_node, dtype=c.dtype)
        node = node.expand(self.order_levels.numel(), n_node)
        if isinstance(self.MLP_sub, PowerLawMLP):
            table = self.MLP_sub.log_value_at(node, self.order_levels)
            table = table if is_log else table.exp()
        else:
            table = self._substrate_at(node.exp(), self.order_levels, is_log)
        position = (x - low) * (1 / step)
        cell = position.detach().floor().clamp_(0, n_node - 4)
        start = cell.long()
        if self.order_levels.numel() > 1:
            start = (start.view_as(c) + (n_node * self.level_input).unsqueeze(1)).view(-1)
        return cubic_interpolate(table.view(-1), start, position - cell).view_as(c)

    def _substrate_at(self, c: Tensor, order: Tensor, is_log: bool) -> Tensor:
        if isinstance(self.MLP_sub, PowerLawMLP):
            value = self.MLP_sub.log_value(c, order)
            return value if is_log else value.exp()
        if isinstance(self.MLP_sub, MLP):
            value = self.MLP_sub.grid(c, order.unsqueeze(1))
        else:  # a function put in place of the network: [c, |s|] -> f
            pairs = torch.stack([c, order.unsqueeze(1).expand_as(c)], dim=2)
            value = self.MLP_sub(pairs).squeeze(2)
        return value.abs().clamp_min(SMALLEST_FACTOR).log() if is_log else value

    def _mean_input(self, external: Tensor | None) -> Tensor:
        assert external is not None
        graph = self.input_to_reaction
        total = self.sum_messages(graph, external, None)
        count = torch.bincount(graph.row, minlength=self.n_rxn).unsqueeze(1)
        return torch.where(count > 0, total / count.clamp_min(1), torch.ones_like(total))

    def _limited(self, v: Tensor, c: Tensor) -> Tensor:
        """Slow each reaction until no substrate is consumed beyond what is there within dt."""
        consumed = self.dt * self.sum_messages(self.consumption, v, self.sto_sub.abs())
        available = (c / consumed.clamp_min(1e-30)).clamp(max=1.0)
        index = self.rxn_sub.unsqueeze(1).expand(-1, v.shape[1])
        ones = torch.ones_like(v)
        return v * ones.scatter_reduce(0, index, available[self.met_sub], reduce="amin")


class _Reflected(torch.autograd.Function):
    """sign * |x| where the sign is known, x elsewhere; the slope at 0 is that from the right side.

    torch's own derivative of |x| at 0 is 0, which would hold an edge there.
    """

    @staticmethod
    def forward(ctx: Any, moved: Tensor, sign: Tensor) -> Tensor:
        is_wrong = sign * moved < 0
        ctx.save_for_backward(is_wrong)
        return torch.where(is_wrong, -moved, moved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (is_wrong,) = ctx.saved_tensors
        return torch.where(is_wrong, -grads[0], grads[0]), None


class _ProductRate(torch.autograd.Function):
    """k_j times a product over substrates, from the factors' logarithms ``(n_input, n_batch)``."""

    @staticmethod
    def forward(ctx: Any, graph: Incidence, message: Tensor, log_k: Tensor) -> Tensor:
        v = torch.add(graph.product(None, message), log_k.unsqueeze(1), alpha=LN10).exp_()
        ctx.graph = graph
        ctx.save_for_backward(v)
        return v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (v,) = ctx.saved_tensors
        g = grads[0] * v
        grad_log_k = g.sum(1).mul_(LN10) if ctx.needs_input_grad[2] else None
        return None, ctx.graph.product(None, g, transposed=True), grad_log_k


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}; got '{value}'")
