"""Item embedders: content in, vectors out, learnt from pairs of items."""
