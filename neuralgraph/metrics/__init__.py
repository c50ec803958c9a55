"""Pure functions (prediction, target) -> number."""
