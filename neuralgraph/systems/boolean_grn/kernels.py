"""Compiled loops over the states of small circuits. Imported where needed: numba loads slowly.

A state is an integer whose bit ``g`` is gene ``g``; ``adjacency[source, target]`` is +1, −1 or 0.
All kernels live in this file because numba's cache on disk is renewed when this file changes.
"""

# numba compiles these functions; their types are those of its arrays:
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])

# columns of the facts that `classify` fills
N_INPUT, N_FIXED_POINT, N_CYCLE, LONGEST_PERIOD, N_LOOP_CYCLE = 0, 1, 2, 3, 4
IS_MONOSTABLE, IS_MULTISTABLE, HAS_MUTUAL_INHIBITION, HAS_NEGATIVE_LOOP = 5, 6, 7, 8
N_COMPLEX, HAS_SPURIOUS_CYCLE = 9, 10
N_FACT = 11

# phenotypes in the order of the decision
TOGGLE, OSCILLATOR, PULSE, AMPLIFIER, ADAPTATION, STABLE = 0, 1, 2, 3, 4, 5

# update rules
THRESHOLD, TIE_ON, TIE_HOLD, INHIBITOR_WINS_HOLD, INHIBITOR_WINS_OFF, LITERAL = 0, 1, 2, 3, 4, 5

# what counts as feedback in an amplifier
STRICT, SELF_ACTIVATION, NO_NEGATIVE_LOOP = 0, 1, 2

# lane 7 of each byte, gathered into one byte by a multiplication
_HIGH_BITS = np.int64(-9187201950435737472)  # 0x8080808080808080
_GATHER = np.int64(0x0002040810204081)
_ONES = np.int64(0x0101010101010101)


def compiled(function: F) -> F:
    """Compile; keep the machine code on disk where a folder for it can be written."""
    try:
        return numba.njit(cache=True, nogil=True)(function)  # type: ignore[return-value]  # numba has no types
    except RuntimeError:  # no folder can be written: compile anew in each process
        return numba.njit(nogil=True)(function)  # type: ignore[return-value]  # numba has no types


