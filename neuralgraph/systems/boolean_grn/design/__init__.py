"""Circuits by design: proposals of a generator, confirmed one by one by the exact oracle."""
