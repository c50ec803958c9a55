"""Mathematics with no biology in it."""
