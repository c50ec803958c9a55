"""What the metrics of gene circuits mean."""

from __future__ import annotations

MEANINGS = {
    "accuracy_structure_only_{n}": "accuracy of a network that never simulates, {n} genes",
    "balanced_accuracy_structure_only_{n}": "mean recall without any simulation, {n} genes",
    "balanced_accuracy_{n}": "mean recall over the phenotypes, {n} genes",
    "accuracy_{n}": (
        "share of unseen random circuits of {n} genes whose phenotype is right "
        "(3 genes: of the held-out isomorphism classes, each once)"
    ),
    "majority_{n}": "share of the commonest phenotype: what always naming it scores, {n} genes",
    "calibration_error_{n}": "mean gap between confidence and accuracy, {n} genes",
    "recall_{n}_adaptation": "share of the {n}-gene adaptation circuits that are found",
    "recall_{n}_amplifier": "share of the {n}-gene amplifiers that are found",
    "recall_{n}_oscillator": "share of the {n}-gene oscillators that are found",
    "recall_{n}_pulse_generator": "share of the {n}-gene pulse generators that are found",
    "recall_{n}_stable": "share of the {n}-gene stable circuits that are found",
    "recall_{n}_toggle_switch": "share of the {n}-gene toggle switches that are found",
    "explorer_success_{n}": (
        "share of the {n}-gene circuits the policy writes that are as wished, mean over phenotypes"
    ),
    "explorer_distinct_{n}": (
        "share of these that are no relabelled copies, mean over phenotypes, {n} genes"
    ),
    "explorer_novelty_{n}": (
        "share of these classes not in the training data, mean over phenotypes, {n} genes"
    ),
    "test_accuracy": "share of the next values of genes that is right on held-out trajectories",
    "state_accuracy": "share of all states whose whole successor is right",
    "sign_accuracy": "share of gene pairs whose influence has the right sign, or is rightly absent",
    "attractor_recall": "share of the true attractors that the learned network has",
    "attractor_precision": "share of the learned attractors that are true ones",
    "seen_fraction": "share of all states that occur in training: the rest is extrapolation",
    "final_loss": "loss at the end of training",
}
"""One sentence by metric, shown beside its value."""
