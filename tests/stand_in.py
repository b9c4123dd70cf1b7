"""A small stand-in for ml-100k in GroupLens's own format, so that what names it runs without the network."""

from pathlib import Path

import numpy as np

GENRES = 19


def write_movielens_100k(folder: Path, *, users: int = 60, items: int = 250, seed: int = 0) -> None:
    """u.data, u.item and u.user: every user likes one third of the films; ids from 1, as in the original."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    ratings = []
    for user in range(1, users + 1):
        own = np.arange(1 + user % 3, items + 1, 3)
        start = int(rng.integers(874_724_710, 890_000_000))
        for step, item in enumerate(rng.permutation(own)[: int(rng.integers(20, 50))]):
            ratings.append(f"{user}\t{item}\t{rng.integers(1, 6)}\t{start + 3_600 * step}")
    (folder / "u.data").write_text("\n".join(ratings) + "\n", encoding="latin-1")
    films = []
    for item in range(1, items + 1):
        flags = ["1" if genre == 1 + item % 3 else "0" for genre in range(GENRES)]
        films.append("|".join([str(item), f"Film {item} (1995)", "01-Jan-1995", "", "", *flags]))
    (folder / "u.item").write_text("\n".join(films) + "\n", encoding="latin-1")
    people = [f"{user}|{20 + user % 50}|{'MF'[user % 2]}|student|0{user:04d}" for user in range(1, users + 1)]
    (folder / "u.user").write_text("\n".join(people) + "\n", encoding="latin-1")
