"""MovieLens 100K, 1M, 10M, 20M, 25M, 32M and latest-small: ratings, titles, genres, plots and posters."""

import io
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import PrivateAttr

from recsys.dataset import Dataset
from recsys.errors import DataError
from recsys.sources.base import Source, data_root, find, need
from recsys.sources.obtain import movielens_100k
from recsys.sources.recbole import read_atomic

_LICENCE = """MovieLens data is made available by the GroupLens research group at the University of Minnesota for
research use. It may not be redistributed without permission nor used commercially without permission; publications
that use it acknowledge it by citing:
F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM Transactions on
Interactive Intelligent Systems 5, 4, Article 19. https://doi.org/10.1145/2827872
"""
_GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


class MovieLens(Source):
    """One of GroupLens's sets. Weight = the rating."""

    variant: Literal["100k", "1m", "10m", "20m", "25m", "32m", "latest-small"]
    """Which set."""
    root: str | None = None
    """Folder with its files; None = $RECSYS_DATA (100k: also the cache and the network)."""
    text: bool = True
    """Join plots where they are at hand."""
    images: bool = True
    """Join posters where they are at hand."""
    rated_five: bool = False
    """1m: keep only movies with five ratings or more, as LRURec's preprocessing does (its time order covers these)."""

    _origin: str = PrivateAttr("")

    def _folder(self) -> Path:
        if self.root is not None:
            self._origin = f"GroupLens ml-{self.variant}"
            return Path(self.root)
        if self.variant == "100k":
            folder, self._origin = movielens_100k()
            return folder
        name = f"ml-{self.variant}"
        self._origin = f"GroupLens {name}"
        root = data_root()
        if root is None or not (root / name).is_dir():
            raise DataError(
                f"{name} is not at hand",
                where=root or "$RECSYS_DATA",
                fix="download it from GroupLens, then data.root = FOLDER",
            )
        return root / name

    def _files(self) -> dict[str, Path]:
        folder = self._folder()
        if self.variant == "100k":
            atomic = (folder / "ml-100k.inter").is_file()
            names = (
                ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
                if atomic
                else ("u.data", "u.item", "u.user")
            )
            files = dict(zip(("ratings", "movies", "users"), (folder / name for name in names), strict=True))
        elif self.variant in ("1m", "10m"):
            restored = folder / "ratings.parquet"
            files = {
                "ratings": restored if restored.is_file() else folder / "ratings.dat",
                "movies": folder / "movies.dat",
            }
            if self.variant == "1m":
                files["users"] = folder / "users.dat"
        else:
            files = {"ratings": folder / "ratings.csv", "movies": folder / "movies.csv"}
        for what, path in files.items():
            need(path, what)
        plots = {"1m": "movies_text.parquet", "latest-small": "movies_plot.parquet"}.get(self.variant)
        if self.text and plots and (folder / plots).is_file():
            files["plots"] = folder / plots
        posters = find("movie-posters", "index.csv")
        if self.images and posters is not None and self.variant in ("1m", "latest-small"):
            files["posters"] = posters / "index.csv"
        return files

    def inputs(self) -> list[Path]:
        return list(self._files().values())

    def prepare(self, out: Path) -> Dataset:
        files = self._files()
        ratings = self._ratings(files["ratings"])
        movies = self._movies(files["movies"])
        if "plots" in files:
            plots = pl.read_parquet(files["plots"]).rename({"movie_id": "movieId"}, strict=False)
            plots = plots.select(
                pl.col("movieId").cast(pl.Int64).alias("item_id"), pl.col("plot").alias("text")
            )
            movies = movies.join(plots, on="item_id", how="left")
        if "posters" in files:
            index = pl.read_csv(files["posters"], columns=["movieId", "file"])
            posters = index.select(pl.col("movieId").alias("item_id"), pl.col("file").alias("image_path"))
            movies = movies.join(posters, on="item_id", how="left")
        licence = _LICENCE
        for name in ("GROUPLENS_README.txt", "README.txt", "README"):
            if (files["ratings"].parent / name).is_file():
                licence = (files["ratings"].parent / name).read_text(encoding="utf-8", errors="replace")
                break
        return Dataset.from_frames(
            out,
            ratings,
            movies,
            self._users(files["users"]) if "users" in files else None,
            name=f"movielens-{self.variant}",
            source=self._origin,
            licence="GroupLens: research use, no redistribution without permission, cite Harper & Konstan 2015",
            licence_text=licence,
            media_root=files["posters"].parent if "posters" in files else None,
        )

    def _ratings(self, path: Path) -> pl.LazyFrame | pl.DataFrame:
        names = ["user_id", "item_id", "weight", "timestamp"]
        if path.suffix == ".parquet":
            return _restored_1m(path, self.rated_five)
        if path.suffix == ".inter":
            return (
                read_atomic(path)
                .rename({"rating": "weight"})
                .with_columns(*_integers("user_id", "item_id", "timestamp"))
            )
        if path.name == "u.data":
            return pl.scan_csv(path, separator="\t", has_header=False, new_columns=names)
        if path.suffix == ".dat":
            frame = _double_colon(path, names)
            return frame.with_columns(
                *_integers("user_id", "item_id", "timestamp"), pl.col("weight").cast(pl.Float32)
            )
        mapping = {"userId": "user_id", "movieId": "item_id", "rating": "weight"}
        scan = pl.scan_csv(
            path, schema_overrides={"userId": pl.Int64, "movieId": pl.Int64, "rating": pl.Float32}
        )
        missing = [name for name in (*mapping, "timestamp") if name not in scan.collect_schema()]
        if missing:
            raise DataError(
                f"column {missing[0]!r} is missing", where=path, expected="userId, movieId, rating, timestamp"
            )
        return scan.rename(mapping)

    def _movies(self, path: Path) -> pl.DataFrame:
        if path.suffix == ".item" and path.name.startswith("ml-100k"):
            frame = read_atomic(path)
            dated = pl.col("release_year").str.contains(r"^\d{4}$")
            title = pl.col("movie_title")
            return frame.select(
                *_integers("item_id"),
                pl.when(dated)
                .then(title + " (" + pl.col("release_year") + ")")
                .otherwise(title)
                .alias("title"),
                pl.col("class").str.split(" ").alias("category"),
            )
        if path.name == "u.item":
            columns = ["item_id", "title", "released", "video", "url", *_GENRES_100K]
            text = path.read_text(encoding="latin-1")
            frame = pl.read_csv(
                io.StringIO(text), separator="|", has_header=False, new_columns=columns, quote_char=None
            )
            genres = pl.concat_list(
                [pl.when(pl.col(genre) == 1).then(pl.lit(genre)) for genre in _GENRES_100K]
            )
            return frame.select("item_id", "title", genres.list.drop_nulls().alias("category"))
        if path.suffix == ".dat":
            frame = _double_colon(path, ["item_id", "title", "genres"]).with_columns(*_integers("item_id"))
        else:
            frame = pl.read_csv(path, schema_overrides={"movieId": pl.Int64}).rename({"movieId": "item_id"})
        genres = pl.when(pl.col("genres") != "(no genres listed)").then(pl.col("genres").str.split("|"))
        return frame.select("item_id", "title", genres.alias("category"))

    def _users(self, path: Path) -> pl.DataFrame:
        if path.suffix == ".user":
            return read_atomic(path).with_columns(*_integers("user_id", "age"))
        if path.name == "u.user":
            columns = ["user_id", "age", "gender", "occupation", "zip_code"]
            return pl.read_csv(
                path,
                separator="|",
                has_header=False,
                new_columns=columns,
                schema_overrides={"zip_code": pl.String},
            )
        frame = _double_colon(path, ["user_id", "gender", "age", "occupation", "zip_code"])
        return frame.with_columns(*_integers("user_id", "age", "occupation"))


