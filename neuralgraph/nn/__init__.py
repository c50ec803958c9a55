"""Layers any system may use."""
