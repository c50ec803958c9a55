"""Metabolic networks: recover stoichiometry, rate constants and rate laws from concentrations."""
