"""Models behind one contract (`recsys.models.base`). They know nothing of files, MLflow, HTTP or ids."""
