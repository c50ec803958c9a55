"""Response of expression to genetic perturbations, embedded in spaces of constant curvature."""
