"""GroupLens's file formats, each in a small file made here."""

import polars as pl
import pytest
from refusals import refused

from recsys.sources import open_source

GENRES_100K = 19
LOG = [(1, 31, 2.5, 1_260_759_144), (1, 1029, 3.0, 1_260_759_179), (7, 31, 4.0, 851_868_750)]


@pytest.fixture(autouse=True)
def no_real_data(tmp_path_factory, monkeypatch):
    """Posters and plots of the real data must not leak in."""
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path_factory.mktemp("no-data")))


def u_item(movie: int, title: str, *genres: int) -> str:
    flags = ["1" if place in genres else "0" for place in range(GENRES_100K)]
    return "|".join([str(movie), title, "01-Jan-1995", "", "http://us.imdb.com/M/x", *flags])


def write_100k(folder):
    rows = [(1, 31, 3, 881_250_949), (1, 1029, 4, 881_250_950), (7, 31, 5, 891_717_742)]
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    movies = [
        u_item(31, "Misérables, Les (1995)", 8, 18),
        u_item(1029, '"1900" (1976)'),
        u_item(5, "unknown", 0),
    ]
    (folder / "u.item").write_text("\n".join(movies) + "\n", encoding="latin-1")
    (folder / "u.user").write_text("1|24|M|technician|00501\n7|57|F|administrator|T8H1N\n")


def write_dat(folder, *, encoding, half_stars=False, users=False, newline="\n"):
    weights = [2.5, 3, 4] if half_stars else [2, 3, 4]
    rows = [(user, movie, weight, time) for (user, movie, _, time), weight in zip(LOG, weights, strict=True)]
    (folder / "ratings.dat").write_text(
        "".join("::".join(map(str, row)) + newline for row in rows), newline=""
    )
    movies = [
        "31::Dracula: Dead & Loving It (1995)::Comedy|Horror",
        "1029::Misérables, Les (1995)::Drama",
        "9::A: B::Action",
    ]
    (folder / "movies.dat").write_text(newline.join([*movies, ""]), encoding=encoding, newline="")
    if users:
        (folder / "users.dat").write_text("1::F::1::10::02138\n7::M::56::16::70072-1234\n")


def write_csv(folder):
    lines = [f"{user},{movie},{weight},{time}" for user, movie, weight, time in LOG]
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *lines, ""]))
    movies = [
        "movieId,title,genres",
        '31,"American President, The (1995)",Comedy|Drama|Romance',
        '1029,"Say ""Hi"" (1999)",(no genres listed)',
        "9,1917,War",
    ]
    (folder / "movies.csv").write_text("\n".join(movies) + "\n")


def prepare(folder, variant, out=None):
    source = open_source({"kind": "movielens", "variant": variant, "root": str(folder)})
    return source.prepare(out or folder / "data")


def test_100k(tmp_path):
    write_100k(tmp_path)
    dataset = prepare(tmp_path, "100k")
    assert dataset.interactions.collect().rows() == [
        (1, 31, 881_250_949, 3.0, None),
        (1, 1029, 881_250_950, 4.0, None),
        (7, 31, 891_717_742, 5.0, None),
    ]
    assert dataset.items.select("item_id", "title", "category").rows() == [
        (31, "Misérables, Les (1995)", ["Drama", "Western"]),
        (1029, '"1900" (1976)', []),
        (5, "unknown", ["unknown"]),
    ]
    users = dataset.scan("users").collect()
    assert users.rows() == [(1, 24, "M", "technician", "00501"), (7, 57, "F", "administrator", "T8H1N")]


def test_100k_as_atomic_files(tmp_path):
    (tmp_path / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t31\t3\t881250949\n7\t31\t5\t891717742\n"
    )
    (tmp_path / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "31\tDangerous Minds\t1995\tDrama Thriller\n5\tunknown\t\tunknown\n"
    )
    (tmp_path / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\twriter\t00501\n7\t5\tF\tnone\tX\n"
    )
    dataset = prepare(tmp_path, "100k")
    assert dataset.interactions.collect().rows() == [
        (1, 31, 881_250_949, 3.0, None),
        (7, 31, 891_717_742, 5.0, None),
    ]
    assert dataset.items.select("item_id", "title", "category").rows() == [
        (31, "Dangerous Minds (1995)", ["Drama", "Thriller"]),
        (5, "unknown", ["unknown"]),
    ]
    assert dataset.scan("users").collect()["zip_code"].to_list() == ["00501", "X"]


@pytest.mark.parametrize(
    ("variant", "encoding", "half_stars", "newline"),
    [("1m", "latin-1", False, "\n"), ("10m", "utf-8", True, "\n"), ("10m", "utf-8", True, "\r\n")],
)
def test_double_colon_files(tmp_path, variant, encoding, half_stars, newline):
    write_dat(tmp_path, encoding=encoding, half_stars=half_stars, users=variant == "1m", newline=newline)
    dataset = prepare(tmp_path, variant)
    weights = [2.5, 3.0, 4.0] if half_stars else [2.0, 3.0, 4.0]
    expected = [
        (user, movie, time, weight, None) for (user, movie, _, time), weight in zip(LOG, weights, strict=True)
    ]
    assert dataset.interactions.collect().rows() == expected
    assert dataset.items.select("item_id", "title", "category").rows() == [
        (31, "Dracula: Dead & Loving It (1995)", ["Comedy", "Horror"]),
        (1029, "Misérables, Les (1995)", ["Drama"]),
        (9, "A: B", ["Action"]),
    ]
    if variant == "1m":
        assert dataset.scan("users").collect().rows() == [
            (1, "F", 1, 10, "02138"),
            (7, "M", 56, 16, "70072-1234"),
        ]
    else:
        assert not dataset.has("users")


