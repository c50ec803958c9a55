"""Figures of Boolean gene circuits: the only modules of this system that draw."""
