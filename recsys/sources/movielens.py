"""MovieLens 100K, 1M, 10M, 20M, 25M, 32M and latest-small: ratings, titles, genres, plots and posters."""

import io
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import PrivateAttr

from recsys.dataset import Dataset
from recsys.errors import DataError
from recsys.normalise import reading
from recsys.sources.base import Source, data_root, find, need
from recsys.sources.obtain import movielens_100k
from recsys.sources.reading import need_columns
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
        users = None
        with reading(files["ratings"]):
            ratings = self._ratings(files["ratings"])
        with reading(files["movies"]):
            movies = self._movies(files["movies"])
        if "users" in files:
            with reading(files["users"]):
                users = self._users(files["users"])
        if "plots" in files:
            plots = pl.read_parquet(files["plots"]).rename({"movie_id": "movieId"}, strict=False)
            plots = plots.select(
                pl.col("movieId").cast(pl.Int64).alias("item_id"), pl.col("plot").alias("text")
            )
            movies = movies.join(plots, on="item_id", how="left", maintain_order="left")
        if "posters" in files:
            index = pl.read_csv(files["posters"], columns=["movieId", "file"])
            posters = index.select(pl.col("movieId").alias("item_id"), pl.col("file").alias("image_path"))
            movies = movies.join(posters, on="item_id", how="left", maintain_order="left")
        licence = _LICENCE
        for name in ("GROUPLENS_README.txt", "README.txt", "README"):
            if (files["ratings"].parent / name).is_file():
                licence = (files["ratings"].parent / name).read_text(encoding="utf-8", errors="replace")
                break
        return Dataset.from_frames(
            out,
            ratings,
            movies,
            users,
            name=f"movielens-{self.variant}",
            source=self._origin,
            licence="GroupLens: research use, no redistribution without permission, cite Harper & Konstan 2015",
            licence_text=licence,
            media_root=files["posters"].parent if "posters" in files else None,
            origins={"interactions": files["ratings"]},
        )

    def _ratings(self, path: Path) -> pl.LazyFrame | pl.DataFrame:
        names = ["user_id", "item_id", "weight", "timestamp"]
        if path.suffix == ".parquet":
            return _restored_1m(path, self.rated_five)
        if path.suffix == ".inter":
            frame = read_atomic(path)
            need_columns(frame.lazy(), ["user_id", "item_id", "rating", "timestamp"], path)
            return frame.rename({"rating": "weight"}).with_columns(
                *_integers("user_id", "item_id", "timestamp")
            )
        if path.name == "u.data":
            types = dict(zip(names, (pl.Int64, pl.Int64, pl.Float32, pl.Int64), strict=True))
            return pl.scan_csv(path, separator="\t", has_header=False, schema=types)
        if path.suffix == ".dat":
            # a character that no file holds makes the reader give whole lines, streamed
            lines = pl.scan_csv(
                path, separator="\x01", has_header=False, schema={"line": pl.String}, quote_char=None
            )
            return _double_colon(lines, path, names).with_columns(
                *_integers("user_id", "item_id", "timestamp"), pl.col("weight").cast(pl.Float32)
            )
        types = {"userId": pl.Int64, "movieId": pl.Int64, "rating": pl.Float32, "timestamp": pl.Int64}
        scan = pl.scan_csv(path, infer_schema=False, schema_overrides=types)
        need_columns(scan, list(types), path)
        return scan.rename({"userId": "user_id", "movieId": "item_id", "rating": "weight"})

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
            types = {
                name: pl.Int64 if name == "item_id" or name in _GENRES_100K else pl.String for name in columns
            }
            text = io.StringIO(path.read_text(encoding="latin-1"))
            frame = pl.read_csv(text, separator="|", has_header=False, schema=types, quote_char=None)
            genres = pl.concat_list(
                [pl.when(pl.col(genre) == 1).then(pl.lit(genre)) for genre in _GENRES_100K]
            )
            return frame.select("item_id", "title", genres.list.drop_nulls().alias("category"))
        if path.suffix == ".dat":
            # GroupLens wrote the files of 1M in Latin-1 and those of 10M in UTF-8
            lines = _lines(path, "latin-1" if self.variant == "1m" else "utf-8")
            frame = _double_colon(lines, path, ["item_id", "title", "genres"]).collect()
        else:
            frame = pl.read_csv(path, infer_schema=False)
            need_columns(frame.lazy(), ["movieId", "title", "genres"], path)
            frame = frame.rename({"movieId": "item_id"})
        genres = pl.when(pl.col("genres") != "(no genres listed)").then(pl.col("genres").str.split("|"))
        return frame.select(*_integers("item_id"), "title", genres.alias("category"))

    def _users(self, path: Path) -> pl.DataFrame:
        if path.name == "ml-100k.user":
            return read_atomic(path).with_columns(*_integers("user_id", "age"))
        columns = ["user_id", "age", "gender", "occupation", "zip_code"]
        if path.name == "u.user":
            types = {name: pl.Int64 if name in ("user_id", "age") else pl.String for name in columns}
            return pl.read_csv(path, separator="|", has_header=False, schema=types)
        frame = _double_colon(
            _lines(path, "latin-1"), path, ["user_id", "gender", "age", "occupation", "zip_code"]
        )
        return frame.with_columns(*_integers("user_id", "age", "occupation")).collect()


def _integers(*names: str) -> list[pl.Expr]:
    return [pl.col(name).cast(pl.Int64) for name in names]


def _lines(path: Path, encoding: str) -> pl.LazyFrame:
    # not splitlines: it also cuts at characters that stand inside Latin-1 titles
    return pl.LazyFrame({"line": path.read_text(encoding=encoding).split("\n")}, schema={"line": pl.String})


def _double_colon(lines: pl.LazyFrame, path: Path, names: list[str]) -> pl.LazyFrame:
    """`a::b::c` lines as columns of text; no other reader takes a separator of two characters."""
    parts = pl.col("line").str.split("::")
    numbered = lines.with_row_index("number", offset=1).filter(pl.col("line").str.len_bytes() > 0)
    counted = numbered.select("number", parts.list.len().alias("fields"))
    wrong = counted.filter(pl.col("fields") != len(names)).head(1).collect(engine="streaming")
    if len(wrong):
        raise DataError(
            f"line {wrong['number'][0]} has {wrong['fields'][0]} fields",
            where=path,
            expected=f"{len(names)}: {'::'.join(names)}",
            fix="correct or remove the line",
        )
    return numbered.select(parts.list.get(place).alias(name) for place, name in enumerate(names))


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
