"""One house per biology; neighbours never import each other."""
