"""The explorer page on the real server: what is shown is what the API answers."""

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
import uvicorn
from browser import Page
from explorer_stub import PAGE, SETTLED, TYPES
from loopback import call

from recsys.serving.api import create_app
from recsys.serving.engine import RankingEngine

pytest_plugins = ["explorer_page"]


@pytest.fixture
def api(cases) -> Iterator[str]:
    """The real server around a small fitted model."""
    app = create_app(RankingEngine(cases("fmrlrec").bundle))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_the_real_server_behind_the_page(page, api, cases):
    """What is shown is what the API answers: for a user, at another width, for a history, and for a new item."""
    case = cases("fmrlrec")
    user = case.user_ids[2]
    page.open(f"{api}/#user={user}")
    page.wait(SETTLED)
    body = {"user_id": user, "k": 12, "width": case.model.widths[-1]}
    assert shown_scores(page) == told_scores(api, body)
    page.run("document.getElementById('width').focus()")
    page.press("ArrowLeft")
    page.wait("document.querySelectorAll('.timings tbody tr').length === 2")
    assert shown_scores(page) == told_scores(api, body | {"width": case.model.widths[-2]})
    page.click(".card .open")
    page.wait("document.querySelectorAll('#details .history li').length === 8")
    page.press("Escape")
    page.open(f"{api}/#history={case.item_ids[4]},{case.item_ids[9]}")
    page.wait(SETTLED)
    history = [case.item_ids[9], case.item_ids[4]]
    assert shown_scores(page) == told_scores(api, {"history": history, "k": 12})


def test_an_event_told_to_the_real_server(page, api, cases):
    case = cases("fmrlrec")
    user = case.user_ids[2]
    page.open(f"{api}/#user={user}")
    page.wait(SETTLED)
    before = call(f"{api}/v1/users/{user}")[1]["history"]
    page.click(".card .quiet")
    page.wait(f"document.querySelectorAll('#history li').length === {len(before) + 1}")
    page.wait(SETTLED)
    assert shown_scores(page) == told_scores(api, {"user_id": user, "k": 12})


def test_a_refusal_of_the_real_server(page, api):
    """This model has no content tables, so that it has nothing to say of a new item."""
    page.open(api)
    page.wait(SETTLED)
    page.allowed = "422"
    page.run("document.getElementById('new-title').value = 'Quiet Sea'")
    page.click("#new-form .main")
    page.wait(
        "document.getElementById('new-said').textContent.startsWith('The request cannot be answered: ')"
    )
    assert page.run("document.getElementById('add').disabled && document.getElementById('ranking').hidden")
    assert "no content" in page.run("document.getElementById('image-note').textContent")


def test_the_real_server_hands_out_the_files(api):
    """As they are, with a content policy that lets in no script but theirs, and nothing beside them."""
    names = [path.name for path in PAGE.iterdir() if path.suffix in TYPES]
    for name in ["", *(f"explorer/{name}" for name in names)]:
        with urllib.request.urlopen(f"{api}/{name}") as answer:
            file = PAGE / (name.removeprefix("explorer/") or "index.html")
            assert answer.read() == file.read_bytes()
            assert answer.headers["content-type"].startswith(TYPES[file.suffix])
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src '") and "unsafe" not in policy and "*" not in policy
    for name in (
        "explorer/nothing.js",
        "explorer/__init__.py",
        "explorer/..%2Fapi.py",
        "explorer/%2Fetc%2Fhostname",
    ):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{api}/{name}")


def shown_scores(page: Page) -> list[str]:
    return page.run("[...document.querySelectorAll('.score')].map(node => node.lastChild.textContent)")


def told_scores(api: str, body: dict) -> list[str]:
    status, answer = call(f"{api}/v1/recommend", body)
    assert status == 200, answer
    return [f"{item['score']:.3f}".replace("-", "−") for item in answer["items"]]
