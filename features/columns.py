"""One column to one typed field: fitted on some rows, applied to any, described by plain JSON."""

import hashlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from recsys.errors import FeatureError

if TYPE_CHECKING:
    from recsys.features.metadata import ColumnConfig

_QUANTILES = 101


@dataclass(frozen=True)
class ColumnEncoder:
    """kind and how say what is done with `column`.

    vocabulary: value of code 1, 2, ...; size: number of codes, 0 = unseen included. edges: quantiles of the fitted
    values; mean, deviation: of the (logarithms of the) fitted values.
    """

    column: str
    kind: Literal["categorical", "multi", "numeric"]
    how: Literal["vocabulary", "hashed", "month", "quantile", "log", "standard"]
    size: int = 0
    vocabulary: list[str] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)
    mean: float = 0.0
    deviation: float = 1.0
    date: bool = False

    @classmethod
    def fit(
        cls, column: str, values: pl.Series, config: "ColumnConfig", *, where: str
    ) -> "dict[str, ColumnEncoder]":
        """The encoders of the column's fields by field name. Raises FeatureError where the type does not fit."""
        _check(column, values.dtype, config.kind, where)
        if config.kind == "hashed":
            return {column: cls(column, "categorical", "hashed", size=config.buckets + 1)}
        if config.kind in ("categorical", "multi"):
            counts = _texts(values).explode().drop_nulls().value_counts(name="rows")
            kept = counts.filter(pl.col("rows") >= config.min_count)
            kept = kept.sort("rows", column, descending=[True, False]).head(config.max_values)
            vocabulary = sorted(kept[column].to_list())
            return {column: cls(column, config.kind, "vocabulary", len(vocabulary) + 1, vocabulary)}
        encoder = cls(column, "numeric", config.scale, date=config.kind == "date")
        numbers = encoder._numbers(values).drop_nulls().to_numpy()
        found = asdict(encoder)
        if config.scale == "quantile" and len(numbers):
            found["edges"] = np.quantile(numbers, np.linspace(0, 1, _QUANTILES)).tolist()
        elif len(numbers):
            found["mean"], found["deviation"] = float(numbers.mean()), float(numbers.std()) or 1.0
        fields = {column: cls(**found)}
        if config.kind == "date":
            fields[f"{column}.month"] = cls(column, "categorical", "month", size=13, date=True)
        return fields

    def __call__(self, values: pl.Series) -> pl.Series:
        """Codes or scaled numbers, null where the value is missing."""
        if values.dtype == pl.Null:
            kinds = {"numeric": pl.Float32, "categorical": pl.Int64, "multi": pl.List(pl.Int64)}
            return values.cast(kinds[self.kind])
        if self.how == "month":
            return _dates(values).dt.month().cast(pl.Int64)
        if self.kind == "numeric":
            return self._scaled(self._numbers(values))
        texts = _texts(values)
        if self.how == "hashed":
            return texts.map_elements(self._bucket, return_dtype=pl.Int64)
        codes = pl.Series(range(1, self.size), dtype=pl.Int64)
        known = pl.element() if self.kind == "multi" else pl.col(self.column)
        if self.size == 1:  # nothing was seen in training
            coded = pl.when(known.is_not_null()).then(pl.lit(0, pl.Int64))
        else:
            seen = known.replace_strict(self.vocabulary, codes, default=0, return_dtype=pl.Int64)
            coded = pl.when(known.is_not_null()).then(seen)
        frame = pl.DataFrame({self.column: texts})
        if self.kind == "categorical":
            return frame.select(coded).to_series()
        lists = pl.col(self.column).list.eval(coded.drop_nulls().unique().sort())
        return frame.select(pl.when(pl.col(self.column).list.len() > 0).then(lists)).to_series()

    def _numbers(self, values: pl.Series) -> pl.Series:
        if self.date:
            numbers = _dates(values).dt.epoch("d").cast(pl.Float64)
        else:
            numbers = values.cast(pl.Float64)
            numbers = numbers.set(~numbers.is_finite(), None)  # NaN and infinity are no numbers
        return numbers.sign() * (numbers.abs() + 1).log() if self.how == "log" else numbers

    def _scaled(self, numbers: pl.Series) -> pl.Series:
        values = numbers.fill_null(0.0).to_numpy()
        if self.how == "quantile":
            scaled = _place(values, np.asarray(self.edges)) if self.edges else np.zeros(len(values))
        else:
            scaled = (values - self.mean) / self.deviation
        return pl.Series(np.where(numbers.is_null().to_numpy(), np.nan, scaled), dtype=pl.Float32).fill_nan(
            None
        )

    def _bucket(self, text: str) -> int:
        """The same on every machine: Python's own hash of a text differs from process to process."""
        digest = hashlib.sha256(text.encode()).digest()
        return 1 + int.from_bytes(digest[:8], "big") % (self.size - 1)

    def state(self) -> dict[str, Any]:
        """JSON that `from_state` takes; kind and size are what a FieldTable reads."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ColumnEncoder":
        return cls(**state)


def _place(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Place among the fitted values, -1 to 1; equal fitted values share the middle of their places."""
    ranks = np.linspace(-1, 1, len(edges))
    distinct, first, counts = np.unique(edges, return_index=True, return_counts=True)
    middle = (ranks[first] + ranks[first + counts - 1]) / 2
    return np.interp(values, distinct, middle, left=-1, right=1)


def _texts(values: pl.Series) -> pl.Series:
    """Values, or lists of values, as text without blank ones."""
    if isinstance(values.dtype, pl.List):
        texts = values.cast(pl.List(pl.String)).to_frame("v")
        return texts.select(
            pl.col("v")
            .list.eval(pl.element().filter(pl.element().str.strip_chars() != ""))
            .alias(values.name)
        ).to_series()
    texts = values.cast(pl.String)
    return texts.set(texts.str.strip_chars() == "", None)


def _dates(values: pl.Series) -> pl.Series:
    """Dates; text is read as ISO 8601, what cannot be read is missing."""
    if values.dtype == pl.String:
        return values.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
    return values.cast(pl.Date)


def _check(column: str, dtype: pl.DataType, kind: str, where: str) -> None:
    fits = {
        "categorical": not dtype.is_nested(),
        "hashed": not dtype.is_nested(),
        "multi": isinstance(dtype, pl.List) and not dtype.inner.is_nested(),
        "numeric": dtype.is_numeric() or dtype == pl.Boolean,
        "date": isinstance(dtype, pl.Date | pl.Datetime) or dtype == pl.String,
    }
    if not fits[kind] and dtype != pl.Null:
        expected = [name for name, fit in fits.items() if fit]
        raise FeatureError(
            f"column {column!r} has type {dtype}, which cannot be {kind}",
            where=where,
            expected=" or ".join(expected) or "a simpler type",
        )
