"""A Dataset folder that was prepared before, as the source of a run."""

import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

from recsys.dataset import Dataset, check_replaceable
from recsys.files import new_folder
from recsys.sources.base import Source


class Prepared(Source):
    """Your own Dataset: `recsys run RECIPE --data FOLDER`."""

    places: ClassVar[frozenset[str]] = frozenset({"path"})

    path: str
    """The Dataset folder."""

    def inputs(self) -> list[Path]:
        dataset = Dataset.open(self.path)
        return [dataset.path / f"{table}.parquet" for table in dataset.manifest["tables"]]

    def identity(self) -> dict[str, Any]:
        return {"kind": "Prepared", "fingerprint": Dataset.open(self.path).fingerprint}

    def prepare(self, out: Path) -> Dataset:
        check_replaceable(out)
        with new_folder(out) as folder:
            for path in Dataset.open(self.path).path.iterdir():
                if path.is_file() and not path.name.startswith("."):
                    shutil.copyfile(path, folder / path.name)
                    os.utime(folder / path.name)
        return Dataset.open(out)
