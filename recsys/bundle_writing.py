"""Writing a bundle: see `recsys.bundle` for what lies in it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from safetensors.numpy import save

from recsys import schema
from recsys.bundle import COUNTS, ENCODERS, FORMAT_VERSION, Bundle, histories_of, identity, read_vectors
from recsys.errors import BundleError, ModelError
from recsys.files import file_sha256, new_folder, write_json
from recsys.item_blocks import VectorType, write_vectors
from recsys.popularity import Popularity
from recsys.schema import Form, Queries, Ragged
from recsys.stored_form import form_arrays, form_facts, write_form
from recsys.two_stage import Ranker

IndexKind = Literal["auto", "none", "always"]
_QUESTIONS = 200
"""Users whose questions an index is measured by."""


@dataclass(frozen=True)
class BundleContent:
    """What a bundle is written from.

    items: ids and display columns, one row per catalogue item in index order. users: user_id, items (list of
    indices), times (list of UTC seconds), or None to ship nobody's history. item_counts_I: interactions of the
    fitted rows, the popularity that serving falls back on. vectors: how the item vectors are stored. states: most users
    whose state in a recurrent model goes along. index: an approximate index of the item vectors; auto: of large
    catalogues, where Faiss is installed and the index finds enough. exported_from:
    bundle_id and width, where this is a part of another bundle; not covered by bundle_id. popularity: of the rows up to
    the cut. content: feature table -> how its rows come about, for items added later (see `recsys.serving.content`).
    encoders: TABLE/FILE -> content, of what makes rows of tables that stand on others.
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
    states: int = 20_000
    index: IndexKind = "auto"
    exported_from: Mapping[str, Any] | None = None
    popularity: Popularity | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    encoders: Mapping[str, bytes] = field(default_factory=dict)
    thumbnails: Mapping[int, bytes] = field(default_factory=dict)
    ranker: Ranker | None = None
    generators: Mapping[str, tuple[str, Form]] = field(default_factory=dict)


def write_bundle(folder: Path, content: BundleContent) -> "Bundle":
    """Write beside, rename, open. Raises BundleError where the form does not fit the items, or where an index that has
    to be there cannot be."""
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
        arrays = form_arrays(form) | {COUNTS: content.item_counts_I.astype(np.int64)}
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
        for name, data in content.encoders.items():
            path = target / ENCODERS / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        if content.ranker is not None:
            _write_second_stage(target, content)
        if content.users is not None and content.states:
            _write_states(target, content, blocks)
        reports = dict(content.reports) | _write_index(target, content)
        if content.licence_text:
            (target / "LICENCE.txt").write_text(content.licence_text, encoding="utf-8")
        files = {
            path.relative_to(target).as_posix(): file_sha256(path)
            for path in sorted(target.rglob("*"))
            if path.is_file()
        }
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
            "bundle_id": identity(described, files),
            "source": content.source,
            "licence": content.licence,
            "mlflow_run_id": content.mlflow_run_id,
            "exported_from": None if content.exported_from is None else dict(content.exported_from),
        }
        write_json(target / "manifest.json", manifest)
        (target / "reports").mkdir()
        for name, report in reports.items():
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


def _write_states(target: Path, content: BundleContent, blocks: list[Mapping[str, Any]]) -> None:
    from recsys.serving.forms import open_form
    from recsys.serving.mixers import MIXERS
    from recsys.serving.user_states import states_of, stepping

    form = content.form
    if content.vectors != "float32":  # histories are read from the rounded vectors
        form = replace(form, item_vectors_ID=read_vectors(target / "items.bin", blocks))
    forms = {name: one if one is not content.form else form for name, (_, one) in content.generators.items()}
    if all(one is not form for one in forms.values()):
        forms[content.model] = form
    histories = histories_of(content.users)
    last_U = content.users["times"].list.max().fill_null(0).to_numpy()
    networks = {name: open_form(one) for name, one in forms.items() if one.program in MIXERS}
    for name, program in stepping(networks).items():
        arrays = states_of(program, histories, last_U, content.states)
        if len(arrays["rows"]):
            (target / f"states.{name}.safetensors").write_bytes(save(arrays))


def _write_index(target: Path, content: BundleContent) -> dict[str, Any]:
    """The index where there is to be one; a report of it where it was tried."""
    from recsys.serving import index
    from recsys.serving.forms import VectorProgram, open_form

    form, wanted = content.form, content.index == "always"
    there = find_spec("faiss") is not None
    if content.index == "none" or not (wanted or (there and len(content.items) > index.EXACT_UP_TO)):
        return {}
    if not there:
        raise BundleError('bundle.index = "always"', expected="Faiss", fix="pip install 'recsys[ann]'")
    program = open_form(form)
    if not isinstance(program, VectorProgram):
        raise BundleError(f"the model {content.model!r} has no item vectors to index", where=target)
    queries_QD = program.scale(form.widths[-1]) * program.query_vectors(_questions(content))
    faiss = import_module("faiss")
    try:
        built, facts = index.build(faiss, form, queries_QD)
    except ModelError as error:
        if wanted:
            raise BundleError(str(error), where=target) from None
        return {"index": {"shipped": False, "why": str(error)}}
    faiss.write_index(built, str(target / index.FILE))
    write_json(target / index.FACTS, asdict(facts))
    return {"index": {"shipped": True} | asdict(facts)}


def _questions(content: BundleContent) -> Queries:
    """Those of some users as they would ask now; of histories of one item where users stay at home."""
    rng = np.random.default_rng(0)
    if content.users is None or not len(content.users):
        return Queries.of([[item] for item in rng.integers(len(content.items), size=_QUESTIONS)])
    rows = rng.permutation(len(content.users))[:_QUESTIONS]
    histories = histories_of(content.users)
    return Queries.of([histories[row] for row in rows], rows)


def _package_version() -> str:
    from importlib.metadata import version

    return version("recsys")


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
