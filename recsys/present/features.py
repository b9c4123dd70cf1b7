"""What `recsys features` shows. Answers go to stdout, progress to stderr."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from recsys import schema
from recsys.config import override
from recsys.dataset import Dataset
from recsys.errors import ConfigError, FeatureError, nearest
from recsys.features.duplicates import Groups, equal_content, near_equal
from recsys.features.extract import Engine, Summary
from recsys.features.field_table import FieldTable, load_table
from recsys.features.makers import Made, default_folder, make_tables, stored_settings
from recsys.features.show import neighbours, norms, parse_id
from recsys.features.table import FeatureTable, Table
from recsys.splits import Split

out, err = Console(), Console(stderr=True)
_SHOWN_GROUPS, _SHOWN_ROWS, _SHOWN_VALUE = 5, 5, 100


def extract(
    folder: Path,
    asked: Mapping[str, dict[str, Any]],
    encoder: str | None,
    settings: list[str],
    entity: str,
    split: Path | None,
    to: Path | None,
    engine: Engine,
    workers: int | None,
) -> None:
    """Make the tables, a line on stderr for each as it is done, then one summary of all. encoder: MODEL:RUN, a trained
    embedder, whose table is made with those that it stands on."""
    dataset = Dataset.open(folder)
    to = default_folder(dataset) if to is None else to
    if encoder is not None:
        from recsys.present.embedders import with_embedder

        asked = with_embedder(asked, encoder, stored_settings(to))
    tables = _tables(asked, settings, entity)
    opened = None if split is None else Split.load(split)
    made = []
    for one in make_tables(dataset, tables, to, split=opened, engine=engine, workers=workers):
        err.print(f"[green]ok[/]  {escape(str(one.folder))}", soft_wrap=True)
        made.append(one)
    out.print(_summary(made))
    for one in made:
        if one.summary is not None and one.summary.offenders:
            _print_offenders(one.name, one.summary)


def _print_offenders(name: str, found: Summary) -> None:
    more = found.unreadable + found.left_out - len(found.offenders)
    named = "; ".join(found.offenders) + (f"; and {more:,} more" if more > 0 else "")
    rest = f" ({found.left_out:,} of rows that have others, too)" if found.left_out else ""
    out.print(f"unreadable in {name}{rest}: {escape(named)}", soft_wrap=True)


def _tables(
    asked: Mapping[str, dict[str, Any]], settings: list[str], entity: str
) -> dict[str, dict[str, Any]]:
    tables = override(dict(asked), settings)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ConfigError(
                f"--set {name}={table}", expected="TABLE.key=value", fix="e.g. --set text.batch_size=32"
            )
        if "kind" not in table:
            kind = f"give its kind: --set {name}.kind=..."
            raise ConfigError(
                f"--set names table {name!r}, which is not asked for",
                fix=f"{nearest(name, asked)} or {kind}" if asked else kind,
            )
        table.setdefault("entity", entity)
    if not tables:
        raise ConfigError("nothing to extract", expected="--image NAME, --text NAME or --metadata")
    return tables


def _summary(made: list[Made]) -> Grid:
    """A column a table, so that it fits a terminal of 80 characters."""
    columns = [_facts(one) for one in made]
    grid = Grid(title="feature tables")
    grid.add_column("")
    for one in made:
        grid.add_column(one.name, justify="right")
    for fact in columns[0]:
        grid.add_row(fact, *(escape(column[fact]) for column in columns))
    return grid


def _facts(one: Made) -> dict[str, str]:
    table, found = one.table, one.summary
    rows, present = len(table.ids), int(table.present_E.sum())
    missing, unreadable, encoded, speed = rows - present, 0, "fitted", "-"
    if found is not None:
        missing, unreadable, encoded = found.missing, found.unreadable, f"{found.encoded:,}"
        speed = f"{found.encoded / found.seconds:,.0f}" if found.encoded else "-"
    return {
        "rows": f"{rows:,}",
        "present": f"{present:,}",
        "missing": f"{missing:,}",
        "unreadable": f"{unreadable:,}",
        "newly encoded": encoded,
        "rows a second": speed,
        "encoder": str(table.manifest.get("encoder", table.manifest["extractor"])),
        "width": _width(table),
        "fingerprint": table.fingerprint[:12],
    }


def _width(table: Table) -> str:
    if isinstance(table, FieldTable):
        return f"fields: {len(table.frame.columns)}"
    assert isinstance(table, FeatureTable)
    return f"{table.width:,}"


def show(folder: Path, item: str | None, k: int, dataset: Path | None, near: float) -> None:
    table = load_table(folder)
    titles = _titles(table, None if dataset is None else Dataset.open(dataset))
    chosen = None if item is None else parse_id(table, item)
    like: list[tuple[int | str, float]] = []
    if chosen is not None:  # all that can be refused comes before the first line
        if not isinstance(table, FeatureTable):
            raise FeatureError(
                "a table of fields has no neighbours", where=folder, expected="a table of vectors"
            )
        like = neighbours(table, chosen, k)
    out.print(_manifest(folder, table))
    if isinstance(table, FieldTable):
        out.print(_fields(table))
    elif isinstance(table, FeatureTable):
        _print_norms(table)
    _print_groups("equal content", equal_content(table), table, titles)
    if isinstance(table, FeatureTable) and near:
        near_groups = near_equal(table, near)
        _print_groups(f"different content, cosine of {near:g} or more", near_groups, table, titles)
    if chosen is not None:
        grid = Grid(title=f"nearest to {_named(chosen, titles)}")
        for heading in ("", table.entity, "title", "cosine"):
            grid.add_column(heading)
        for place, (other, cosine) in enumerate(like, start=1):
            grid.add_row(str(place), escape(str(other)), escape(titles.get(other) or ""), f"{cosine:.4f}")
        out.print(grid)


def _manifest(folder: Path, table: Table) -> Grid:
    grid = Grid(title=escape(str(folder)), show_header=False)
    present, rows = int(table.present_E.sum()), len(table.ids)
    lines = {"table": f"{table.name}, of {table.entity}s", "rows": f"{rows:,}, ids {table.ids.dtype}"}
    lines["present"] = f"{present:,}" + (f" ({_share(present, rows)})" if rows else "")
    lines["width"] = _width(table)
    lines |= {name: _short(value) for name, value in table.manifest.items() if name != "fields"}
    for name, value in (lines | {"fingerprint": table.fingerprint}).items():
        grid.add_row(escape(name), escape(value))
    return grid


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN_VALUE else f"{text[:_SHOWN_VALUE]}..."


def _share(part: int, whole: int) -> str:
    """Only what is complete reads 100 %, and only what is not there 0 %."""
    share = part / whole
    return f"{min(max(share, 0.001), 0.999) if 0 < share < 1 else share:.1%}"


def _fields(table: FieldTable) -> Grid:
    grid = Grid(title="fields")
    for heading in ("field", "kind", "codes", "present"):
        grid.add_column(heading)
    for name, described in table.manifest["fields"].items():
        present = len(table.ids) - table.frame[name].null_count()
        size = described.get("size")
        share = f"{present:,} ({_share(present, len(table.ids))})" if len(table.ids) else "0"
        grid.add_row(escape(name), described["kind"], "" if size is None else f"{size:,}", share)
    return grid


def _print_norms(table: FeatureTable) -> None:
    found = norms(table)
    if found is None:
        out.print("norms: no row is present")
        return
    out.print(f"norms: {found.least:.4g} least, {found.median:.4g} median, {found.greatest:.4g} greatest")
    if len(found.zero_rows):
        first = ", ".join(str(table.ids[int(row)]) for row in found.zero_rows[:_SHOWN_ROWS])
        out.print(f"rows of zeros: {len(found.zero_rows):,} (first: {escape(first)})", soft_wrap=True)
    if len(found.constant):
        first = ", ".join(map(str, found.constant[:_SHOWN_ROWS]))
        out.print(f"columns with one value all over: {len(found.constant):,} (first: {first})")


def _print_groups(what: str, groups: Groups, table: Table, titles: Mapping[int | str, str | None]) -> None:
    rows = sum(map(len, groups.rows))
    out.print(f"{what}: {groups.pairs:,} pairs, {rows:,} {table.entity}s in {len(groups.rows):,} groups")
    for group in groups.rows[:_SHOWN_GROUPS]:
        named = "; ".join(_named(table.ids[int(row)], titles) for row in group[:_SHOWN_ROWS])
        more = f"; and {len(group) - _SHOWN_ROWS:,} more" if len(group) > _SHOWN_ROWS else ""
        out.print(f"  {len(group):,}: {named}{more}", soft_wrap=True)


def _named(row_id: int | str, titles: Mapping[int | str, str | None]) -> str:
    """Markup."""
    title = titles.get(row_id)
    return escape(str(row_id) if title is None else f"{title} [{row_id}]")


def _titles(table: Table, dataset: Dataset | None) -> dict[int | str, str | None]:
    """By id; nothing where no Dataset is given. Raises ConfigError where it is not the table's."""
    if dataset is None:
        return {}
    if table.entity != "item":
        raise ConfigError(
            "--dataset gives titles of items", where=table.name, expected=f"none for {table.entity}s"
        )
    items = dataset.items
    if items[schema.ITEM].dtype != table.ids.dtype:
        raise ConfigError(
            f"item ids are {items[schema.ITEM].dtype}",
            where=dataset.path,
            expected=f"{table.ids.dtype}, as in the table",
        )
    return dict(zip(items[schema.ITEM].to_list(), items[schema.TITLE].to_list(), strict=True))
