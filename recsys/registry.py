"""Names to classes, resolved only when asked for. Third parties are reached as "package.module:Class"."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from recsys.errors import ConfigError, nearest

MODELS = {
    "popularity": "recsys.models.baselines.popularity:Popularity",
    "itemknn": "recsys.models.baselines.itemknn:ItemKNN",
    "rp3beta": "recsys.models.baselines.rp3beta:RP3Beta",
    "content_knn": "recsys.models.baselines.content_knn:ContentKNN",
    "ease": "recsys.models.baselines.ease:EASE",
    "autorec": "recsys.models.baselines.autorec:AutoRec",
    "deepfm": "recsys.models.baselines.deepfm:DeepFM",
    "lightgbm": "recsys.models.baselines.lightgbm:LightGBM",
    "mf": "recsys.models.baselines.mf:MF",
    "lightgcn": "recsys.models.baselines.lightgcn:LightGCN",
    "mmgl": "recsys.models.graph.mmgl:MMGL",
    "vbpr": "recsys.models.graph.vbpr:VBPR",
    "mmgcn": "recsys.models.graph.mmgcn:MMGCN",
    "lattice": "recsys.models.graph.lattice:LATTICE",
    "freedom": "recsys.models.graph.freedom:FREEDOM",
    "bm3": "recsys.models.graph.bm3:BM3",
    "mgcn": "recsys.models.graph.mgcn:MGCN",
    "lgmrec": "recsys.models.graph.lgmrec:LGMRec",
    "smore": "recsys.models.graph.smore:SMORE",
    "pgl": "recsys.models.graph.pgl:PGL",
    "dropoutnet": "recsys.models.coldstart.taught:DropoutNet",
    "clcrec": "recsys.models.coldstart.clcrec:CLCRec",
    "marec": "recsys.models.coldstart.marec:MARec",
    "heater": "recsys.models.coldstart.taught:Heater",
    "aldi": "recsys.models.coldstart.taught:ALDI",
    "semco": "recsys.models.coldstart.semco:SEMCo",
    "coldstart": "recsys.models.coldstart.model:ColdStart",
    "fmrlrec": "recsys.models.fmrlrec:FMRLRec",
    "mamba4rec": "recsys.models.mamba4rec:Mamba4Rec",
    "sasrec": "recsys.models.sasrec:SASRec",
    "bert4rec": "recsys.models.bert4rec:BERT4Rec",
    "gru4rec": "recsys.models.gru4rec:GRU4Rec",
}
EMBEDDERS = {
    "notellm2": "recsys.models.notellm2.embedder:NoteLLM2",
    "neighbours": "recsys.models.embedders.neighbours:NeighbourEmbedder",
    "frozen_head": "recsys.models.embedders.frozen_head:FrozenHead",
}
EXTRACTORS = {
    "text": "recsys.features.text.extractor:TextExtractor",
    "image": "recsys.features.image.extractor:ImageExtractor",
    "image_tokens": "recsys.features.image.tokens:ImageTokensExtractor",
    "image_labels": "recsys.features.image.labels:ImageLabelsExtractor",
    "image_captions": "recsys.features.image.captions:ImageCaptionsExtractor",
    "metadata": "recsys.features.metadata:MetadataExtractor",
    "reduce": "recsys.features.reduce:ReduceExtractor",
    "multimodal": "recsys.features.vlm:MultimodalExtractor",
    "embedder": "recsys.embedder_table:EmbedderExtractor",
    "written_text": "recsys.written_table:WrittenTextExtractor",
}

ENCODING = {
    "extractor": "recsys.features.extract:make_extractor",
    "typed_rows": "recsys.features.metadata:encode",
    "fields": "recsys.features.field_table:fields_of",
    "reduction": "recsys.features.whitening:read_whitening",
}
"""What serving calls for the content of a new item, where it is installed."""

ClassT = TypeVar("ClassT")


def load_function(name: str) -> Callable[..., Any]:
    """A function of ENCODING. Raises ImportError where what it needs is not installed."""
    module, _, attribute = ENCODING[name].partition(":")
    return getattr(import_module(module), attribute)


def load_class(name: str, table: dict[str, str], base: type[ClassT]) -> type[ClassT]:
    """The class behind a registered name or a "package.module:Class" path.

    Raises ConfigError for an unknown name (with the nearest legal one) or a class of the wrong kind.
    """
    target = table.get(name, name)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise ConfigError(f"unknown {base.__name__.lower()} {name!r}", fix=nearest(name, table))
    try:
        found = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        if target in table.values() or (isinstance(error, ModuleNotFoundError) and error.name != module):
            raise  # the module is there; something it needs is not
        raise ConfigError(f"cannot import {name!r} ({error})", expected="package.module:Class") from None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(
            f"{name!r} is not a {base.__name__}", expected=f"a subclass of {base.__module__}.{base.__name__}"
        )
    return found