@compiled
def fill_successors(adjacency, rule, scratch, successor):
    """Successor of every state under synchronous update.

    The sum ``a − i`` of each gene sits in a byte of a word (eight genes a word), and the words of
    all states come from those of half as many by one addition each.

    Args:
        adjacency: ``(n, n)`` int8.
        rule: One of the rule constants.
        scratch: ``(4, 2ⁿ)`` int64 work space.
        successor: ``(2ⁿ,)`` int32, written.
    """
    n = adjacency.shape[0]
    n_state = 1 << n
    has_activator = np.int64(0)
    has_inhibitor = np.int64(0)
    for source in range(n):
        for target in range(n):
            if adjacency[source, target] > 0:
                has_activator |= np.int64(1) << target
            elif adjacency[source, target] < 0:
                has_inhibitor |= np.int64(1) << target
    every = np.int64(n_state - 1)
    hold = every & ~(has_activator | has_inhibitor)
    free = every & ~hold
    lo, hi = scratch[0], scratch[1]
    active, inhibited = scratch[2], scratch[3]
    lo[0] = 0
    hi[0] = 0
    for gene in range(n):
        # bit 7 of the lane is set where a − i >= 0 (start 128) or a − i >= 1 (start 127)
        start = np.int64(128)
        if rule == THRESHOLD and (has_activator >> gene) & 1:
            start = np.int64(127)
        if gene < 8:
            lo[0] += start << (8 * gene)
        else:
            hi[0] += start << (8 * (gene - 8))
    for source in range(n):
        add_lo = np.int64(0)
        add_hi = np.int64(0)
        for target in range(n):
            if target < 8:
                add_lo += np.int64(adjacency[source, target]) << (8 * target)
            else:
                add_hi += np.int64(adjacency[source, target]) << (8 * (target - 8))
        half = 1 << source
        for x in range(half):
            lo[half + x] = lo[x] + add_lo
        if n > 8:
            for x in range(half):
                hi[half + x] = hi[x] + add_hi
    if rule == THRESHOLD:
        if n <= 8:
            for x in range(n_state):
                bits = (((lo[x] & _HIGH_BITS) >> 7 & _ONES) * 128 * _GATHER >> 56) & 255
                successor[x] = (bits & free) | (x & hold)
        else:
            for x in range(n_state):
                bits = (((lo[x] & _HIGH_BITS) >> 7 & _ONES) * 128 * _GATHER >> 56) & 255
                high = (((hi[x] & _HIGH_BITS) >> 7 & _ONES) * 128 * _GATHER >> 56) & 255
                successor[x] = ((bits | high << 8) & free) | (x & hold)
        return
    active[0] = 0
    inhibited[0] = 0
    for source in range(n):
        add_active = np.int64(0)
        add_inhibited = np.int64(0)
        for target in range(n):
            if adjacency[source, target] > 0:
                add_active |= np.int64(1) << target
            elif adjacency[source, target] < 0:
                add_inhibited |= np.int64(1) << target
        half = 1 << source
        for x in range(half):
            active[half + x] = active[x] | add_active
            inhibited[half + x] = inhibited[x] | add_inhibited
    only_inhibitors = has_inhibitor & ~has_activator
    for x in range(n_state):
        at_least_0 = ((lo[x] & _HIGH_BITS) >> 7 & _ONES) * 128 * _GATHER >> 56 & 255
        at_least_1 = (((lo[x] - _ONES) & _HIGH_BITS) >> 7 & _ONES) * 128 * _GATHER >> 56 & 255
        if n > 8:
            high_0 = ((hi[x] & _HIGH_BITS) >> 7 & _ONES) * 128 * _GATHER >> 56 & 255
            high_1 = (((hi[x] - _ONES) & _HIGH_BITS) >> 7 & _ONES) * 128 * _GATHER >> 56 & 255
            at_least_0 |= high_0 << 8
            at_least_1 |= high_1 << 8
        if rule == TIE_ON:
            y = at_least_1 | (at_least_0 & active[x])
            y = (y & ~only_inhibitors) | (~inhibited[x] & only_inhibitors)
        elif rule == TIE_HOLD:
            y = at_least_1 | (at_least_0 & x)
        elif rule == INHIBITOR_WINS_HOLD:
            y = ~inhibited[x] & (active[x] | x)
        elif rule == INHIBITOR_WINS_OFF:
            y = ~inhibited[x] & active[x]
        else:
            y = at_least_1
        if rule in (LITERAL, INHIBITOR_WINS_OFF):
            successor[x] = y & every
        else:
            successor[x] = (y & free) | (x & hold)


@compiled
def signed_closure(adjacency, genes, even, odd):
    """Genes reached from each gene by a walk of positive (even) or negative (odd) sign.

    Warshall's closure on the double cover, restricted to the genes of a mask. ``odd[g]`` holding
    ``g`` means a closed walk of negative sign, which contains a negative cycle.
    """
    n = adjacency.shape[0]
    for i in range(n):
        even[i] = 0
        odd[i] = 0
        if (genes >> i) & 1:
            for j in range(n):
                if (genes >> j) & 1:
                    if adjacency[i, j] > 0:
                        even[i] |= 1 << j
                    elif adjacency[i, j] < 0:
                        odd[i] |= 1 << j
    for k in range(n):
        if not (genes >> k) & 1:
            continue
        if (odd[k] >> k) & 1:
            even[k] |= odd[k]
            odd[k] |= even[k]
        even_k, odd_k = even[k], odd[k]
        for i in range(n):
            if i == k:
                continue
            by_even = (even[i] >> k) & 1
            by_odd = (odd[i] >> k) & 1
            if by_even:
                even[i] |= even_k
                odd[i] |= odd_k
            if by_odd:
                even[i] |= odd_k
                odd[i] |= even_k


