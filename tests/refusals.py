"""How a refusal must look: one line that says what and where, and nothing left behind."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recsys.errors import DataError, RecsysError


@contextmanager
def refused(*parts: object, folder: Path, error: type[RecsysError] = DataError) -> Iterator[None]:
    """The block raises `error` in one line that holds every one of `parts`, and `folder` stays as it was."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    assert sorted(folder.rglob("*")) == before
