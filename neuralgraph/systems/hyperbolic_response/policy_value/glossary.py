"""What the metrics of the two-headed model mean."""

from __future__ import annotations

MEANINGS = {
    "policy_kld": "KL divergence of the policy from its target in the cells learned from",
    "policy_mae": "mean absolute error of a probability of the policy, cells learned from",
    "value_mse": "mean squared error of the sensitivity of a gene, cells learned from",
    "value_mae": "mean absolute error of the sensitivity of a gene, cells learned from",
    "signed_mse": "mean squared error of the mean log fold change, cells learned from",
    "signed_pearson": "correlation of predicted and measured mean log fold changes, cells "
    "learned from",
    "top_recall": "share of the n_top strongest perturbations of a gene that the policy names, "
    "cells learned from",
    "{metric}_held_out": "{metric} against targets from other cells and controls of the same "
    "perturbations",
    "{metric}_held_out_table": "{metric} on held-out cells of a table learned by heart: as well "
    "as the data repeat themselves",
    "{metric}_uniform": "{metric} of the policy that prefers nothing",
    "{metric}_mean": "{metric} of one value, the mean over genes, for every gene",
    "{metric}_zero": "{metric} of predicting 0",
    "feature_rank": "directions of the node features above a thousandth of the largest",
    "final_loss": "weighted KL divergence at the end of training, dropout off",
    "curvature": "curvature of the space after training",
}
"""One sentence by metric, shown beside its value."""