@compiled
def has_negative_loop(adjacency, genes, even, odd):
    """Whether the genes of a mask hold a cycle with an odd number of inhibitions."""
    signed_closure(adjacency, genes, even, odd)
    for g in range(adjacency.shape[0]):  # noqa: SIM110 (numba takes no generators here)
        if (odd[g] >> g) & 1:
            return True
    return False


@compiled
def mark_reaching(successor, n, queue, mark, n_queue):
    """Mark every state from which a queued state can be reached by asynchronous steps.

    Args:
        successor: ``(2ⁿ,)`` synchronous successors.
        n: Genes.
        queue: ``(2ⁿ,)`` int32; its first ``n_queue`` states are marked already.
        mark: ``(2ⁿ,)`` int32, 0 where not marked.
        n_queue: States in the queue.

    Returns:
        Number of states marked in the end.
    """
    head = 0
    while head < n_queue:
        x = queue[head]
        head += 1
        for g in range(n):
            y = x ^ (1 << g)
            if mark[y] == 0 and ((successor[y] ^ y) >> g) & 1:
                mark[y] = 1
                queue[n_queue] = y
                n_queue += 1
    return n_queue


@compiled
def follow_clamped(successor, state, clamp, stamp, seen, ever):
    """Follow a circuit with the genes of ``clamp`` held ON.

    Returns:
        ``(final, ever)``: the fixed point it settles at, −1 for a cycle; union of all states met.
    """
    x = state | clamp
    while seen[x] != stamp:
        seen[x] = stamp
        ever |= x
        x = np.int64(successor[x]) | clamp
    if (np.int64(successor[x]) | clamp) == x:
        return x, ever
    return np.int64(-1), ever


