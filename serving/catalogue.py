"""The items that can be ranked now: the bundle's, those added since, less those taken out.

A catalogue is a value: a change makes a new one, so that a request sees one state of it from beginning to end.
"""

import base64
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
import polars as pl

from recsys import schema
from recsys.bundle import Bundle
from recsys.item_encoding import unit
from recsys.ranking_features import Items
from recsys.schema import Dense, Ragged
from recsys.serving.content import ContentEncoder, NewItem
from recsys.serving.forms import Program, open_form

Id = int | str


@dataclass(frozen=True)
class Encoded:
    """New items as the second stage and the programs see them. vectors: program -> [N, D], only those that can read
    content. missing: item id -> tables it lacks."""

    new: Sequence[NewItem]
    vectors: Mapping[str, np.ndarray]
    items: Items | None
    missing: Mapping[Id, list[str]]


@dataclass(frozen=True)
class Catalogue:
    """ids, titles, categories: by index, the bundle's items first. available_I: may be recommended. programs: by name,
    with vectors for the added items where they can have any. items: for the ranker's features. added: content of the
    items added since, by id."""

    ids: Sequence[Id]
    index_of: Mapping[Id, int]
    titles: Sequence[str | None]
    categories: Sequence[Sequence[str]]
    available_I: np.ndarray
    programs: Mapping[str, Program]
    items: Items | None
    added: Mapping[Id, NewItem]
    pictures: Set[int]
    original: int

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def with_category(self) -> Mapping[str, np.ndarray]:
        """Category -> [I] mask."""
        masks: dict[str, np.ndarray] = {}
        for index, names in enumerate(self.categories):
            for name in names:
                masks.setdefault(name, np.zeros(len(self), bool))[index] = True
        return masks

    def shown(self, index: int) -> dict[str, Any]:
        """An item as people see it: item_id, title, category, image (a path, or None)."""
        item_id = self.ids[index]
        return {
            "item_id": item_id,
            "title": self.titles[index],
            "category": list(self.categories[index]),
            "image": f"/v1/items/{quote(str(item_id), safe='')}/image" if index in self.pictures else None,
        }

    @cached_property
    def _heads(self) -> dict[int, bytes]:
        return {}

    def heads(self, indices: Sequence[int]) -> list[bytes]:
        """`shown` as JSON that a score and the rest of a line follow; made once an item."""
        made = self._heads
        found = list(map(made.get, indices))
        if None in found:
            for index in indices:
                if index not in made:
                    made[index] = open_for_score(self.shown(index))
            found = [made[index] for index in indices]
        return found

    @cached_property
    def lowered_titles(self) -> Sequence[str]:
        """For searching."""
        return [(title or "").lower() for title in self.titles]


def open_for_score(item: Mapping[str, Any]) -> bytes:
    """As JSON that a score and the rest of a line follow."""
    return orjson.dumps(item)[:-1] + b',"score":'


def catalogue_of(bundle: Bundle, programs: Mapping[str, Program]) -> Catalogue:
    """That of a bundle as it is. A column `available` of booleans takes items out."""
    frame = bundle.items
    size = len(frame)

    def column(name: str) -> list:
        return frame[name].to_list() if name in frame.columns else [None] * size

    available_I = np.ones(size, bool)
    if "available" in frame.columns:
        available_I = frame["available"].cast(pl.Boolean).fill_null(True).to_numpy().copy()
    ids = frame[schema.ITEM].to_list()
    return Catalogue(
        ids,
        {item_id: index for index, item_id in enumerate(ids)},
        column(schema.TITLE),
        [names or () for names in column(schema.CATEGORY)],
        available_I,
        programs,
        None if bundle.ranker is None else bundle.ranker.items,
        {},
        bundle.thumbnails.keys(),
        size,
    )


