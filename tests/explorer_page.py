"""Fixtures of the tests of the explorer page: a browser, and a stub server behind the page."""

from collections.abc import Iterator

import pytest
from browser import Page, browser, found
from explorer_stub import Catalogue, serving


@pytest.fixture(scope="module")
def chromium() -> Iterator[Page]:
    if (command := found()) is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with browser(command) as page:
        yield page


@pytest.fixture
def page(chromium) -> Iterator[Page]:
    """A page that may not complain: no exception, nothing the content policy refused, nothing missing."""
    chromium.errors.clear()
    chromium.allowed = ""
    chromium.requests.clear()
    chromium.size(1280, 900)
    chromium.prefer()
    yield chromium
    assert chromium.errors == []


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue()


@pytest.fixture
def url(catalogue) -> Iterator[str]:
    with serving(catalogue) as address:
        yield address
