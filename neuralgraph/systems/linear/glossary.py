"""What the metrics of the linear system mean."""

from __future__ import annotations

MEANINGS = {
    "matrix_R2": "R² of the entries of A on the identity line, 1 − SSE/SST",
    "matrix_max_error": "largest absolute error of an entry of A",
    "test_R2": "R² of held-out trajectories, rolled out from their first frame",
    "identifiable_fraction": "share of the rows of A that these data determine",
    "final_loss": "mean squared error of the derivatives at the end of training",
    "degeneracy_gap": "prediction minus recovery; large where wrong parameters predict well",
}
"""One sentence by metric, shown beside its value."""
