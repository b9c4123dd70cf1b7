"""Experiments that come with the package, and the prices of models: edit a copy, name it in [budget]."""
