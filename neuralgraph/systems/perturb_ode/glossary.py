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
