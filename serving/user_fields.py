"""Attributes that come with a question, as rows of the user tables that the model reads."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from recsys.bundle import Bundle
from recsys.errors import RequestError
from recsys.registry import load_function


class UserFields:
    """Columns of the users table -> rows of the bundle's typed user tables."""

    def __init__(self, bundle: Bundle):
        read = bool(bundle.manifest["flags"].get("uses_user_fields"))
        self.tables: Mapping[str, Mapping[str, Any]] = {
            name: table
            for name, table in bundle.manifest["content"].items()
            if read and table.get("entity") == "user" and table["fields"]
        }
        self.columns = {
            state["column"] for table in self.tables.values() for state in table["fields"].values()
        }

    def rows(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Table -> [1, F], NaN where nothing of it was given; {} for nothing at all.

        Raises RequestError for a column that no user table has, or a value of the wrong type.
        """
        unknown = [name for name in given if name not in self.columns]
        if unknown:
            legal = ", ".join(sorted(self.columns)) or "none, the model reads no attributes of users"
            raise RequestError(f"user_fields of {unknown[0]!r}", expected=f"one of: {legal}")
        if not given:
            return {}
        encode, fields = load_function("typed_rows"), load_function("fields")
        try:
            frame = pl.DataFrame({name: [value] for name, value in given.items()})
            return {
                name: fields(encode(frame, {"fields": table["fields"]}), table["fields"]).dense().values_EF
                for name, table in self.tables.items()
            }
        except (pl.exceptions.PolarsError, TypeError) as error:
            raise RequestError(f"user_fields that cannot be read ({error})") from None
