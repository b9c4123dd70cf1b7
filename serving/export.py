"""A width of a bundle as something of its own: a bundle, vectors for an index, or ONNX graphs. No torch.

Every format is a folder that appears whole or not at all; an older one under its name is replaced.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from recsys import schema
from recsys.bundle import Bundle
from recsys.bundle_writing import BundleContent, write_bundle
from recsys.errors import BundleError
from recsys.files import file_sha256, new_folder, write_json
from recsys.item_blocks import VectorType
from recsys.schema import Form
from recsys.serving.onnx_graph import encode_model, step_model


def export_bundle(bundle: Bundle, folder: Path, width: int | None, vectors: VectorType = "float32") -> Bundle:
    """A narrower bundle, served as any other. Its reports are left behind: they speak of the full width.

    vectors: "int8" stores a byte a value and a scale per row and increment; the model then reads its histories from the
    rounded vectors too. Raises ModelError for a width the model lacks, BundleError where there are no vectors to round.
    """
    manifest = bundle.manifest
    form = bundle.scorer().cut(width)
    text = bundle.path / "LICENCE.txt"
    content = BundleContent(
        model=manifest["model"],
        form=form,
        items=bundle.items,
        item_counts_I=bundle.item_counts_I,
        users=bundle.users,
        licence_text=text.read_text(encoding="utf-8") if text.name in manifest["files"] else None,
        vectors=vectors,
        index="always" if bundle.index else "none",
        states=max((len(arrays["rows"]) for arrays in bundle.states.values()), default=0),
        popularity=bundle.popularity,
        content=manifest["content"],
        encoders=bundle.encoder_files,
        thumbnails=bundle.thumbnails,
        **_second_stage(bundle, form),
        exported_from={"bundle_id": bundle.id, "width": form.widths[-1] if form.widths else None},
        **{
            key: manifest[key]
            for key in (
                "id_type", "split_id", "last_event", "recipe", "fingerprints", "flags", "source", "licence",
                "mlflow_run_id",
            )
        },
    )  # fmt: skip
    return write_bundle(folder, content)


def _second_stage(bundle: Bundle, form: Form) -> dict[str, Any]:
    """Ranker and generators, for a full-width bundle: the trees were learnt from full-width scores."""
    if bundle.ranker is None or form.widths != tuple(bundle.manifest["widths"]):
        return {}
    models = {entry["name"]: entry["model"] for entry in bundle.manifest["generators"]}
    return {
        "ranker": bundle.ranker,
        "generators": {name: (models[name], one) for name, one in bundle.generators.items()},
    }


def export_vectors(bundle: Bundle, folder: Path, width: int | None) -> None:
    """What a vector store takes: vectors-WIDTH.npy [I, D] float32, biases.npy [I], ids.parquet, index.json.

    Row r of each belongs to row r of ids.parquet. The score of a query vector q is scale * q . vectors[r] + biases[r]
    (+ repeat, for an item of the own history); in an inner-product index the bias can be one more column, against
    1 / scale in the query. Raises ModelError for a width the model lacks, BundleError for a model without vectors.
    """
    form = _with_vectors(bundle, width)
    with new_folder(folder) as target:
        np.save(target / f"vectors-{form.widths[-1]}.npy", form.item_vectors_ID.astype("<f4"))
        np.save(target / "biases.npy", form.item_bias_I.astype("<f4"))
        _write_index(target, bundle, form, {"metric": "inner_product"})


def export_onnx(onnx: ModuleType, bundle: Bundle, folder: Path, width: int | None) -> None:
    """step.onnx, encode.onnx (see `recsys.serving.onnx_graph`), ids.parquet, index.json.

    An item is the number of its row in ids.parquet. onnx: the module. Raises ModelError for a width the model lacks
    or a model without such graphs, BundleError for one without vectors.
    """
    form = _with_vectors(bundle, width)
    models = {"step.onnx": step_model(onnx, form), "encode.onnx": encode_model(onnx, form)}
    with new_folder(folder) as target:
        for name, model in models.items():
            (target / name).write_bytes(model.SerializeToString())
        _write_index(target, bundle, form, {"blocks": int(form.meta["blocks"])})


def _with_vectors(bundle: Bundle, width: int | None) -> Form:
    form = bundle.scorer().cut(width)
    if form.item_vectors_ID is None:
        raise BundleError(
            f"the model {bundle.manifest['model']!r} has no item vectors", where=bundle.path,
            fix="export it with --format bundle",
        )  # fmt: skip
    return form


def _write_index(target: Path, bundle: Bundle, form: Form, more: Mapping[str, Any]) -> None:
    """ids.parquet, and index.json: what the other files are, and what scoring needs besides."""
    bundle.items.select(schema.ITEM).write_parquet(target / "ids.parquet")
    scales_K, repeat = form.arrays.get("scales"), form.arrays.get("repeat")
    index = {
        "bundle_id": bundle.id,
        "model": bundle.manifest["model"],
        "items": len(bundle.items),
        "width": form.widths[-1],
        "scale": 1.0 if scales_K is None else float(scales_K[-1]),
        "repeat": None if repeat is None else repeat.tolist(),
        "files": {path.name: file_sha256(path) for path in sorted(target.iterdir())},
    }
    write_json(target / "index.json", index | dict(more))
