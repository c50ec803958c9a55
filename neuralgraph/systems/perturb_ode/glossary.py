"""What the metrics of perturbation ODEs mean."""

from __future__ import annotations

SCREEN = {
    "test_mse_{kind}_no_change": "error on unseen {kind} knock-outs if cells stayed as on day 0",
    "test_mse_{kind}_additive": "error on unseen {kind} knock-outs of adding up known effects",
    "test_mse_single_{arm}": "error on the measured days of unseen single knock-outs, arm {arm}",
    "test_mse_double_{arm}": "error on the measured days of unseen double knock-outs, arm {arm}",
    "test_mse_medium_{arm}": "error on the measured days in a medium not seen, arm {arm}",
    "attractor_mse_{kind}_no_change": "error at rest, {kind} knock-outs, if nothing changed",
    "attractor_mse_{kind}_additive": "error at rest, {kind} knock-outs, of adding up known effects",
    "attractor_mse_single_{arm}": "error at rest of unseen single knock-outs, arm {arm}",
    "attractor_mse_double_{arm}": "error at rest of unseen double knock-outs, arm {arm}",
    "attractor_mse_medium_{arm}": "error at rest in a medium not seen, arm {arm}",
    "attractor_ratio_{arm}": "error at rest of unseen doubles, arm {arm} over the standard loss",
    "speed_at_rest_{arm}": "mean squared field where held-out cells truly rest, arm {arm}",
    "final_loss": "loss at the end of training, summed over models",
}
"""One sentence by metric of a simulated screen, shown beside its value."""

SERIES = {
    "test_mse_standard": "error on the held-out knock-out, data loss alone, last epoch",
    "test_mse_ss0": "the same with steady state of unperturbed cells in the loss",
    "test_mse_ssP": "the same with steady state of perturbed cells in the loss",
    "test_mse_both": "the same with both steady-state losses",
    "test_mse_kinetic": "control: the same penalty on the field at all days",
    "test_mse_wrong_day": "control: the steady-state loss on a day of change",
    "test_mse_weight_decay": "control: weight decay instead of the steady-state loss",
    "test_mse_selected": "error of the arm and epoch, or field, chosen on validation knock-outs",
    "test_mse_selected_ode": "the same, chosen among the neural ODEs alone",
    "test_mse_local_field": "error of the closed-form local field, settings chosen within",
    "test_mse_neural_twin": "the same of its neural twin, settings and epoch chosen within",
    "test_mse_baseline": "reference path plus the shrunk day-2 deviation: the strongest baseline",
    "test_mse_reference_path": "error of the path that training knock-outs take on average",
    "test_mse_no_change_projected": "no change, start projected on components of training cells",
    "test_mse_drift_projected": "mean drift, start projected on components of training cells",
    "test_mse_no_change": "error if the first measured day stayed",
    "test_mse_drift": "error of the start plus the mean drift of training knock-outs",
    "test_mse_untrained": "error of the field before training",
    "target_noise": "sampling variance of the targets: no prediction scores lower on average",
    "response_R2c": "1 − excess error of the selected model / that of the reference path",
    "response_R2c_{name}": "the same of {name}",
    "{name}_difference_lo": "lower end of its 95 % interval over knock-outs",
    "{name}_difference_hi": "upper end of its 95 % interval over knock-outs",
    "{name}_difference": "difference of errors, {name}, mean over knock-outs; below 0 is better",
    "{name}_n_better": "knock-outs on which the first of {name} is better",
    "{name}_p_sign_flip": "p of that difference under random signs of the knock-outs",
    "{name}_excess_ratio": "geometric mean over knock-outs of the ratio of excess errors",
    "n_test_perturbations": "knock-outs held out, one at a time",
    "final_loss": "loss at the end of training, summed over models",
}
"""One sentence by metric of a measured series, shown beside its value."""

MOVEMENT = {
    "specific_rms_last": "change of a condition's own between the last two days, noise taken out",
    "mean_abs_lfc_{a}_{b}": "mean absolute log2 fold change from day {a} to day {b}",
    "median_abs_lfc_{a}_{b}": "median absolute log2 fold change from day {a} to day {b}",
    "null_mean_abs_lfc_{a}_{b}": "the mean from day {a} to day {b} when days are shuffled",
    "null_median_abs_lfc_{a}_{b}": "the median from day {a} to day {b} when days are shuffled",
    "equal_n_abs_lfc_{a}_{b}": "the mean from day {a} to day {b} at equal numbers of cells",
    "equal_n_excess_{a}_{b}": "what that has above shuffled days, from day {a} to day {b}",
    "common_rms_{a}_{b}": "change all conditions share from day {a} to day {b}, noise taken out",
    "specific_rms_{a}_{b}": "change of their own from day {a} to day {b}, noise taken out",
    "specific_p_{a}_{b}": "share of shuffles with as large a change of their own, {a} to {b}",
    "n_settled": "conditions whose own change on the last day is below the margin for sure",
    "n_moving": "conditions whose own change on the last day is above 0 for sure",
    "n_undecided": "conditions whose interval reaches the margin and includes 0",
    "equal_n_cells": "cells of each group in the comparison at equal numbers",
    "final_loss": "mean square of what conditions do not share",
}
"""One sentence by metric of changes between days, shown beside its value."""

LINEAGE = {
    "energy_distance_held_out": "distance to the clouds of held-out knock-outs; 0: the same",
    "energy_distance_held_out_no_change": "the same if cells stayed as on day 0",
    "energy_distance_held_out_unperturbed": "the same for unperturbed cells without the gene",
    "energy_distance_train": "distance to the clouds of training conditions",
    "n_better_than_unperturbed": "held-out knock-outs better predicted than by unperturbed cells",
    "n_held_out": "knock-outs held out",
    "type_share_error_held_out": "half the L1 distance of the shares of types, last day",
    "type_share_error_held_out_unperturbed": "the same for unperturbed cells",
    "pseudotime_day_spearman": "rank correlation of pseudotime and day of unperturbed cells",
    "final_loss": "distance between clouds at the end of training",
}
"""One sentence by metric of differentiating cells, shown beside its value."""

COUNTS = {
    "test_bound": "surprise of the counts of a held-out cell, each gene, with its latent cell",
    "test_bound_no_latent": "the same without: one abundance a condition, all fitted on its own",
    "batch_factor_spread": "standard deviation of the log factors of the batches",
    "median_dispersion": "median over genes of the dispersion of the counts",
    "final_loss": "the surprise at the end of training, on training cells",
}
"""One sentence by metric of the autoencoder, shown beside its value."""