def test_a_title_is_not_cut_at_odd_characters(tmp_path):
    write_dat(tmp_path, encoding="latin-1", users=True)
    (tmp_path / "movies.dat").write_bytes(b"31::Next\x85line (1995)::Drama\n1029::B::Drama\n")
    assert prepare(tmp_path, "1m").items["title"].to_list() == ["Next\x85line (1995)", "B"]


@pytest.mark.parametrize("variant", ["20m", "25m", "32m", "latest-small"])
def test_csv_files(tmp_path, variant):
    write_csv(tmp_path)
    (tmp_path / "README.txt").write_text("terms of use")
    dataset = prepare(tmp_path, variant)
    assert dataset.interactions.collect().rows() == [
        (user, movie, time, weight, None) for user, movie, weight, time in LOG
    ]
    assert dataset.items.select("item_id", "title", "category").rows() == [
        (31, "American President, The (1995)", ["Comedy", "Drama", "Romance"]),
        (1029, 'Say "Hi" (1999)', None),
        (9, "1917", ["War"]),
    ]
    assert dataset.name == f"movielens-{variant}" and dataset.licence_text == "terms of use"


def test_plots_and_posters_are_joined_where_they_are(tmp_path, monkeypatch):
    write_csv(tmp_path)
    pl.DataFrame({"movieId": [31], "plot": ["A widower falls in love."]}).write_parquet(
        tmp_path / "movies_plot.parquet"
    )
    posters = tmp_path / "root" / "movie-posters"
    posters.mkdir(parents=True)
    (posters / "index.csv").write_text("movieId,file\n1029,posters/1029.jpg\n4,posters/4.jpg\n")
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "root"))
    dataset = prepare(tmp_path, "latest-small")
    assert dataset.items["text"].to_list() == ["A widower falls in love.", None, None]
    assert dataset.items["image_path"].to_list() == [None, "posters/1029.jpg", None]
    assert dataset.media_root == posters.resolve()
    settings = {
        "kind": "movielens",
        "variant": "latest-small",
        "root": str(tmp_path),
        "text": False,
        "images": False,
    }
    plain = open_source(settings).prepare(tmp_path / "plain")
    assert plain.items["text"].null_count() == plain.items["image_path"].null_count() == 3


def test_the_restored_1m_keeps_its_order(tmp_path):
    write_dat(tmp_path, encoding="latin-1", users=True)
    restored = pl.DataFrame(
        {
            "user_id": [1, 1, 1, 7],
            "movie_id": [31, 1029, 9, 31],
            "rating": [5, 4, 3, 2],
            "timestamp": [100, None, 90, 50],
            "ts_exact": [True, False, True, True],
            "ts_hi": [None, 95, None, None],
            "time_rank": [2, 0, 1, 0],
        }
    )
    restored.write_parquet(tmp_path / "ratings.parquet")
    found = prepare(tmp_path, "1m").interactions.collect()
    assert found["item_id"].to_list() == [31, 1029, 9, 31]  # the file's order
    assert found["order"].to_list() == [2, 0, 1, 0]
    assert found["timestamp"].to_list() == [100, 90, 90, 50]  # no lower bound: the user's first known time
    assert found["timestamp_hi"].to_list() == [100, 95, 90, 50]


BAD = {
    "short line": (
        "10m",
        "ratings.dat",
        "1::31::4::5\n1::31::4\n",
        ["ratings.dat: ", "line 2 has 3 fields", "user_id::item_id"],
    ),
    "word for a number": ("10m", "ratings.dat", "1::31::four::5\n", ["ratings.dat: ", "four"]),
    "no ratings": ("25m", "ratings.csv", "userId,movieId,rating,timestamp\n", ["the table is empty"]),
    "empty file": ("25m", "ratings.csv", "", ["ratings.csv: ", "the file is empty"]),
    "no rating column": (
        "25m",
        "ratings.csv",
        "userId,movieId,timestamp\n1,31,5\n",
        ["ratings.csv: ", "'rating' is missing"],
    ),
    "no genres column": (
        "25m",
        "movies.csv",
        "movieId,title\n31,x\n",
        ["movies.csv: ", "'genres' is missing"],
    ),
    "word for an id": (
        "25m",
        "ratings.csv",
        "userId,movieId,rating,timestamp\nx,31,5,5\n",
        ["ratings.csv: ", "`x`"],
    ),
    "milliseconds": (
        "25m",
        "ratings.csv",
        "userId,movieId,rating,timestamp\n1,31,5,1600000000000\n",
        ["timestamp 1600000000000 in row 1"],
    ),
    "a movie twice": (
        "25m",
        "movies.csv",
        "movieId,title,genres\n31,a,b\n31,c,d\n",
        ["item_id 31", "more than one"],
    ),
    "a movie not listed": (
        "25m",
        "movies.csv",
        "movieId,title,genres\n31,a,b\n",
        ["1 item_id values", "1029"],
    ),
    "latin-1 in place of utf-8": (
        "10m",
        "movies.dat",
        "31::Mis\xe9rables::Drama\n",
        ["movies.dat: ", "utf-8"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused(tmp_path, case):
    variant, name, content, parts = BAD[case]
    if variant == "10m":
        write_dat(tmp_path, encoding="utf-8")
    else:
        write_csv(tmp_path)
    (tmp_path / name).write_text(content, encoding="latin-1")
    with refused(*parts, folder=tmp_path):
        prepare(tmp_path, variant)


def test_what_is_not_at_hand(tmp_path):
    with refused("ml-25m is not at hand", "data.root", folder=tmp_path):
        open_source({"kind": "movielens", "variant": "25m"}).prepare(tmp_path / "data")
    with refused("no such file (ratings)", tmp_path / "ratings.csv", folder=tmp_path):
        prepare(tmp_path, "25m")
