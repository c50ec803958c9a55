"""Boolean gene circuits: exact phenotypes, their classifier, and circuits by design."""