@compiled
def classify(adjacencies, rule, feedback, is_asynchronous, is_complete, labels, facts):
    """Phenotype of each circuit over all its states, and facts about it.

    Args:
        adjacencies: ``(n_circuit, n, n)`` int8.
        rule: Update rule.
        feedback: What counts as feedback in an amplifier.
        is_asynchronous: Oscillators by asynchronous attractors; the other tests stay synchronous.
        is_complete: Fill every fact, also those the label does not need.
        labels: ``(n_circuit,)`` int8, written.
        facts: ``(n_circuit, N_FACT)`` int32, written.
    """
    n_circuit, n = adjacencies.shape[0], adjacencies.shape[1]
    n_state = 1 << n
    every = np.int64(n_state - 1)
    scratch = np.empty((4, n_state), dtype=np.int64)
    successor = np.empty(n_state, dtype=np.int32)
    seen = np.zeros(n_state, dtype=np.int32)
    mark = np.zeros(n_state, dtype=np.int32)
    queue = np.empty(n_state, dtype=np.int32)
    fixed = np.empty(n_state, dtype=np.int32)
    per_slice = np.zeros(n_state, dtype=np.int32)
    even = np.zeros(n, dtype=np.int64)
    odd = np.zeros(n, dtype=np.int64)
    activates = np.zeros(n, dtype=np.int64)
    inhibits = np.zeros(n, dtype=np.int64)
    known_mask = np.zeros(16, dtype=np.int64)
    known_loop = np.zeros(16, dtype=np.bool_)
    for c in range(n_circuit):
        adjacency = adjacencies[c]
        fill_successors(adjacency, rule, scratch, successor)
        for g in range(n):
            activates[g] = 0
            inhibits[g] = 0
            for t in range(n):
                if adjacency[g, t] > 0:
                    activates[g] |= 1 << t
                elif adjacency[g, t] < 0:
                    inhibits[g] |= 1 << t

        # fixed points, and inputs: genes that never change
        moved = np.int64(0)
        n_fixed = 0
        for x in range(n_state):
            change = successor[x] ^ x
            moved |= change
            if change == 0:
                fixed[n_fixed] = x
                n_fixed += 1
        inputs = every & ~moved
        n_input = 0
        for g in range(n):
            n_input += (inputs >> g) & 1
        n_slice = 1 << n_input

        label = -1
        is_negative = has_negative_loop(adjacency, every, even, odd)
        has_loop_of_genes = False
        has_self_loop = False
        for i in range(n):
            reach = even[i] | odd[i]
            if adjacency[i, i] != 0:
                has_self_loop = True
            for j in range(n):
                if j != i and (reach >> j) & 1 and ((even[j] | odd[j]) >> i) & 1:
                    has_loop_of_genes = True

        # 1 toggle switch: a mutually inhibiting pair that separates two fixed points of a slice
        has_mutual = False
        is_toggle = False
        for i in range(n):
            for j in range(i + 1, n):
                if is_toggle and not is_complete:
                    break
                if not ((inhibits[i] >> j) & 1 and (inhibits[j] >> i) & 1):
                    continue
                has_mutual = True
                if is_toggle:
                    continue
                for k in range(n_fixed):
                    x = fixed[k]
                    if (x >> i) & 1 and not (x >> j) & 1:
                        per_slice[x & inputs] = 1
                for k in range(n_fixed):
                    x = fixed[k]
                    if (x >> j) & 1 and not (x >> i) & 1 and per_slice[x & inputs] == 1:
                        is_toggle = True
                for k in range(n_fixed):
                    per_slice[fixed[k] & inputs] = 0
        if is_toggle:
            label = TOGGLE

        # 2 oscillator: a cycle whose moving genes hold a negative loop
        n_cycle = 0
        n_loop_cycle = 0
        n_complex = 0
        longest = 1 if n_fixed > 0 else 0
        has_cyclic = False
        if label < 0 or is_complete:
            if is_negative or is_complete:
                seen[:] = 0
                n_known = 0
                stamp = 0
                for start in range(n_state):
                    if seen[start] != 0:
                        continue
                    stamp += 1
                    x = start
                    while seen[x] == 0:
                        seen[x] = stamp
                        x = successor[x]
                    if seen[x] != stamp or successor[x] == x:
                        continue
                    n_cycle += 1
                    period = 0
                    moving = np.int64(0)
                    y = x
                    while True:
                        moving |= successor[y] ^ y
                        period += 1
                        y = successor[y]
                        if y == x:
                            break
                    longest = max(longest, period)
                    loop = False
                    if is_negative:
                        found = -1
                        for k in range(n_known):
                            if known_mask[k] == moving:
                                found = k
                        if found >= 0:
                            loop = known_loop[found]
                        else:
                            loop = has_negative_loop(adjacency, moving, even, odd)
                            if n_known < 16:
                                known_mask[n_known] = moving
                                known_loop[n_known] = loop
                                n_known += 1
                    if loop:
                        n_loop_cycle += 1
                        if not is_complete and not is_asynchronous:
                            break
            if is_asynchronous or is_complete:
                mark[:] = 0
                for k in range(n_fixed):
                    queue[k] = fixed[k]
                    mark[fixed[k]] = 1
                has_cyclic = mark_reaching(successor, n, queue, mark, n_fixed) < n_state
                n_complex = 1 if has_cyclic else 0
            if label < 0:
                if is_asynchronous:
                    if has_cyclic:
                        label = OSCILLATOR
                elif n_loop_cycle > 0:
                    label = OSCILLATOR

        # 3 pulse generator and 4 amplifier: responses to switching a gene on at a fixed point
        if label < 0:
            can_amplify = not is_negative and not has_loop_of_genes
            if feedback == STRICT:
                can_amplify = can_amplify and not has_self_loop
            elif feedback == NO_NEGATIVE_LOOP:
                can_amplify = not is_negative
            is_pulse = False
            is_amplifier = False
            seen[:] = 0
            stamp = 0
            for a in range(n):
                targets = np.int64(0)  # C of A -> B, A -> C, B -| C
                cascade = np.int64(0)  # B of A -> B -> C
                for b in range(n):
                    if b != a and (activates[a] >> b) & 1:
                        others = every & ~(1 << a) & ~(1 << b)
                        targets |= inhibits[b] & activates[a] & others
                        if activates[b] & others:
                            cascade |= 1 << b
                if not can_amplify:
                    cascade = np.int64(0)
                if targets == 0 and cascade == 0:
                    continue
                for k in range(n_fixed):
                    x = np.int64(fixed[k])
                    if (x >> a) & 1:
                        continue
                    if targets & ~x == 0 and cascade & ~x == 0:
                        continue
                    stamp += 1
                    final, ever = follow_clamped(
                        successor, x, np.int64(1) << a, stamp, seen, np.int64(0)
                    )
                    if final < 0:
                        continue
                    if targets & ~x & ever & ~final:
                        is_pulse = True
                        break
                    on = final & ~x
                    for b in range(n):
                        is_raised = (cascade >> b) & 1 and (on >> b) & 1
                        if is_raised and activates[b] & on & ~(1 << a) & ~(1 << b):
                            is_amplifier = True
                if is_pulse:
                    break
            if is_pulse:
                label = PULSE
            elif is_amplifier:
                label = AMPLIFIER

        # 5 adaptation: one fixed point and nothing else in each slice, and a negative loop
        is_single = n_fixed == n_slice and n_cycle == 0
        if label < 0:
            label = ADAPTATION if is_single and is_negative else STABLE
        labels[c] = label

        if is_complete:
            is_multistable = False
            for k in range(n_fixed):
                per_slice[fixed[k] & inputs] += 1
            is_monostable = n_fixed == n_slice and not (
                has_cyclic if is_asynchronous else n_cycle > 0
            )
            for k in range(n_fixed):
                if per_slice[fixed[k] & inputs] > 1:
                    is_multistable = True
                    is_monostable = False
            for k in range(n_fixed):
                per_slice[fixed[k] & inputs] = 0
            facts[c, N_INPUT] = n_input
            facts[c, N_FIXED_POINT] = n_fixed
            facts[c, N_CYCLE] = n_cycle
            facts[c, LONGEST_PERIOD] = longest
            facts[c, N_LOOP_CYCLE] = n_loop_cycle
            facts[c, IS_MONOSTABLE] = is_monostable
            facts[c, IS_MULTISTABLE] = is_multistable
            facts[c, HAS_MUTUAL_INHIBITION] = has_mutual
            facts[c, HAS_NEGATIVE_LOOP] = is_negative
            facts[c, N_COMPLEX] = n_complex
            facts[c, HAS_SPURIOUS_CYCLE] = n_cycle > n_loop_cycle