def _integers(*names: str) -> list[pl.Expr]:
    return [pl.col(name).cast(pl.Int64) for name in names]


def _double_colon(path: Path, names: list[str]) -> pl.DataFrame:
    """`a::b::c` lines in Latin-1; no other reader takes a separator of two characters."""
    lines = pl.Series("line", path.read_text(encoding="latin-1").splitlines())
    parts = lines.str.split("::")
    wrong = (parts.list.len() != len(names)).arg_true()
    if len(wrong):
        raise DataError(
            f"line {wrong[0] + 1} has {parts.list.len()[wrong[0]]} fields",
            where=path,
            expected=f"{len(names)}: {'::'.join(names)}",
        )
    return pl.DataFrame({name: parts.list.get(place) for place, name in enumerate(names)})


def _restored_1m(path: Path, rated_five: bool) -> pl.DataFrame:
    """The restored ratings: explicit order, times exact or bounded from both sides.

    Rows without a time_rank (movies with fewer than five ratings) take their place by the lower bound of their
    time, after the ranked rows of that time; a row without any lower bound takes its user's first known time.
    """
    frame = pl.read_parquet(path).rename({"movie_id": "item_id", "rating": "weight"}).with_row_index("row")
    if rated_five:
        frame = frame.filter(pl.col("time_rank") >= 0)
    first = pl.col("timestamp").min().over("user_id")
    high = pl.when(pl.col("ts_exact")).then(pl.col("timestamp")).otherwise(pl.col("ts_hi"))
    frame = frame.with_columns(
        pl.col("timestamp").fill_null(first),
        high.alias("timestamp_hi"),
        (pl.col("time_rank") < 0).alias("unranked"),
    )
    frame = frame.sort("user_id", "timestamp", "unranked", "time_rank", "row")
    frame = frame.with_columns(pl.int_range(pl.len()).over("user_id").alias("order"))
    return frame.sort("row").select("user_id", "item_id", "timestamp", "weight", "order", "timestamp_hi")
