"""Bundle: everything serving needs in one verified folder, without torch and without pickle.

manifest.json        versions, recipe, fingerprints, split, sha256 of every file, bundle_id
weights.safetensors  the serving form's arrays, item counts
items.bin            item vectors, one contiguous [I, increment] block per width: the head of the file
                     is the narrower model; in int8 each block's codes follow its own scale per row
items.parquet        ids and display columns in catalogue order
users.parquet        ids, and the newest events of each user as item indices and times
index.faiss, index.json   an approximate index of a large catalogue, and what it was measured to find
states.NAME.safetensors   what long histories leave behind in a recurrent model (see `recsys.serving.user_states`)
popularity.safetensors   how often each item was taken on each day up to the cut, where the data has times
generator.NAME.safetensors, ranker.txt, ranker.safetensors   the second stage, where there is one: generators' forms,
                     LightGBM's text form, and what its features are made of
encoders/TABLE/      what makes a new item's row in a table that stands on others: a learnt embedder, a reduction
thumbnails.parquet   small pictures by item index, where they were asked for
LICENCE.txt          of the data
reports/             metrics; outside bundle_id
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from recsys.errors import BundleError
from recsys.files import digest, file_sha256
from recsys.item_blocks import block_bytes, read_block
from recsys.popularity import Popularity
from recsys.schema import Form, Ragged, legal_width
from recsys.stored_form import form_from, read_arrays, read_form
from recsys.two_stage import Ranker

if TYPE_CHECKING:
    from recsys.serving.forms import Program

FORMAT_VERSION = 2
COUNTS = "item_counts"
ENCODERS = "encoders"
DESCRIBED = (
    "model", "program", "meta", "widths", "blocks", "id_type", "split_id", "last_event", "recipe", "fingerprints",
    "flags", "counts", "encoding", "content", "generators", "ranker",
)  # fmt: skip
"""What bundle_id covers besides the hashes of the files."""
_OUTSIDE = ("name", "data", "evaluate", "track")
"""Parts of the recipe that bundle_id leaves out: what the run is called, where data and records lie (the data is named
by its fingerprint), and how the result is judged."""


def identity(manifest: Mapping[str, Any], files: Mapping[str, str]) -> str:
    described = {key: manifest[key] for key in DESCRIBED}
    recipe = {key: value for key, value in manifest["recipe"].items() if key not in _OUTSIDE}
    return digest({"described": described | {"recipe": recipe}, "files": files})


def read_vectors(path: Path, blocks: Sequence[Mapping[str, Any]]) -> np.ndarray:
    with open(path, "rb") as handle:
        return np.concatenate([read_block(handle, block) for block in blocks], axis=1)


def histories_of(users: pl.DataFrame) -> Ragged:
    lengths = users["items"].list.len().to_numpy().astype(np.int64)
    return Ragged.from_lengths(users["items"].explode().drop_nulls().to_numpy().astype(np.int64), lengths)


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle."""

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "Bundle":
        """Verify format, then hashes, then shapes. Raises BundleError naming the file that is wrong."""
        folder = Path(path)
        again = "export or download the bundle again"
        manifest = _read_manifest(folder, again)
        for name, expected in manifest["files"].items():
            if not (folder / name).is_file():
                raise BundleError("the file is missing", where=folder / name, fix=again)
            if verify and file_sha256(folder / name) != expected:
                raise BundleError(
                    "the file was changed", where=folder / name, expected=f"sha256 {expected}", fix=again
                )
        if verify and identity(manifest, manifest["files"]) != manifest["bundle_id"]:
            raise BundleError("the file was changed", where=folder / "manifest.json", fix=again)
        bundle = cls(folder, manifest)
        bundle._check_shapes()
        return bundle

    def _check_shapes(self) -> None:
        counts, blocks = self.manifest["counts"], self.manifest["blocks"]
        length = sum(map(block_bytes, blocks))
        vectors = self.path / "items.bin"
        if blocks and (not vectors.is_file() or vectors.stat().st_size != length):
            raise BundleError("the file has another size", where=vectors, expected=f"{length} bytes")
        found = [
            ("items.parquet", "items", len(self.items)),
            ("weights.safetensors", "items", len(self._arrays.get(COUNTS, ()))),
        ]
        found += [("items.bin", "items", block["shape"][0]) for block in blocks]
        if self.users is not None:
            found.append(("users.parquet", "users", len(self.users)))
        for name, what, rows in found:
            if rows != counts.get(what):
                raise BundleError(f"{rows} {what}", where=self.path / name, expected=str(counts.get(what)))

    @property
    def id(self) -> str:
        return self.manifest["bundle_id"]

    @property
    def id_type(self) -> Mapping[str, str]:
        return self.manifest["id_type"]

    @cached_property
    def items(self) -> pl.DataFrame:
        return _read_parquet(self.path / "items.parquet")

    @cached_property
    def users(self) -> pl.DataFrame | None:
        return (
            _read_parquet(self.path / "users.parquet") if "users.parquet" in self.manifest["files"] else None
        )

    @cached_property
    def histories(self) -> Ragged:
        """Item indices of every user's newest events, in time order; empty where users were not shipped."""
        return Ragged.empty(0) if self.users is None else histories_of(self.users)

    @cached_property
    def index(self) -> dict[str, Any] | None:
        """What is known of the approximate index (see `recsys.serving.index`); None where there is none."""
        path = self.path / "index.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.name in self.manifest["files"] else None

    @cached_property
    def states(self) -> dict[str, dict[str, np.ndarray]]:
        """Generator, or the model where it is none -> rows and states of users, as `states_of` made them."""
        files = [name for name in self.manifest["files"] if name.startswith("states.")]
        return {
            name.removeprefix("states.").removesuffix(".safetensors"): read_arrays(self.path / name)
            for name in files
        }

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return read_arrays(self.path / "weights.safetensors")

    @property
    def popularity(self) -> Popularity | None:
        """Counts by day up to the cut; None where the data has no times. Read anew each time: serving goes on counting
        in what it got."""
        path = self.path / "popularity.safetensors"
        return Popularity.of_arrays(read_arrays(path)) if path.name in self.manifest["files"] else None

    @cached_property
    def thumbnails(self) -> dict[int, bytes]:
        """Item index -> JPEG."""
        path = self.path / "thumbnails.parquet"
        return dict(_read_parquet(path).iter_rows()) if path.name in self.manifest["files"] else {}

    @property
    def encoder_files(self) -> dict[str, bytes]:
        """TABLE/FILE -> content, of all below encoders/."""
        below = f"{ENCODERS}/"
        return {
            name.removeprefix(below): (self.path / name).read_bytes()
            for name in self.manifest["files"]
            if name.startswith(below)
        }

    @cached_property
    def ranker(self) -> Ranker | None:
        """The second stage; None where the bundle ranks by its model alone."""
        settings = self.manifest["ranker"]
        if settings is None:
            return None
        text = (self.path / "ranker.txt").read_text(encoding="utf-8")
        return Ranker.of(settings, read_arrays(self.path / "ranker.safetensors"), text)

    @cached_property
    def generators(self) -> dict[str, Form]:
        """Forms of the second stage's generators by name; the bundle's own model among them is `form` itself."""
        return {
            entry["name"]: read_form(self.path / f"generator.{entry['name']}.safetensors", entry)
            if entry["own"]
            else self.form
            for entry in self.manifest["generators"]
        }

    @property
    def item_counts_I(self) -> np.ndarray:
        return self._arrays[COUNTS]

    @cached_property
    def form(self) -> Form:
        """The full serving form."""
        return self.form_of(None)

    def form_of(self, width: int | None) -> Form:
        """The form with item vectors up to `width`; only the head of items.bin is read.

        Raises ModelError for a width the model lacks.
        """
        legal_width(width, tuple(self.manifest["widths"]))
        widths = tuple(w for w in self.manifest["widths"] if width is None or w <= width)
        vectors = None
        if widths:
            vectors = read_vectors(self.path / "items.bin", self.manifest["blocks"][: len(widths)])
        return form_from(self.manifest, self._arrays, vectors, widths)

    def scorer(self) -> "Program":
        """The program that scores; raises BundleError where this version does not know it."""
        from recsys.serving.forms import open_form

        return open_form(self.form)


def _read_manifest(folder: Path, again: str) -> dict[str, Any]:
    """manifest.json with all that opening needs; raises BundleError where it is missing or damaged."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            "not a bundle (no manifest.json)", where=folder, fix="give the folder that recsys run names"
        ) from None
    except ValueError as error:
        raise BundleError(f"manifest.json is damaged ({error})", where=folder, fix=again) from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version != FORMAT_VERSION:  # it may have other keys
        fix = (
            "upgrade recsys" if version > FORMAT_VERSION else "make it again: recsys run does what is missing"
        )
        raise BundleError(
            f"format version {version}", where=folder / "manifest.json", expected=str(FORMAT_VERSION), fix=fix
        )
    kinds = {"format_version": int, "files": dict, "recipe": dict, "counts": dict, "blocks": list}
    for key in ("format_version", "files", "bundle_id", "package_version", *DESCRIBED):
        right = isinstance(manifest, dict) and key in manifest
        if not right or not isinstance(manifest[key], kinds.get(key, object)):
            raise BundleError(f"manifest.json is damaged ({key})", where=folder, fix=again)
    return manifest


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BundleError(f"cannot be read ({error})", where=path) from None
