"""Semi-mechanistic perturb-seq: operators on cell states, measurement, neural ODEs."""
