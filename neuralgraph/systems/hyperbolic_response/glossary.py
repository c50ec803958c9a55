"""What the scores of predicted responses mean."""

from __future__ import annotations

_OWN = {
    "pearson_delta": "correlation over genes of predicted and measured response",
    "mse": "mean squared error of the response over genes",
    "mse_top20_de": "mean squared error on the 20 genes that respond most",
    "direction_match": "share of differentially expressed genes whose sign is right; .5: a coin",
    "pds": "rank of the own truth among all, 1: always nearest, .5: chance; target genes left out",
    "de_overlap": "share of the differentially expressed genes among as many top predicted ones",
    "energy_distance": "distance of control cells moved by the prediction to the perturbed cells",
}
_FORMS = {
    "": "truth and prediction against the same controls",
    "_disjoint": "truth and prediction against different halves of the controls",
    "_vs_mean": "against the perturbed mean instead of control",
    "_vs_mean_disjoint": "against the perturbed mean; the prediction from half of the controls",
}

RESPONSE = {
    "residual_gate": "share of the learned residual that validation keeps, 0: the baseline alone",
    "residual_gate_disjoint": "the same, learned from half of the controls",
    "descent_kept": "share of forms x folds whose weights are of descent; else geometry is unused",
    "curvature": "mean of the (learned) curvatures of the models whose descent was kept",
    "pearson_delta_ungated": "Pearson delta with the whole residual, shared controls",
    "pearson_delta_ungated_disjoint": "the same, disjoint controls",
    "coverage_90": "share of measured responses inside the 90 % prediction interval",
    "coverage_90_disjoint": "the same, truth measured against other controls",
    "epistasis_pearson": "predicted departure from additivity against the planted; r, not all of "
    "it interaction: shrinkage and saturation depart from additivity too",
    "n_test_perturbations": "held-out perturbations that are scored: the sample size",
    "n_test_perturbations_all": "held-out perturbations, those of other subgroups too",
    "n_gene_scored": "genes common to all folds",
    "final_loss": "squared error in shares of the baseline's, summed over models, with penalty",
    "detectable_{score}": "smallest true gain found with 80 % power, against {score}",
    "gain_{score}_lo": "low end of the 95 % interval of the gain on {score}",
    "gain_{score}_hi": "high end of the 95 % interval of the gain on {score}",
    "gain_{score}": "paired improvement on {score}, positive: ours is better",
    "{score}_lo": "low end of the 95 % bootstrap interval of {score}",
    "{score}_hi": "high end of the 95 % bootstrap interval of {score}",
    "{score}_no_change": "{score}, predicting no response",
    "{score}_perturbed_mean": "{score}, predicting the mean of other perturbations",
    "{score}_matching_mean": "{score}, predicting the mean of the single responses",
    "{score}_additive": "{score}, predicting the sum of the single responses",
    "{score}_additive_shrunk": "{score}, single responses shrunk by reliability, then summed",
    "{score}_ridge": "{score} of the bilinear ridge, its setting chosen on training conditions",
    "{score}_ridge_published": "{score} of the bilinear ridge, 10 components and penalty 0.1",
    "{score}_ceiling": "{score} of one half of the cells predicting the other",
    **{
        f"{metric}{form}": f"{text}; {words}"
        for metric, text in _OWN.items()
        for form, words in _FORMS.items()
    },
}
"""One sentence by metric; a field stands for any score."""
