r"""Soft Boolean dynamics: the oracle's rule with a temperature, and what many runs show.

$x_g' = \sigma(\tau\,(a_g - i_g + b_g))$ with $b_g = -\tfrac12$ for a gene with an activator and
$+\tfrac12$ for a gene with inhibitors only; a gene without regulators holds its state. Since
$a - i + b$ is never 0 on Boolean states, this is the oracle's rule as $\tau \to \infty$.

The statistics at the end are pooled over starts, so that they follow a relabelling of the genes.
They tell what settles, what moves, and what answers to a gene that is switched on. No label
is computed here, but several statistics are the dynamic half of a phenotype's test (a pulse after
a switch, two states against each other, both raised together): a classifier that sees them mostly
has to read, which is why the network without them is always reported beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from neuralgraph.core.errors import ConfigError

N_START_MAX = 32
N_STEP_MAX = 40

NODE_STATISTICS = (
    "moves_most", "moves_mean", "mean_on", "rests_on", "rests_off", "rests_on_mean",
    "bistable_in_slice",
)  # fmt: skip
GRAPH_STATISTICS = ("settles_mean", "settles_least", "settles_most", "log_n_resting")
PAIR_STATISTICS = ("move_together", "on_off", "on_on", "off_off")
RELATION_STATISTICS = ("switch_against", "switch_with")
RESPONSE_STATISTICS = (
    "pulse", "raised", "lowered", "raised_together", "changed_by_loss", "unsettled", "remembers",
    "moves_afterwards",
)  # fmt: skip


@dataclass(frozen=True)
class DynamicsSettings:
    """How the soft dynamics are run inside a model.

    Args:
        n_start: Starts of a circuit, at most 32 whatever its size.
        n_step: Steps of each run, at most 40 whatever the size.
        n_window: Last steps in which motion is looked for.
        relations: Compare resting states of the same slice with each other.
        interventions: Switch each gene on from each settled state and follow the answer.
    """

    n_start: int
    n_step: int
    n_window: int
    relations: bool
    interventions: bool

    def __post_init__(self) -> None:
        if not 2 <= self.n_start <= N_START_MAX:
            raise ConfigError(f"n_start must lie in 2 … {N_START_MAX}, got {self.n_start}")
        if not 1 <= self.n_window < self.n_step <= N_STEP_MAX:
            raise ConfigError(
                f"n_window and n_step need 1 <= n_window < n_step <= {N_STEP_MAX}, got "
                f"{self.n_window} and {self.n_step}"
            )


def bias_and_hold(adjacency: Tensor) -> tuple[Tensor, Tensor]:
    """Bias $b$ of each gene and whether it holds its state, each ``(n_batch, n)``."""
    has_activator = (adjacency > 0).any(-2)
    has_regulator = (adjacency != 0).any(-2)
    bias = torch.where(has_activator, -0.5, 0.5).to(adjacency.dtype)
    return bias, ~has_regulator


def soft_step(state: Tensor, adjacency: Tensor, tau: float) -> Tensor:
    r"""One step $\sigma(\tau (x W + b))$; genes without regulators hold.

    Args:
        state: ``(n_batch, n_start, n)`` in [0, 1].
        adjacency: Signed weights ``[source, target]``, ``(n_batch, n, n)``; gradients pass.
        tau: Inverse temperature; ``inf`` is the hard rule.
    """
    bias, hold = bias_and_hold(adjacency)
    field = state @ adjacency + bias[:, None]
    new = (field > 0).to(state.dtype) if tau == float("inf") else torch.sigmoid(tau * field)
    return torch.where(hold[:, None], state, new)


def input_genes(adjacency: Tensor) -> Tensor:
    """Genes that never change, ``(n_batch, n)``: no regulator, or none but their own activation."""
    own = adjacency.diagonal(dim1=-2, dim2=-1)
    others = adjacency.abs().sum(-2) - own.abs()
    return (others == 0) & (own >= 0)


def starting_states(adjacency: Tensor, n_start: int) -> Tensor:
    """Boolean starts that follow every relabelling of the genes, as a set.

    All ``2ⁿ`` states where ``n_start`` allows it. Else all OFF, all ON, and states told apart from
    the circuit itself: gene ``i`` is marked, colours are refined by signed surroundings for three
    rounds, and a hash of its colour sets each gene. Symmetric genes are told apart by the mark
    alone, and each of them is marked once, so that the set keeps the circuit's symmetry.

    Args:
        adjacency: ``(n_batch, n, n)``.
        n_start: Largest number of starts.

    Returns:
        ``(n_batch, n_used, n)`` of zeros and ones.

    Raises:
        ConfigError: fewer starts than genes and two.
    """
    n_batch, n = adjacency.shape[:2]
    device, dtype = adjacency.device, adjacency.dtype
    if 2**n <= n_start:
        code = torch.arange(2**n, device=device)
        bits = (code[:, None] >> torch.arange(n, device=device)) & 1
        return bits.to(dtype).expand(n_batch, -1, -1)
    n_round = (n_start - 2) // n
    if n_round < 1:
        raise ConfigError(f"{n} genes need n_start of at least {n + 2}, got {n_start}")
    sign = adjacency.long() + 1  # 0, 1, 2
    mark = torch.eye(n, dtype=torch.long, device=device)  # (marked, gene)
    own = sign.diagonal(dim1=-2, dim2=-1)
    colour = _mixed(own[:, None] + 7 * mark + 11)  # (batch, marked, gene)
    for _ in range(3):
        # from gene j to gene g: the sign of both edges between them
        both = 3 * sign + sign.transpose(1, 2)
        told = _mixed(colour[:, :, :, None] * 9 + both[:, None]).sum(2)
        colour = _mixed(3 * colour + told)
    states = [torch.zeros(n_batch, 1, n, dtype=dtype, device=device)]
    states.append(torch.ones_like(states[0]))
    for k in range(n_round):
        bits = (_mixed(colour + 1000003 * (k + 1)) >> 17) & 1
        states.append(bits.to(dtype))
    return torch.cat(states, 1)


def _mixed(key: Tensor) -> Tensor:
    """A hash of integers (wrapping products), the same on every machine."""
    key = key * -7046029254386353131
    key = key ^ ((key >> 29) & 0x7FFFFFFFF)
    key = key * -4658895280553007687
    return key ^ ((key >> 32) & 0xFFFFFFFF)


@dataclass(frozen=True)
class SoftRun:
    """What a run shows in the end.

    Args:
        final: Last state, ``(n_batch, n_run, n)``.
        high: Highest value in the window, same shape.
        low: Lowest value in the window, same shape.
        peak: Highest value over the whole run, same shape.
        settled: 1 where nothing changed in the last step, ``(n_batch, n_run)``.
    """

    final: Tensor
    high: Tensor
    low: Tensor
    peak: Tensor
    settled: Tensor


def soft_run(
    start: Tensor,
    adjacency: Tensor,
    *,
    tau: float,
    n_step: int,
    n_window: int,
    held: Tensor | None = None,
) -> SoftRun:
    """Follow soft dynamics; differentiable in ``start`` and ``adjacency``.

    Args:
        start: ``(n_batch, n_run, n)``.
        adjacency: ``(n_batch, n, n)``.
        tau: Inverse temperature.
        n_step: Steps.
        n_window: Last steps that count for ``high`` and ``low``.
        held: Where a gene is held at its start, bool, as ``start``; ``None`` for nowhere.
    """
    bias, hold = bias_and_hold(adjacency)
    bias = bias[:, None]
    is_hard = tau == float("inf")
    hold = hold[:, None]
    held = hold.expand(-1, start.shape[1], -1) if held is None else held | hold
    state, peak, high, low, previous = start, start, start, start, start
    for k in range(n_step):
        field = torch.baddbmm(bias, state, adjacency)
        new = (field > 0).to(field.dtype) if is_hard else torch.sigmoid(tau * field)
        previous, state = state, torch.where(held, start, new)
        peak = torch.maximum(peak, state)
        if k == n_step - n_window:
            high, low = state, state
        elif k > n_step - n_window:
            high, low = torch.maximum(high, state), torch.minimum(low, state)
    settled = 1 - (state - previous).abs().amax(-1)
    return SoftRun(state, high, low, peak, settled)


def statistics(
    adjacency: Tensor, settings: DynamicsSettings, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What runs from every start show, pooled over the starts.

    Resting states are rounded and each is counted once, so that the result follows a relabelling
    of the genes exactly.

    Args:
        adjacency: Circuits of one size, ``(n_batch, n, n)`` float.
        settings: Starts, steps and parts.
        tau: Inverse temperature.

    Returns:
        Statistics of genes ``(n_batch, n, …)``, pairs ``(n_batch, n, n, …)`` and circuits
        ``(n_batch, …)``; :func:`n_statistics` names how many.
    """
    n_batch, n = adjacency.shape[:2]
    start = starting_states(adjacency, settings.n_start)
    run = soft_run(start, adjacency, tau=tau, n_step=settings.n_step, n_window=settings.n_window)
    moves = run.high - run.low
    # 1 where a run has come to rest at a Boolean state
    rests = run.settled * (2 * run.final - 1).abs().amin(-1)
    own_node = [moves.amax(1), moves.mean(1), run.final.mean(1)]
    together = (moves[..., :, None] * moves[..., None, :]).amax(1)
    n_node, n_pair, _ = n_statistics(settings)
    node = adjacency.new_zeros(n_batch, n, n_node - len(own_node))
    pair = adjacency.new_zeros(n_batch, n, n, n_pair - 1)
    n_resting = adjacency.new_zeros(n_batch)
    state, weight, count = _distinct(run.final, rests)
    for chosen, n_state in _by_count(count):
        found = _resting_statistics(
            adjacency[chosen], state[chosen, :n_state], weight[chosen, :n_state], settings, tau
        )
        node = node.index_copy(0, chosen, found[0])
        pair = pair.index_copy(0, chosen, found[1])
        n_resting = n_resting.index_copy(0, chosen, found[2])
    share = rests * (rests > 0.5)
    graph = torch.stack([share.mean(1), share.amin(1), share.amax(1), torch.log1p(n_resting)], -1)
    node = torch.cat([torch.stack(own_node, -1), node], -1)
    return node, torch.cat([together[..., None], pair], -1), graph


