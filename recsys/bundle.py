"""Bundle: everything serving needs in one verified folder, without torch and without pickle.

manifest.json        versions, recipe, fingerprints, split, sha256 of every file, bundle_id
weights.safetensors  the serving form's arrays, item counts
items.bin            item vectors, one contiguous [I, increment] block per width: the head of the file
                     is the narrower model; in int8 each block's codes follow its own scale per row
items.parquet        ids and display columns in catalogue order
users.parquet        ids, and the newest events of each user as item indices and times
popularity.safetensors   how often each item was taken on each day up to the cut, where the data has times
generator.NAME.safetensors, ranker.txt, ranker.safetensors   the second stage, where there is one: generators' forms,
                     LightGBM's text form, and what its features are made of
thumbnails.parquet   small pictures by item index, where they were asked for
LICENCE.txt          of the data
reports/             metrics; outside bundle_id
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import polars as pl
from safetensors.numpy import save

from recsys import schema
from recsys.errors import BundleError
from recsys.files import digest, file_sha256, new_folder, write_json
from recsys.item_blocks import VectorType, block_bytes, read_block, write_vectors
from recsys.popularity import Popularity
from recsys.schema import Form, Ragged, legal_width
from recsys.stored_form import form_arrays, form_facts, form_from, read_arrays, read_form, write_form
from recsys.two_stage import Ranker

if TYPE_CHECKING:
    from recsys.serving.forms import Program

FORMAT_VERSION = 2
_COUNTS = "item_counts"
_DESCRIBED = (
    "model", "program", "meta", "widths", "blocks", "id_type", "split_id", "last_event", "recipe", "fingerprints",
    "flags", "counts", "encoding", "content", "generators", "ranker",
)  # fmt: skip
"""What bundle_id covers besides the hashes of the files."""
_OUTSIDE = ("name", "data", "evaluate", "track")
"""Parts of the recipe that bundle_id leaves out: what the run is called, where data and records lie (the data is named
by its fingerprint), and how the result is judged."""


@dataclass(frozen=True)
class BundleContent:
    """What a bundle is written from.

    items: ids and display columns, one row per catalogue item in index order. users: user_id, items (list of
    indices), times (list of UTC seconds), or None to ship nobody's history. item_counts_I: interactions of the
    fitted rows, the popularity that serving falls back on. vectors: how the item vectors are stored. exported_from:
    bundle_id and width, where this is a part of another bundle; not covered by bundle_id. popularity: of the rows up to
    the cut. content: feature table -> how its rows come about, for items added later (see `recsys.serving.content`).
    thumbnails: item index -> JPEG. ranker, and generators (name -> (registered model, form)) for all that it names: the
    second stage.
    """

    model: str
    form: Form
    items: pl.DataFrame
    item_counts_I: np.ndarray
    users: pl.DataFrame | None
    id_type: Mapping[str, str]
    split_id: str
    last_event: int
    recipe: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, bool] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    licence_text: str | None = None
    mlflow_run_id: str | None = None
    reports: Mapping[str, Any] = field(default_factory=dict)
    vectors: VectorType = "float32"
    exported_from: Mapping[str, Any] | None = None
    popularity: Popularity | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    thumbnails: Mapping[int, bytes] = field(default_factory=dict)
    ranker: Ranker | None = None
    generators: Mapping[str, tuple[str, Form]] = field(default_factory=dict)


def write_bundle(folder: Path, content: BundleContent) -> "Bundle":
    """Write beside, rename, open. Raises BundleError where the form does not fit the items."""
    form, size = content.form, len(content.items)
    if len(content.item_counts_I) != size or (
        form.item_vectors_ID is not None and len(form.item_vectors_ID) != size
    ):
        raise BundleError("items, counts and vectors differ in length", where=folder, expected=f"{size} rows")
    if content.vectors not in get_args(VectorType):
        raise BundleError(f"vectors {content.vectors!r}", expected=" or ".join(get_args(VectorType)))
    if content.vectors == "int8" and form.item_vectors_ID is None:
        raise BundleError(f"the model {content.model!r} has no item vectors to store as int8", where=folder)
    with new_folder(folder) as target:
        arrays = form_arrays(form) | {_COUNTS: content.item_counts_I.astype(np.int64)}
        (target / "weights.safetensors").write_bytes(save(arrays))
        blocks = write_vectors(target / "items.bin", form, content.vectors)
        content.items.write_parquet(target / "items.parquet")
        if content.users is not None:
            content.users.write_parquet(target / "users.parquet")
        if content.popularity is not None:
            (target / "popularity.safetensors").write_bytes(save(content.popularity.arrays()))
        if content.thumbnails:
            pictures = pl.DataFrame(list(content.thumbnails.items()), ["item", "jpeg"], orient="row")
            pictures.write_parquet(target / "thumbnails.parquet")
        if content.ranker is not None:
            _write_second_stage(target, content)
        if content.licence_text:
            (target / "LICENCE.txt").write_text(content.licence_text, encoding="utf-8")
        files = {path.name: file_sha256(path) for path in sorted(target.iterdir())}
        described = {
            "model": content.model,
            **form_facts(form),
            "blocks": blocks,
            "id_type": dict(content.id_type),
            "split_id": content.split_id,
            "last_event": int(content.last_event),
            "recipe": dict(content.recipe),
            "fingerprints": dict(content.fingerprints),
            "flags": dict(content.flags),
            "counts": {"items": size, "users": 0 if content.users is None else len(content.users)},
            "content": dict(content.content),
            "generators": [
                {"name": name, "model": model, "own": one is not form} | form_facts(one)
                for name, (model, one) in content.generators.items()
            ],
            "ranker": None if content.ranker is None else content.ranker.settings(),
        }
        manifest = described | {
            "format_version": FORMAT_VERSION,
            "package_version": _package_version(),
            "files": files,
            "bundle_id": _identity(described, files),
            "source": content.source,
            "licence": content.licence,
            "mlflow_run_id": content.mlflow_run_id,
            "exported_from": None if content.exported_from is None else dict(content.exported_from),
        }
        write_json(target / "manifest.json", manifest)
        (target / "reports").mkdir()
        for name, report in content.reports.items():
            write_json(target / "reports" / f"{name}.json", report)
    return Bundle.open(folder)


def _write_second_stage(target: Path, content: BundleContent) -> None:
    ranker = content.ranker
    lacking = [name for name in ranker.generators if name not in content.generators]
    if lacking:
        raise BundleError(f"the ranker's generator {lacking[0]!r} has no form", where=target)
    arrays = {name: np.ascontiguousarray(value) for name, value in ranker.arrays().items()}
    (target / "ranker.safetensors").write_bytes(save(arrays))
    (target / "ranker.txt").write_text(ranker.trees.text, encoding="utf-8")
    for name, (_, form) in content.generators.items():
        if form is not content.form:
            write_form(target / f"generator.{name}.safetensors", form)


def _identity(manifest: Mapping[str, Any], files: Mapping[str, str]) -> str:
    described = {key: manifest[key] for key in _DESCRIBED}
    recipe = {key: value for key, value in manifest["recipe"].items() if key not in _OUTSIDE}
    return digest({"described": described | {"recipe": recipe}, "files": files})


def _package_version() -> str:
    from importlib.metadata import version

    return version("recsys")


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
        if verify and _identity(manifest, manifest["files"]) != manifest["bundle_id"]:
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
            ("weights.safetensors", "items", len(self._arrays.get(_COUNTS, ()))),
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
        if self.users is None:
            return Ragged.empty(0)
        lengths = self.users["items"].list.len().to_numpy().astype(np.int64)
        return Ragged.from_lengths(
            self.users["items"].explode().drop_nulls().to_numpy().astype(np.int64), lengths
        )

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
        return self._arrays[_COUNTS]

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
            with open(self.path / "items.bin", "rb") as handle:
                parts = [read_block(handle, block) for block in self.manifest["blocks"][: len(widths)]]
            vectors = np.concatenate(parts, axis=1)
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
    for key in ("format_version", "files", "bundle_id", "package_version", *_DESCRIBED):
        right = isinstance(manifest, dict) and key in manifest
        if not right or not isinstance(manifest[key], kinds.get(key, object)):
            raise BundleError(f"manifest.json is damaged ({key})", where=folder, fix=again)
    return manifest


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BundleError(f"cannot be read ({error})", where=path) from None


def user_histories(log: schema.Log, user_ids: pl.Series, keep: int) -> pl.DataFrame | None:
    """The newest `keep` events of every user as a frame for BundleContent; None where keep is 0."""
    if keep == 0:
        return None
    newest = log.sequences.tail(keep)
    times = Ragged(log.time_N, newest.starts, newest.ends)
    lengths = newest.lengths
    columns = {}
    for name, ragged in {"items": newest, "times": times}.items():
        flat = pl.Series(ragged.flat()[1])
        rows = pl.Series(np.repeat(np.arange(len(lengths)), lengths))
        grouped = pl.DataFrame({"row": rows, name: flat}).group_by("row", maintain_order=True).agg(name)
        every = pl.DataFrame({"row": np.arange(len(lengths))})
        empty = pl.lit([], pl.List(pl.Int64))
        joined = every.join(grouped, on="row", how="left", maintain_order="left")
        columns[name] = joined[name].to_frame().select(pl.col(name).fill_null(empty)).to_series()
    return pl.DataFrame({schema.USER: user_ids, **columns})
