"""Mathematics without biology: integration of ODEs, identifiability of linear sensitivities."""
