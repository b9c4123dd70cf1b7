"""`recsys features`: raw content to feature tables, and a look at what is in one."""

from pathlib import Path
from typing import Annotated

import typer

from recsys.errors import ConfigError

features_app = typer.Typer(
    help="Feature tables.\n\nExample: recsys features extract my-dataset --text minilm",
    no_args_is_help=True,
)


@features_app.command("extract")
def extract(
    dataset: Annotated[Path, typer.Argument(help="A Dataset folder.")],
    image: Annotated[
        str | None, typer.Option("--image", help="Image encoder: efficientnet_lite0, open_clip:..., ...")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", help="Text encoder: minilm, transformers:..., a model's folder, ..."),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help='Columns in braces, for --text: "{title}. {category}"')
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="A trained embedder, MODEL:RUN: neighbours:my-run, ...")
    ] = None,
    metadata: Annotated[bool, typer.Option("--metadata", help="Typed fields of the other columns.")] = False,
    split: Annotated[
        Path | None, typer.Option("--split", help="Split folder that fitted tables are fitted on.")
    ] = None,
    fit_on: Annotated[
        str, typer.Option("--fit-on", help="For --metadata: train, or all (a table for deployment).")
    ] = "train",
    entity: Annotated[str, typer.Option("--entity", help="Whose content: item or user.")] = "item",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A table's setting: --set text.batch_size=32; or a table of another kind."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the tables; default: DATASET-features.")
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="local, or ray (extra `scale`; $RAY_ADDRESS names a cluster).")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option("--workers", help="Processes that decode images; of --engine ray, actors.", min=0),
    ] = None,
) -> None:
    """Encode images, texts and metadata of a Dataset, one table each; what is encoded already is not encoded again.

    Examples:

      recsys features extract my-dataset --image efficientnet_lite0 --text minilm

      recsys features extract my-dataset --text minilm --template "{title}. {category}" --set text.batch_size=32

      recsys features extract my-dataset --metadata --split runs/boxes/split-1a2b3c4d5e6f

      recsys features extract my-dataset --encoder neighbours:my-run

      recsys features extract my-dataset --set words.kind=my_package.words:Words
    """
    _one_of("--entity", entity, ("item", "user"))
    _one_of("--engine", engine, ("local", "ray"))
    _one_of("--fit-on", fit_on, ("train", "all"))
    _needs("--template", template is not None, "--text", text is not None)
    _needs("--fit-on all", fit_on == "all", "--metadata", metadata)
    prefix = "" if entity == "item" else "user-"  # so that users and items fit into one folder
    asked: dict[str, dict] = {}
    if image is not None:
        asked[f"{prefix}image"] = {"kind": "image", "encoder": image}
    if text is not None:
        asked[f"{prefix}text"] = {"kind": "text", "encoder": text}
        if template is not None:
            asked[f"{prefix}text"]["template"] = template
    if metadata:
        asked[f"{prefix}metadata"] = {"kind": "metadata", "fit_on": fit_on}
    from recsys.present import features

    features.extract(dataset, asked, encoder, set_ or [], entity, split, out, engine, workers)


@features_app.command("learn")
def learn(
    dataset: Annotated[Path, typer.Argument(help="A Dataset folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run that is written.")],
    split: Annotated[
        Path | None, typer.Option("--split", help="Split folder whose train part pairs are counted on.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting: --set model=neighbours, train.epochs=3, pairs.top=5, ..."),
    ] = None,
    tables: Annotated[
        Path | None, typer.Option("--tables", help="Folder of feature tables; default: DATASET-features.")
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            "--teacher", help="A table of vectors, for config.hard_negatives or config.teacher_weight."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.", min=0)] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
) -> None:
    """Learn item embeddings from pairs of items; `features extract --encoder MODEL:RUN` makes them a table.

    Pairs are of items that the same users took (needs --split), or those that the Dataset lists.

    Tables that the model reads are made in --tables, as they lie there already. Models:

    notellm2: NoteLLM-2, a language model that reads the text and sees the picture.

    neighbours: an encoder of an item's tables, of the known items that resemble it, and of what those go with.

    frozen_head: a matrix, or with config.hidden a small network, over tables; with a teacher, a student of its vectors.

    Examples:

      recsys features learn my-dataset --out my-run --split runs/boxes/split-1a2b3c4d5e6f

      recsys features learn hm-items --out my-run --set model=neighbours --set pairs.source=pairs

      recsys features learn hm-items --out student --set model=frozen_head --set "config.hidden=[512]" --set
      config.teacher_weight=0.8 --teacher hm-items-features/notellm2 --set pairs.source=pairs
    """
    _one_of("--device", device, ("cpu", "cuda"))
    from recsys.present import embedders

    embedders.learn(dataset, out, split, set_ or [], tables, teacher, seed, device)


@features_app.command("show")
def show(
    table: Annotated[Path, typer.Argument(help="Folder of a feature table.")],
    item: Annotated[str | None, typer.Option("--item", help="An id: its nearest neighbours.")] = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours in the list.", min=1)] = 10,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", help="The Dataset, for titles beside the ids.")
    ] = None,
    near: Annotated[
        float,
        typer.Option("--near", help="Cosine that makes two contents duplicates; 0 = none is.", min=0, max=1),
    ] = 0.98,
) -> None:
    """What a feature table holds: manifest, coverage, norms, duplicates, and the nearest neighbours of an item.

    Examples:

      recsys features show my-dataset-features/text --dataset my-dataset

      recsys features show my-dataset-features/image --dataset my-dataset --item 0108775015 -k 5
    """
    from recsys.present import features

    features.show(table, item, k, dataset, near)


def _one_of(option: str, given: str, legal: tuple[str, ...]) -> None:
    if given not in legal:
        raise ConfigError(f"{option} {given!r}", expected=" or ".join(legal))


def _needs(option: str, given: bool, other: str, there: bool) -> None:
    if given and not there:
        raise ConfigError(f"{option} without {other}", fix=f"add {other}, or leave {option} out")
