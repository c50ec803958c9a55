"""The two-headed model of document 003: which perturbations move a gene, and how much it moves."""