class Cataloguer:
    """Makes catalogues of changes: encodes what comes with content, and extends programs by it."""

    def __init__(self, bundle: Bundle, programs: Mapping[str, Program]):
        self.bundle, self.encoder = bundle, ContentEncoder(bundle)
        self.base = catalogue_of(bundle, programs)
        self._categories = (
            {} if bundle.ranker is None else {n: c for c, n in enumerate(bundle.ranker.categories)}
        )

    def encoded(self, new: Sequence[NewItem]) -> Encoded:
        """Raises RequestError for features that do not fit."""
        rows = self.encoder.rows(new)
        vectors = {
            name: program.form.encoding.vectors(rows)
            for name, program in self.base.programs.items()
            if program.form.encoding is not None
        }
        return Encoded(new, vectors, self._ranked_items(new, rows), self.encoder.missing(new, rows))

    def changed(self, added: Mapping[Id, NewItem], removed: Sequence[Id]) -> Catalogue:
        """The bundle's catalogue with these items added or replaced, and these taken out.

        A replaced item of the bundle keeps its index and what was learnt of it; its title, categories and content are
        the new ones.
        """
        base = self.base
        fresh = [item for item_id, item in added.items() if item_id not in base.index_of]
        encoded = self.encoded(list(added.values())) if added else None
        order = {item_id: number for number, item_id in enumerate(added)}
        ids = [*base.ids, *(item.item_id for item in fresh)]
        titles, categories = [*base.titles], [*base.categories]
        titles += [item.title for item in fresh]
        categories += [tuple(item.category) for item in fresh]
        for item_id, item in added.items():
            if item_id in base.index_of:
                index = base.index_of[item_id]
                titles[index], categories[index] = (
                    item.title or titles[index],
                    tuple(item.category) or categories[index],
                )
        available_I = np.concatenate([base.available_I, np.ones(len(fresh), bool)])
        index_of = dict(base.index_of) | {item.item_id: len(base) + n for n, item in enumerate(fresh)}
        for item_id in removed:
            if item_id in index_of:
                available_I[index_of[item_id]] = False
        items, programs = base.items, base.programs
        if fresh:
            rows = np.array([order[item.item_id] for item in fresh])
            items = None if items is None else items.joined(encoded.items.take(rows))
            programs = {
                name: _extended(program, encoded.vectors[name][rows]) if name in encoded.vectors else program
                for name, program in base.programs.items()
            }
        pictured = {index_of[item_id] for item_id, item in added.items() if item.image is not None}
        return Catalogue(
            ids, index_of, titles, categories, available_I, programs, items, dict(added), base.pictures | pictured,
            len(base),
        )  # fmt: skip

    def _ranked_items(self, new: Sequence[NewItem], rows: Mapping[str, Dense]) -> Items | None:
        ranker = self.bundle.ranker
        if ranker is None:
            return None
        content, present = {}, {}
        for name, (mean_F, map_FK) in ranker.maps.items():
            mask = rows[name].present_E
            filled = np.where(mask[:, None], rows[name].values_EF, mean_F)
            content[name] = np.where(mask[:, None], unit((filled - mean_F) @ map_FK), 0).astype(np.float32)
            present[name] = mask
        codes = [
            [self._categories[name] for name in item.category if name in self._categories] for item in new
        ]
        return Items(content, present, Ragged.of(codes), len(ranker.categories))


def _extended(program: Program, vectors_ND: np.ndarray) -> Program:
    """The program with these items after its own, without a bias."""
    form = program.form
    bias_I = np.concatenate([form.item_bias_I, np.zeros(len(vectors_ND), np.float32)])
    vectors_ID = np.concatenate([form.item_vectors_ID, vectors_ND])
    return open_form(replace(form, item_vectors_ID=vectors_ID, item_bias_I=bias_I))


def to_bytes(item: NewItem) -> bytes:
    """An item as the state store keeps it."""
    record: dict[str, Any] = asdict(item)
    record["image"] = None if item.image is None else base64.b64encode(item.image).decode()
    return json.dumps(record).encode()


def from_bytes(data: bytes) -> NewItem:
    record = json.loads(data)
    image = record.pop("image")
    return NewItem(**record, image=None if image is None else base64.b64decode(image))