@compiled
def refine(adjacency, colour, weight, order):
    """Refine a colouring of genes until it is stable; colours become 0, 1, … in invariant order.

    The signature of a gene is its colour and a sum over all genes of a hash of their colour and of
    the signs of both edges between them, so that relabelling the genes permutes the colours.

    Returns:
        Number of colours.
    """
    n = adjacency.shape[0]
    n_before = 0
    while True:
        for v in range(n):
            total = np.int64(0)
            for u in range(n):
                key = colour[u] * 9 + (adjacency[u, v] + 1) * 3 + (adjacency[v, u] + 1) + 1
                mixed = np.int64(key) * np.int64(-7046029254386353131)
                mixed ^= (mixed >> 29) & np.int64(0x7FFFFFFFF)
                mixed *= np.int64(-4658895280553007687)
                mixed ^= (mixed >> 32) & np.int64(0xFFFFFFFF)
                total += mixed
            weight[v] = total
        for v in range(n):  # insertion sort by (colour, signature)
            k = v
            while k > 0:
                u = order[k - 1]
                if colour[u] > colour[v] or (colour[u] == colour[v] and weight[u] > weight[v]):
                    order[k] = u
                    k -= 1
                else:
                    break
            order[k] = v
        n_colour = 0
        previous = colour[order[0]]
        for k in range(n):
            v = order[k]
            own = colour[v]
            if k > 0:
                u = order[k - 1]
                if own != previous or weight[v] != weight[u]:
                    n_colour += 1
            previous = own
            colour[v] = n_colour
        n_colour += 1
        if n_colour in (n_before, n):
            return n_colour
        n_before = n_colour


