"""The pairs source: items and pairs between them, without users."""

from refusals import refused

from recsys.errors import ConfigError
from recsys.sources import open_source

ARTICLES = (
    "article_id,prod_name,group,type,colour,detail\n0101,Top,Upper,Shirt,Red,Soft.\n101,Hat,Head,,Blue,\n"
)
BOUGHT = "article_id,co_article_id,rank\n0101,101,1\n101,0101,4\n"
PAIRS = {
    "columns": {
        "items": {"item_id": "article_id", "title": "prod_name", "text": "detail"},
        "pairs": {"item_id": "article_id", "other_id": "co_article_id"},
    },
    "category": ["group", "type"],
    "pair_kind": "co-purchase",
}


def pairs(folder, **changes):
    settings = {
        "kind": "pairs",
        "items": str(folder / "items.csv"),
        "pairs": str(folder / "pairs.csv"),
        **PAIRS,
    }
    return open_source(settings | changes).prepare(folder / "data")


def test_pairs(files):
    files(items_csv=ARTICLES, pairs_csv=BOUGHT)
    (files.folder / "images").mkdir()
    (files.folder / "images" / "0101.jpg").touch()
    dataset = pairs(files.folder, images=str(files.folder / "images"))
    assert dataset.manifest["tables"] == ["items", "pairs"] and dataset.id_type == {"item": "str"}
    assert dataset.items.rows(named=True) == [
        dict(item_id="0101", title="Top", text="Soft.", image_path="0101.jpg", category=["Upper", "Shirt"])
        | dict(group="Upper", type="Shirt", colour="Red"),
        dict(item_id="101", title="Hat", text=None, image_path=None, category=["Head"])
        | dict(group="Head", type=None, colour="Blue"),
    ]
    assert dataset.scan("pairs").collect().rows() == [
        ("0101", "101", 1, "co-purchase"),
        ("101", "0101", 4, "co-purchase"),
    ]


def test_pairs_without_a_rank_are_ranked_as_they_stand(files):
    files(items_csv="item_id\n1\n2\n3\n", pairs_csv="item_id,other_id,kind\n1,3,view\n2,1,buy\n1,2,view\n")
    dataset = pairs(files.folder, columns={}, category=[], ids="auto")
    assert dataset.scan("pairs").collect().rows() == [(1, 3, 1, "view"), (2, 1, 1, "buy"), (1, 2, 2, "view")]


def test_bad_pairs(files):
    folder = files.folder
    files(items_csv=ARTICLES, pairs_csv=BOUGHT.replace("0101,101", "0101,7"))
    with refused("pairs: 1 values of other_id are not items", "'7'", folder=folder):
        pairs(folder)
    files(pairs_csv="article_id,with\n0101,101\n")
    with refused("pairs.csv: column 'co_article_id' (for other_id) is missing", folder=folder):
        pairs(folder)
    files(pairs_csv=BOUGHT.replace(",4", ",fourth"))
    with refused(f"{folder / 'pairs.csv'}: cannot be read", "fourth", folder=folder):
        pairs(folder)
    files(pairs_csv=BOUGHT)
    with refused("items.csv: column 'section' is missing", folder=folder):
        pairs(folder, category=["section"])
    with refused("either name, or items and pairs", folder=folder, error=ConfigError):
        open_source({"kind": "pairs", "items": "x.csv"})
    with refused("name alone", folder=folder, error=ConfigError):
        open_source({"kind": "pairs", "name": "hm-items", "ids": "auto"})
