"""Pure functions (prediction, target) -> number: regression, recovery up to gauge."""