@compiled
def are_twins(adjacency, u, v):
    """Whether swapping two genes leaves the circuit as it is."""
    if adjacency[u, u] != adjacency[v, v] or adjacency[u, v] != adjacency[v, u]:
        return False
    for w in range(adjacency.shape[0]):
        if w in (u, v):
            continue
        if adjacency[u, w] != adjacency[v, w] or adjacency[w, u] != adjacency[w, v]:
            return False
    return True


@compiled
def canonicalise(adjacencies, canonical, orders, n_leaf_max):
    """Canonical relabelling of each circuit: individualise a gene, refine, compare all leaves.

    Exact: two circuits get equal matrices if and only if one is the other with genes relabelled.

    Args:
        adjacencies: ``(n_circuit, n, n)`` int8.
        canonical: Same shape, written.
        orders: ``(n_circuit, n)`` int32, written: gene of the circuit at each canonical place.
        n_leaf_max: Leaves searched at most for one circuit.

    Returns:
        −1, or the index of the first circuit whose search was too long.
    """
    n_circuit, n = adjacencies.shape[0], adjacencies.shape[1]
    colours = np.zeros((n + 1, n), dtype=np.int64)
    tried = np.zeros((n + 1, n), dtype=np.bool_)
    target = np.zeros(n + 1, dtype=np.int64)
    weight = np.zeros(n, dtype=np.int64)
    order = np.zeros(n, dtype=np.int64)
    candidate = np.zeros((n, n), dtype=np.int8)
    for c in range(n_circuit):
        adjacency = adjacencies[c]
        best = canonical[c]
        n_leaf = 0
        for v in range(n):
            colours[0, v] = adjacency[v, v] + 1
        depth = 0
        is_new = True
        while depth >= 0:
            colour = colours[depth]
            if is_new:
                n_colour = refine(adjacency, colour, weight, order)
                if n_colour == n:  # a leaf: a complete order of the genes
                    n_leaf += 1
                    if n_leaf > n_leaf_max:
                        return c
                    for v in range(n):
                        order[colour[v]] = v
                    sign = 0
                    for i in range(n):
                        for j in range(n):
                            candidate[i, j] = adjacency[order[i], order[j]]
                            if n_leaf > 1 and sign == 0:
                                if candidate[i, j] < best[i, j]:
                                    sign = -1
                                elif candidate[i, j] > best[i, j]:
                                    sign = 1
                    if n_leaf == 1 or sign < 0:
                        best[:] = candidate
                        for i in range(n):
                            orders[c, i] = order[i]
                    depth -= 1
                    is_new = False
                    continue
                # the first colour shared by several genes
                chosen = -1
                for value in range(n_colour):
                    count = 0
                    for v in range(n):
                        if colour[v] == value:
                            count += 1
                    if count > 1:
                        chosen = value
                        break
                target[depth] = chosen
                for v in range(n):
                    tried[depth, v] = False
            pick = -1
            for v in range(n):
                if colour[v] != target[depth] or tried[depth, v]:
                    continue
                is_twin = False
                for u in range(n):
                    is_earlier = colour[u] == target[depth] and tried[depth, u]
                    if is_earlier and are_twins(adjacency, u, v):
                        is_twin = True
                        break
                tried[depth, v] = True
                if not is_twin:
                    pick = v
                    break
            if pick < 0:
                depth -= 1
                is_new = False
                continue
            for v in range(n):
                colours[depth + 1, v] = 2 * colour[v] + 1
            colours[depth + 1, pick] = 2 * colour[pick]
            depth += 1
            is_new = True
    return -1


