"""Recommendation from raw content to a served ranking.

    import recsys
    dataset = recsys.Dataset.open("data/ml-100k")
    split = recsys.make_split(dataset, recsys.SplitConfig(method="global_time"))

Public names are loaded on first use, so that `import recsys` stays light.
"""

from importlib import import_module
from importlib.metadata import version

from recsys import torchvision_cure

torchvision_cure.install()

__version__ = version("recsys")

_PUBLIC = {
    "Dataset": "recsys.dataset",
    "Split": "recsys.splits",
    "SplitConfig": "recsys.split_config",
    "make_split": "recsys.splits",
    "extract_features": "recsys.features.makers",
    "Protocol": "recsys.protocol",
    "load_recipe": "recsys.recipe",
    "run": "recsys.pipeline",
    "Report": "recsys.report",
    "Bundle": "recsys.bundle",
    "Query": "recsys.serving.engine",
    "RankingEngine": "recsys.serving.engine",
    "RecsysError": "recsys.errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'recsys' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
