"""What a bundle says, and carries, of feature tables, for rows of items that come later."""

from collections.abc import Mapping
from typing import Any

from recsys.boxes import Box
from recsys.features.base import Extractor, FittedExtractor
from recsys.features.extract import make_extractor
from recsys.features.field_table import load_table
from recsys.fields import as_vectors
from recsys.splits import Split


def content_facts(
    features: Mapping[str, Mapping[str, Any]], tables: Mapping[str, Box], split: Split
) -> tuple[dict[str, dict[str, Any]], dict[str, bytes]]:
    """(facts by table, TABLE/FILE -> content): what serving makes rows with, of a new item or of the attributes that
    come with a question.

    Facts are a table's entity, its part of the recipe, its width, whether a row is made of raw content by nothing that
    was fitted ("raw"), for typed fields their vocabularies and statistics ("fields"), and "made_of" where files make
    its rows from others: these by the names that they are known under ("tables"), and the text that is read besides
    ("template"). Raises FeatureError where such files cannot be had.
    """
    facts: dict[str, dict[str, Any]] = {}
    files: dict[str, bytes] = {}
    for name, box in tables.items():
        settings, table = dict(features[name]), load_table(box.folder)
        maker = make_extractor(settings, where=f"features.{name}")
        served = None
        if isinstance(maker, FittedExtractor):
            served = maker.served(table, split, lambda other: load_table(tables[other].folder))
        made_of = None
        if served is not None:
            settings = {"kind": settings["kind"]} | dict(served.settings)
            made_of = {"tables": dict(served.tables), "template": served.template}
            files |= {f"{name}/{file}": data for file, data in served.files.items()}
        width = as_vectors(table.align(table.ids.head(1))).width
        facts[name] = {"entity": table.entity, "settings": settings, "width": width}
        facts[name] |= {
            "raw": isinstance(maker, Extractor),
            "fields": table.manifest.get("fields"),
            "made_of": made_of,
        }
    return facts, files