@compiled
def synchronous_attractors(successor, attractor_of):
    """Which attractor each state ends in, under synchronous update.

    Args:
        successor: ``(2ⁿ,)`` int32.
        attractor_of: ``(2ⁿ,)`` int32, written: number of the attractor, in the order of the
            smallest state that leads to it.

    Returns:
        Number of attractors, and one state of each, ``(2ⁿ,)`` int32 of which so many are used.
    """
    n_state = successor.shape[0]
    attractor_of[:] = -1
    walk = np.empty(n_state, dtype=np.int32)
    first = np.empty(n_state, dtype=np.int32)
    n_attractor = 0
    for start in range(n_state):
        if attractor_of[start] >= 0:
            continue
        x = start
        length = 0
        while attractor_of[x] == -1:
            attractor_of[x] = -2  # on this walk
            walk[length] = x
            length += 1
            x = successor[x]
        number = attractor_of[x]
        if number == -2:
            number = n_attractor
            first[number] = x
            n_attractor += 1
        for k in range(length):
            attractor_of[walk[k]] = number
    return n_attractor, first


@compiled
def forward_closure(successor, n, start, stamp, mark, queue):
    """States that asynchronous steps reach from one state; they are marked with ``stamp``."""
    queue[0] = start
    mark[start] = stamp
    n_queue = 1
    head = 0
    while head < n_queue:
        x = queue[head]
        head += 1
        change = successor[x] ^ x
        for g in range(n):
            if (change >> g) & 1:
                y = x ^ (1 << g)
                if mark[y] != stamp:
                    mark[y] = stamp
                    queue[n_queue] = y
                    n_queue += 1
    return n_queue


@compiled
def backward_closure(successor, n, start, stamp, mark, queue):
    """States from which asynchronous steps reach one state; they are marked with ``stamp``."""
    queue[0] = start
    mark[start] = stamp
    n_queue = 1
    head = 0
    while head < n_queue:
        x = queue[head]
        head += 1
        for g in range(n):
            y = x ^ (1 << g)
            if mark[y] != stamp and ((successor[y] ^ y) >> g) & 1:
                mark[y] = stamp
                queue[n_queue] = y
                n_queue += 1
    return n_queue


@compiled
def asynchronous_attractors(successor, n, attractor_of, n_reached):
    """Terminal strongly connected components of the asynchronous state graph.

    A state is followed forwards; if every state met leads back to it, they are an attractor, else
    one that does not is followed instead.

    Args:
        successor: ``(2ⁿ,)`` int32, synchronous successors.
        n: Genes.
        attractor_of: ``(2ⁿ,)`` int32, written: attractor of which the state is part, else −1.
        n_reached: ``(2ⁿ,)`` int32, written: attractors that can be reached.

    Returns:
        Number of attractors; one state of each; number of states that can reach each.
    """
    n_state = successor.shape[0]
    attractor_of[:] = -1
    n_reached[:] = 0
    forward = np.zeros(n_state, dtype=np.int32)
    backward = np.zeros(n_state, dtype=np.int32)
    queue = np.empty(n_state, dtype=np.int32)
    first = np.empty(n_state, dtype=np.int32)
    reach = np.empty(n_state, dtype=np.int64)
    stamp = 0
    n_attractor = 0
    for start in range(n_state):
        if n_reached[start] > 0:
            continue
        x = start
        while True:
            stamp += 1
            backward_closure(successor, n, x, stamp, backward, queue)
            n_forward = forward_closure(successor, n, x, stamp, forward, queue)
            escape = -1
            for k in range(n_forward - 1, -1, -1):
                if backward[queue[k]] != stamp:
                    escape = queue[k]
                    break
            if escape < 0:
                break
            x = escape
        for k in range(n_forward):
            attractor_of[queue[k]] = n_attractor
        first[n_attractor] = x
        total = 0
        for y in range(n_state):
            if backward[y] == stamp:
                n_reached[y] += 1
                total += 1
        reach[n_attractor] = total
        n_attractor += 1
    return n_attractor, first, reach