def _distinct(state: Tensor, rests: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rounded resting states, each once, first in their circuit's row.

    Args:
        state: ``(n_batch, n_run, n)``.
        rests: How far each run has come to rest, ``(n_batch, n_run)``.

    Returns:
        States ``(n_batch, n_run, n)``, their weights (0 for padding) and their number.
    """
    n_run, n = state.shape[1:]
    code = (state > 0.5).long() @ (2 ** torch.arange(n, device=state.device))
    is_equal = code[:, :, None] == code[:, None, :]
    is_resting = rests > 0.5
    earlier = torch.ones(n_run, n_run, dtype=torch.bool, device=state.device).tril(-1)
    is_first = is_resting & ~(is_equal & is_resting[:, None] & earlier).any(-1)
    most = (is_equal * rests[:, None]).amax(-1) * is_first
    order = torch.argsort(is_first.to(torch.int8), dim=1, descending=True, stable=True)
    first = state.round().gather(1, order[..., None].expand(-1, -1, n))
    return first, most.gather(1, order), is_first.sum(1)


def _by_count(count: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Circuits with at least one resting state, those with similar numbers together."""
    most, least = 1, 1
    while least <= int(count.max()):
        chosen = ((count >= least) & (count <= most)).nonzero()[:, 0]
        if chosen.numel():
            yield chosen, int(count[chosen].max())
        least, most = most + 1, 2 * most


def n_statistics(settings: DynamicsSettings) -> tuple[int, int, int]:
    """Number of statistics of genes, pairs and circuits."""
    n_pair = len(PAIR_STATISTICS)
    n_pair += len(RELATION_STATISTICS) * settings.relations
    n_pair += len(RESPONSE_STATISTICS) * settings.interventions
    return len(NODE_STATISTICS), n_pair, len(GRAPH_STATISTICS)


def _resting_statistics(
    adjacency: Tensor, state: Tensor, rest: Tensor, settings: DynamicsSettings, tau: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics of resting states, and of the answers when each gene is switched in each.

    Args:
        adjacency: ``(n_batch, n, n)``.
        state: Distinct resting states, ``(n_batch, n_state, n)`` of zeros and ones.
        rest: 0 for padding, else how far the run had come to rest, ``(n_batch, n_state)``.
        settings: Parts.
        tau: Inverse temperature.

    Returns:
        Of genes, of pairs, and the number of distinct resting states.
    """
    n_batch, _, n = state.shape
    answers: list[Tensor] = []
    if settings.interventions:
        answers, released, settled = _responses(adjacency, state, rest, settings, tau)
        state = torch.cat([state, released], 1)
        rest = torch.cat([rest, settled], 1)
        state, rest, count = _distinct(state, rest)
    else:
        count = (rest > 0).sum(1)
    n_pair = len(PAIR_STATISTICS) - 1 + len(RELATION_STATISTICS) * settings.relations
    node = state.new_zeros(n_batch, n, len(NODE_STATISTICS) - 3)
    pair = state.new_zeros(n_batch, n, n, n_pair)
    for chosen, n_state in _by_count(count):
        found = _compared(
            adjacency[chosen], state[chosen, :n_state], rest[chosen, :n_state], settings.relations
        )
        node = node.index_copy(0, chosen, found[0])
        pair = pair.index_copy(0, chosen, found[1])
    if answers:
        pair = torch.cat([pair, torch.stack(answers, -1)], -1)
    return node, pair, count.to(state.dtype)


def _compared(
    adjacency: Tensor, state: Tensor, rest: Tensor, relations: bool
) -> tuple[Tensor, Tensor]:
    """Resting states one by one, and (``relations``) two of a slice at a time."""
    on, off, weight = state, 1 - state, rest[..., None]
    resting_on, resting_off = weight * on, weight * off
    level = state * input_genes(adjacency)[:, None].to(state.dtype)
    same = (torch.cdist(level, level, p=1) < 0.5).to(state.dtype)
    bistable = (resting_on * (same[..., None] * resting_off[:, None]).amax(2)).amax(1)
    node = torch.stack([resting_on.amax(1), resting_off.amax(1), resting_on.mean(1), bistable], -1)
    on_off = resting_on[..., :, None] * off[..., None, :]
    on_on = resting_on[..., :, None] * on[..., None, :]
    off_off = resting_off[..., :, None] * off[..., None, :]
    pairs = [on_off.amax(1), on_on.amax(1), off_off.amax(1)]
    if relations:
        # two genes in two resting states of one slice: switched against each other, or together
        shared = same[..., None, None]
        against = (shared * on_off.transpose(-1, -2)[:, None]).amax(2)
        with_it = (shared * off_off[:, None]).amax(2)
        pairs += [(on_off * against).amax(1), (on_on * with_it).amax(1)]
    return node, torch.stack(pairs, -1)


def _responses(
    adjacency: Tensor, state: Tensor, rest: Tensor, settings: DynamicsSettings, tau: float
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Switch each gene in each resting state, hold it for half a run, release it for the other.

    Statistics are of gene ``c`` (column) when gene ``a`` (row) is switched; ``raised_together`` is
    of two genes raised by the same gene from the same state.

    Returns:
        Statistics of pairs, states after the release ``(n_batch, n_state · n, n)``, and how far
        each has come to rest.
    """
    n_batch, n_state, n = state.shape
    half = settings.n_step // 2
    is_own = torch.eye(n, device=adjacency.device, dtype=torch.bool)
    held = is_own.expand(n_batch, n_state, n, n).reshape(n_batch, n_state * n, n)
    before = state[:, :, None].expand(-1, -1, n, -1).reshape(n_batch, n_state * n, n)
    start = torch.where(held, 1 - before, before)
    answer = soft_run(start, adjacency, tau=tau, n_step=half, n_window=1, held=held)
    after = soft_run(
        answer.final, adjacency, tau=tau, n_step=half, n_window=min(half, settings.n_window)
    )
    shape = (n_batch, n_state, n, n)
    final, peak = answer.final.view(shape), answer.peak.view(shape)
    settled = answer.settled.view(shape[:3])
    on, off = state[:, :, None, :], 1 - state[:, :, None, :]  # gene c before
    raises = rest[..., None] * (1 - state)  # the circuit rests and a was off
    lowers = rest[..., None] * state
    up = (raises * settled)[..., None]
    raised = up * off * final
    together = raised[..., :, None] * (off * final)[..., None, :]
    released = after.final.view(shape)
    is_still = (after.settled * (2 * after.final - 1).abs().amin(-1)).view(shape[:3])
    still = (rest[..., None] * is_still)[..., None]
    moving = (rest[..., None, None] * (after.high - after.low).view(shape)).amax(1)
    unsettled = (raises * (1 - settled)).amax(1)[..., None].expand(-1, -1, n)
    answers = [
        (up * off * (peak - final)).amax(1),
        raised.amax(1),
        (up * on * (1 - final)).amax(1),
        together.amax((1, 2)),
        ((lowers * settled)[..., None] * (final - on).abs()).amax(1),
        unsettled,
        (still * (released - on).abs()).amax(1),
        moving,
    ]
    rests_again = (rest[..., None] * is_still).view(n_batch, n_state * n)
    return answers, after.final, rests_again


__all__ = [
    "DynamicsSettings",
    "SoftRun",
    "input_genes",
    "n_statistics",
    "soft_run",
    "soft_step",
    "starting_states",
    "statistics",
]
