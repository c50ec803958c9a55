"""Closed-form predictors and the shrinkage of responses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neuralgraph.systems.hyperbolic_response import baselines
from neuralgraph.systems.hyperbolic_response.baselines import (
    PREDICTORS,
    Known,
    additive,
    additive_shrunk,
    bilinear,
    matching_mean,
    perturbed_mean,
    population_control,
    ridge,
    ridge_choice,
    ridge_published,
    shrunk,
)

N_PERT, N_GENE = 6, 40


def known(seed: int = 0, noise: float = 0.0) -> tuple[Known, torch.Tensor]:
    """Singles of the first five genes and one pair; the true responses beside."""
    generator = torch.Generator().manual_seed(seed)
    effect = torch.randn(N_PERT, N_GENE, generator=generator, dtype=torch.float64)
    hot = torch.zeros(6, N_PERT, dtype=torch.float64)
    for i in range(5):
        hot[i, i] = 1
    hot[5, :2] = 1
    true = hot @ effect
    measured = true + noise * torch.randn(6, N_GENE, generator=generator, dtype=torch.float64)
    return (
        Known(
            delta=measured,
            variance=torch.full((6, N_GENE), noise**2, dtype=torch.float64),
            hot=hot,
            context=torch.zeros(6, dtype=torch.long),
            control=torch.zeros(1, N_GENE, dtype=torch.float64),
            control_variance=torch.zeros(1, N_GENE, dtype=torch.float64),
            gene_of=torch.arange(N_PERT),
        ),
        true,
    )


def ask(*genes: int) -> tuple[torch.Tensor, torch.Tensor]:
    hot = torch.zeros(1, N_PERT, dtype=torch.float64)
    hot[0, list(genes)] = 1
    return hot, torch.zeros(1, dtype=torch.long)


def test_additive_adds_single_responses_and_matching_mean_halves_them():
    screen, _ = known()
    both = screen.delta[2] + screen.delta[3]
    assert torch.allclose(additive(screen, *ask(2, 3))[0], both)
    assert torch.allclose(matching_mean(screen, *ask(2, 3))[0], both / 2)


def test_the_perturbed_mean_is_of_single_perturbations_and_stands_in_for_missing_ones():
    screen, _ = known()
    mean = screen.delta[:5].mean(0)
    assert torch.allclose(perturbed_mean(screen, *ask(5))[0], mean)
    assert torch.allclose(additive(screen, *ask(5))[0], mean)
    assert torch.allclose(additive(screen, *ask(0, 5))[0], screen.delta[0] + mean)


def test_ridge_recovers_a_bilinear_world_better_than_the_mean():
    generator = torch.Generator().manual_seed(1)
    genes = torch.linalg.qr(torch.randn(60, 3, generator=generator, dtype=torch.float64))[0]
    weight = torch.diag(torch.tensor([40.0, 25.0, 15.0], dtype=torch.float64))
    table = genes @ weight @ genes.T  # column p: response to perturbing gene p
    n = 30
    screen = Known(
        delta=table[:, :n].T.contiguous(),
        variance=torch.zeros(n, 60, dtype=torch.float64),
        hot=torch.eye(60, dtype=torch.float64)[:n],
        context=torch.zeros(n, dtype=torch.long),
        control=torch.zeros(1, 60, dtype=torch.float64),
        control_variance=torch.zeros(1, 60, dtype=torch.float64),
        gene_of=torch.arange(60),
    )
    hot = torch.eye(60, dtype=torch.float64)[n:]
    context = torch.zeros(60 - n, dtype=torch.long)
    wanted = table[:, n:].T
    error = (bilinear(screen, hot, context, [(3, 1e-6)])[0] - wanted).square().mean()
    of_mean = (perturbed_mean(screen, hot, context) - wanted).square().mean()
    assert error < 0.05 * of_mean


def test_ridge_says_the_mean_of_a_gene_that_is_not_measured():
    screen, _ = known()
    column = torch.arange(N_PERT)
    column[4] = -1
    screen = replace(screen, gene_of=column)
    hot, context = ask(4)
    assert torch.equal(ridge(screen, hot, context), perturbed_mean(screen, hot, context))


def test_another_cell_type_is_used_only_where_the_own_one_is_silent():
    screen, _ = known()
    screen = replace(screen, context=torch.tensor([0, 1, 0, 0, 0, 0]))
    assert torch.allclose(additive(screen, *ask(0, 1))[0], screen.delta[0] + screen.delta[1])


@pytest.mark.parametrize("seed", range(4))
def test_shrinkage_lowers_the_error_of_noisy_responses_and_leaves_exact_ones(seed):
    screen, true = known(seed, noise=1.5)
    clean = shrunk(screen, control_is_exact=True)
    assert (clean.delta - true).square().mean() < (screen.delta - true).square().mean()
    exact, _ = known(seed)
    assert torch.allclose(shrunk(exact, control_is_exact=True).delta, exact.delta)


def test_noisy_controls_move_towards_the_median_perturbation():
    generator = torch.Generator().manual_seed(2)
    n, n_gene = 25, 300
    response = torch.zeros(n, n_gene, dtype=torch.float64)
    for i in range(n):
        response[i, 4 * i : 4 * i + 6] = 2.0  # sparse: the median perturbation does nothing
    error = 0.5 * torch.randn(n_gene, generator=generator, dtype=torch.float64)
    own = 0.1 * torch.randn(n, n_gene, generator=generator, dtype=torch.float64)
    screen = Known(
        delta=response + own - error,
        variance=torch.full((n, n_gene), 0.01, dtype=torch.float64),
        hot=torch.eye(n, dtype=torch.float64),
        context=torch.zeros(n, dtype=torch.long),
        control=torch.zeros(1, n_gene, dtype=torch.float64),
        control_variance=torch.full((1, n_gene), 0.25, dtype=torch.float64),
        gene_of=torch.full((n,), -1),
    )
    shift, left = population_control(screen)
    assert (shift[0] + error).square().mean() < 0.1 * error.square().mean()
    assert (left < screen.control_variance).all()


def test_a_condition_leaves_alone_or_with_its_relatives():
    screen, _ = known()
    assert len(screen.rows(torch.arange(6) != 0).delta) == 5
    left = screen.rows((screen.hot @ screen.hot[0]) == 0)
    assert len(left.delta) == 4 and not (left.hot[:, 0] > 0).any()
    for predictor in PREDICTORS.values():
        assert predictor(left, *ask(0, 1)).shape == (1, N_GENE)


def bilinear_world(noise: float = 0.0) -> tuple[Known, torch.Tensor]:
    """Responses of 40 perturbed genes in 12 components; those of 20 further ones beside."""
    generator = torch.Generator().manual_seed(3)
    genes = torch.linalg.qr(torch.randn(60, 12, generator=generator, dtype=torch.float64))[0]
    table = 40 * genes @ genes.T
    measured = table + noise * torch.randn(60, 60, generator=generator, dtype=torch.float64)
    n = 40
    screen = Known(
        delta=measured[:, :n].T.contiguous(),
        variance=torch.full((n, 60), noise**2, dtype=torch.float64),
        hot=torch.eye(60, dtype=torch.float64)[:n],
        context=torch.zeros(n, dtype=torch.long),
        control=torch.zeros(1, 60, dtype=torch.float64),
        control_variance=torch.zeros(1, 60, dtype=torch.float64),
        gene_of=torch.arange(60),
    )
    return screen, table[:, n:].T


def test_the_chosen_ridge_beats_the_published_one_where_ten_components_are_too_few():
    screen, wanted = bilinear_world(noise=0.2)
    hot, context = torch.eye(60, dtype=torch.float64)[40:], torch.zeros(20, dtype=torch.long)
    chosen = (ridge(screen, hot, context) - wanted).square().mean()
    published = (ridge_published(screen, hot, context) - wanted).square().mean()
    assert ridge_choice(screen, hot)[0] > 10 and float(chosen) < 0.8 * float(published)


def test_the_choice_of_the_ridge_leaves_out_what_shares_a_gene(monkeypatch):
    """Each inner fold predicts conditions none of whose genes it has seen, as at test."""
    screen, _ = known()
    seen = []

    def watch(inner, hot, context, settings):
        seen.append((inner.hot, hot))
        return torch.zeros(len(settings), len(hot), N_GENE, dtype=torch.float64)

    monkeypatch.setattr(baselines, "bilinear", watch)
    ridge_choice(screen, ask(5)[0])  # gene 5 is new: pairs of a held gene leave with it
    assert len(seen) == 5
    assert all(float((inner @ held.T).sum()) == 0 for inner, held in seen)


def test_nothing_to_choose_on_gives_the_published_setting():
    screen, _ = known()
    assert ridge_choice(screen, ask(0, 1)[0]) == (10, 0.1)  # one pair to choose on
    assert torch.equal(ridge(screen, *ask(2, 3)), ridge_published(screen, *ask(2, 3)))


def test_the_shrunk_additive_is_the_sum_of_shrunk_responses():
    screen, true = known(0, noise=1.5)
    clean = shrunk(screen, control_is_exact=True)
    said = additive_shrunk(screen, *ask(2, 3), control_is_exact=True)
    assert torch.allclose(said[0], clean.delta[2] + clean.delta[3])
    far = (additive(screen, *ask(2, 3))[0] - true[2] - true[3]).square().mean()
    assert (said[0] - true[2] - true[3]).square().mean() < far
