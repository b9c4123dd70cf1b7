"""The explorer page in a real browser: what a person does with it, and what it then asks the server."""

import base64
import json
import time

import explorer_stub
import pytest
from browser import Page
from explorer_stub import SETTLED, WIDTHS, Catalogue
from PIL import Image

pytest_plugins = ["explorer_page"]

TITLES = "[...document.querySelectorAll('.card h3')].map(node => node.textContent)"
HISTORY = "[...document.querySelectorAll('#history .words > span')].map(node => node.textContent)"
FOCUSED = "document.activeElement.getAttribute('aria-label')"


def asked(catalogue: Catalogue, path: str = "/v1/recommend") -> dict:
    """The last body sent there."""
    return [body for where, body in catalogue.requests if where == path][-1]


def text(page: Page, selector: str) -> str:
    return page.run(f"document.querySelector('{selector}').textContent")


def wait_for_history(page: Page, titles: list[str]) -> None:
    page.wait(f"String({HISTORY}) === String({json.dumps(titles)})")


def test_opens_with_the_list_of_the_first_user(page, url, catalogue):
    page.open(url)
    page.wait(SETTLED)
    assert asked(catalogue) == {"user_id": 1, "width": 128, "k": 12, "exclude_seen": True}
    expected = catalogue.recommend(asked(catalogue))["items"]
    assert page.run(TITLES) == [item["title"] for item in expected]
    scores = page.run("[...document.querySelectorAll('.score')].map(node => node.lastChild.textContent)")
    assert scores == [f"{item['score']:.3f}".replace("-", "−") for item in expected]
    cards = page.run("[...document.querySelectorAll('.card')].map(node => node.innerText)")
    for card, item in zip(cards, expected, strict=True):
        assert " · ".join(item["category"]) in card
        for source in item["sources"]:
            words = (
                f"{source['generator']} at rank {source['rank']}" if source["rank"] else source["generator"]
            )
            assert words in " ".join(card.split()) and "null" not in card
    assert page.run(HISTORY) == [catalogue.items[item]["title"] for item in reversed(catalogue.users[1])]
    status = text(page, "#status")
    assert all(words in status for words in ("fmrlrec", "3fa29c1be07d", "recsys 0.1.0", "total 2.27 ms"))
    assert {request.split("/v1")[0].split("/explorer")[0].rstrip("/") for request in page.requests} <= {
        url,
        "about:blank",
    }


def test_a_title_is_text_and_a_missing_picture_is_drawn(page, url, catalogue):
    catalogue.items[5]["image"] = "/v1/items/999/image"  # is refused
    page.allowed = "/v1/items/999/image"
    page.open(f"{url}/#history=7,5,4")
    wait_for_history(page, [catalogue.items[item]["title"] for item in (7, 5, 4)])
    assert "<img" in page.run(HISTORY)[0]
    page.wait("document.querySelectorAll('#history .placeholder').length === 2")
    page.wait("document.querySelector('#history img').naturalWidth > 0")
    assert text(page, "#history li:nth-child(3) .placeholder") == "HM"


def test_a_user_is_chosen_by_keyboard(page, url, catalogue):
    page.open(url)
    page.wait(SETTLED)
    page.run("document.getElementById('user-search-input').focus()")
    page.wait("document.querySelectorAll('#user-search-list [role=option]').length === 5")
    page.press("ArrowDown", "ArrowDown", "ArrowDown")
    active = page.run("document.activeElement.getAttribute('aria-activedescendant')")
    assert page.run(f"document.getElementById('{active}').ariaSelected") == "true"
    page.press("Enter")
    wait_for_history(page, [catalogue.items[item]["title"] for item in reversed(catalogue.users[3])])
    page.wait(SETTLED)
    assert asked(catalogue)["user_id"] == 3
    assert page.run("location.hash") == "#user=3&width=128"
    assert page.run("document.activeElement.getAttribute('aria-expanded')") == "false"


def test_enter_takes_what_was_typed_last(page, url, catalogue):
    """Although its answer is still on its way: with no list yet, and with an older one on show."""
    page.open(url)
    page.wait(SETTLED)
    answer = catalogue.answer

    def slowly(*request):
        time.sleep(0.3)
        return answer(*request)

    catalogue.answer = slowly
    page.run("document.getElementById('user-search-input').focus()")
    page.type("4")
    page.press("Enter")
    wait_for_history(page, [catalogue.items[item]["title"] for item in reversed(catalogue.users[4])])
    page.press("ArrowDown")
    page.wait("document.querySelectorAll('#user-search-list [role=option]').length === 1")
    page.run("document.activeElement.select()")
    page.type("5")
    page.press("Enter")
    wait_for_history(page, [catalogue.items[item]["title"] for item in reversed(catalogue.users[5])])


def test_a_history_is_composed_by_keyboard(page, url, catalogue):
    page.open(url)
    page.wait(SETTLED)
    page.run("document.querySelector('input[name=mode]').focus()")
    page.press("ArrowRight")
    page.wait("document.querySelector('.badge')")
    assert asked(catalogue)["history"] == []
    page.press("Tab")
    assert page.run("document.activeElement.id") == "item-search-input"
    titles = []
    for item in (3, 9, 14):
        titles.insert(0, catalogue.items[item]["title"])
        page.type(titles[0])
        page.press("Enter")
        wait_for_history(page, titles)
    page.wait("document.querySelector('#said').textContent.includes('history of 3')")
    assert asked(catalogue)["history"] == [3, 9, 14]

    page.run("document.querySelector('#history li:nth-child(3) button').focus()")  # the oldest: newer
    page.press("Space")
    wait_for_history(page, [titles[0], titles[2], titles[1]])
    assert page.run(FOCUSED) == f"Newer: {titles[2]}"
    page.press("Space")
    wait_for_history(page, [titles[2], titles[0], titles[1]])
    assert page.run(FOCUSED) == f"Older: {titles[2]}", "it cannot go further, but back"
    assert text(page, "#moved") == f"{titles[2]} is now 1 of 3"
    page.press("Tab", "Enter")
    wait_for_history(page, [titles[0], titles[1]])
    assert page.run(FOCUSED) == f"Remove {titles[0]}"
    page.wait("document.querySelector('#said').textContent.includes('history of 2')")
    assert asked(catalogue)["history"] == [9, 14]
    page.press("Enter")
    page.wait("document.querySelectorAll('#history li').length === 1")
    page.press("Enter")
    page.wait("document.querySelectorAll('#history li').length === 0")
    assert page.run("document.activeElement.id") == "item-search-input"


def test_a_user_s_history_can_be_edited_and_added_to(page, url, catalogue):
    page.open(f"{url}/#user=2")
    page.wait(SETTLED)
    page.click("#edit")
    page.wait("document.querySelector('#said').textContent.includes('history of 8')")
    assert asked(catalogue)["history"] == catalogue.users[2]
    best = page.run(TITLES)[0]
    page.click(".card .quiet")
    page.wait(f"({HISTORY})[0] === {best!r}")
    page.wait("document.querySelector('#said').textContent.includes('history of 9')")
    assert catalogue.items[asked(catalogue)["history"][-1]]["title"] == best
    page.click("#clear")
    page.wait("document.querySelector('#said').textContent.includes('most popular')")


def test_an_event_is_recorded_once_and_shows(page, url, catalogue):
    page.open(f"{url}/#user=2")
    page.wait(SETTLED)
    best, before = page.run(TITLES)[0], len(catalogue.users[2])
    page.click(".card .quiet")
    page.wait(f"({HISTORY})[0] === {best!r}")
    page.wait(SETTLED)
    page.click(".card .quiet")
    page.wait(f"({HISTORY}).length === {before + 2}")
    sent = [body for path, body in catalogue.requests if path == "/v1/events"]
    assert {body["user_id"] for body in sent} == {2} and len({body["event_id"] for body in sent}) == 2
    assert catalogue.items[sent[0]["item_id"]]["title"] == best


def test_a_link_brings_the_query_back(page, url, catalogue):
    page.allowed = "/v1/items/999"
    page.open(f"{url}/#history=3,999,9&width=32")
    page.wait(SETTLED)
    assert asked(catalogue)["history"] == [9, 3] and asked(catalogue)["width"] == 32
    assert text(page, "#history-note") == "1 item of the link: not in this catalogue."
    assert page.run("location.hash") == "#history=3,9&width=32"
    assert page.run("document.getElementById('width').value") == "1"


def test_widths_and_what_they_cost(page, url, catalogue):
    page.open(f"{url}/#user=4")
    page.wait(SETTLED)
    page.run("document.getElementById('width').focus()")
    page.press("ArrowLeft")
    page.wait("document.querySelectorAll('.timings tbody tr').length === 2")
    assert asked(catalogue)["width"] == 64
    assert (
        page.run("document.getElementById('width').getAttribute('aria-valuetext')") == "64 of 128 dimensions"
    )
    page.click("#time-all")
    page.wait("document.querySelectorAll('.timings tbody tr').length === 4")
    rows = page.run(
        "[...document.querySelectorAll('.timings tbody tr')].map(r => [...r.children].map(c => c.textContent))"
    )
    body = {"user_id": 4, "k": 12, "exclude_seen": True}
    answers = {width: catalogue.recommend(body | {"width": width}) for width in WIDTHS}
    full = {item["item_id"] for item in answers[128]["items"]}
    for row, width in zip(rows, WIDTHS, strict=True):
        kept = len(full & {item["item_id"] for item in answers[width]["items"]})
        times = [f"{value:.2f}" for value in answers[width]["timings_ms"].values()]
        assert row == [str(width), *times, "", f"{kept} of 12"]
    page.click("input[value=history] + span")
    page.wait("document.querySelectorAll('.timings tbody tr').length === 1")  # of another query


def test_no_slider_where_there_is_one_width(page, url, catalogue):
    catalogue.widths = [64]
    page.open(url)
    page.wait(SETTLED)
    assert page.run("document.getElementById('widths').hidden")
    assert "width" not in asked(catalogue)


def test_options_of_the_list(page, url, catalogue):
    page.open(f"{url}/#user=3")
    page.wait(SETTLED)
    offered = page.run("[...document.querySelectorAll('#category option')].map(option => option.value)")
    assert offered == ["", *sorted(explorer_stub.GENRES)]
    for script in ("k.value = '6'", "category.value = 'Crime'", "seen.checked = false"):
        page.run(f"{script}; document.getElementById('options').dispatchEvent(new Event('change'))")
    page.wait(f"{SETTLED} && document.querySelectorAll('.card').length === 6")
    page.wait("!document.querySelector('[aria-busy]')")
    wanted = {"user_id": 3, "width": 128, "k": 6, "exclude_seen": False, "filters": {"category": ["Crime"]}}
    assert asked(catalogue) == wanted
    assert page.run(TITLES) == [item["title"] for item in catalogue.recommend(wanted)["items"]]


def test_what_made_a_score_is_told_on_demand(page, url, catalogue):
    page.open(f"{url}/#user=3")
    page.wait(SETTLED)
    assert not any(body.get("explain") for _, body in catalogue.requests)
    opener = "document.querySelector('.card:nth-child(2) .open')"
    page.run(f"{opener}.focus()")
    page.press("Enter")
    page.wait("document.querySelector('.bars') && document.querySelector('#details .history li')")
    item = catalogue.recommend(asked(catalogue))["items"][1]
    assert asked(catalogue)["explain"] and text(page, "#details-heading") == item["title"]
    rows = page.run(
        "[...document.querySelectorAll('.bars tr')].map(row => [row.children[0].textContent,"
        " row.children[2].textContent, row.querySelector('.bar')?.classList.contains('minus')])"
    )
    parts = sorted(item["contributions"].items(), key=lambda part: -abs(part[1]))
    for (name, shown, minus), (feature, value) in zip(rows[:10], parts[:10], strict=True):
        assert name == feature.replace("_", " ") and minus == (value < 0)
        assert float(shown.replace("−", "-")) == pytest.approx(value, abs=6e-4)
    assert rows[10][0] == f"{len(parts) - 10} more"
    assert float(rows[11][1].replace("−", "-")) == pytest.approx(item["score"], abs=6e-4)
    page.press("Escape")
    page.wait("!document.getElementById('details').open")
    assert page.run(f"document.activeElement === {opener}")
    page.press("Enter")
    page.wait("document.querySelector('.bars')")
    assert sum(bool(body.get("explain")) for _, body in catalogue.requests) == 1, (
        "one answer explains the list"
    )


def rank_new(page: Page, title: str, categories: str = "") -> None:
    page.run(f"document.getElementById('new-title').value = {title!r}")
    page.run(f"document.getElementById('new-categories').value = {categories!r}")
    page.run("document.getElementById('new-form').dispatchEvent(new Event('input'))")
    page.click("#new-form .main")
    page.wait("!document.getElementById('ranking').hidden && !document.getElementById('add').disabled")


def test_a_new_item_is_ranked_and_added(page, url, catalogue, tmp_path):
    picture = tmp_path / "new.png"
    Image.new("RGB", (60, 40), "teal").save(picture)
    page.open(f"{url}/#user=3")
    page.wait(SETTLED)
    shown = [item["item_id"] for item in catalogue.recommend(asked(catalogue))["items"]]
    page.choose_file("#new-image", picture)
    rank_new(page, "Quiet Sea", "Drama, Sea ,")
    body = asked(catalogue, "/v1/rank")
    (record,) = body["items"]
    assert body["candidates"] == shown and body["user_id"] == 3 and body["width"] == 128
    assert {key: record[key] for key in ("title", "category")} == {
        "title": "Quiet Sea",
        "category": ["Drama", "Sea"],
    }
    assert base64.b64decode(record["image"]) == picture.read_bytes()
    order = [item["item_id"] for item in catalogue.rank(body, body["items"], body["candidates"])["items"]]
    place = 1 + order.index(record["item_id"])
    assert text(page, "#new-said").startswith(f"Place {place} of 13,") and "without image" in text(
        page, "#new-said"
    )
    assert text(page, f"#ranking li:nth-child({place}) span") == "Quiet Sea"
    assert page.run("document.querySelectorAll('#ranking [aria-current]').length") == 1

    sent = len(catalogue.requests)
    page.run("document.getElementById('width').focus()")
    page.press("ArrowLeft")  # another list: ranked again, as the same item
    page.wait("document.querySelectorAll('.timings tbody tr').length === 2")
    page.wait("document.getElementById('new-said').textContent.startsWith('Place')")
    again = [body for path, body in catalogue.requests[sent:] if path == "/v1/rank"]
    assert [body["width"] for body in again] == [64] and again[0]["items"] == body["items"]

    page.click("#add")
    page.wait("document.getElementById('new-said').textContent.includes('added')")
    assert asked(catalogue, "/v1/items") == {"items": [record]}
    assert str(record["item_id"]) in text(page, "#new-said")
    assert page.run("document.getElementById('add').disabled"), "adding twice would replace it"
    page.wait(SETTLED)
    rank_new(page, "Loud Sea")
    assert asked(catalogue, "/v1/rank")["items"][0]["item_id"] != record["item_id"], "another item"


def test_a_large_picture_is_made_smaller_and_a_bad_one_is_refused(page, url, catalogue, tmp_path):
    large, bad = tmp_path / "large.png", tmp_path / "bad.png"
    Image.effect_noise((1600, 900), 80).save(large)
    bad.write_bytes(b"no picture")
    assert large.stat().st_size > 400_000
    page.open(url)
    page.wait(SETTLED)
    page.choose_file("#new-image", bad)
    page.wait("document.getElementById('new-said').textContent.includes('bad.png is no picture')")
    page.choose_file("#new-image", large)
    rank_new(page, "Noise")
    sent = tmp_path / "sent"
    sent.write_bytes(base64.b64decode(asked(catalogue, "/v1/rank")["items"][0]["image"]))
    with Image.open(sent) as image:
        assert image.size == (768, 432)


def test_refusals_are_told_in_words(page, url, catalogue):
    page.open(f"{url}/#user=3")
    page.wait(SETTLED)
    catalogue.broken, page.allowed = True, "Failed to load resource"
    page.run("document.getElementById('options').dispatchEvent(new Event('change'))")
    page.wait("!document.getElementById('problem').hidden")
    expected = "The server is busy: 16 requests are waiting; try again in 2 s"
    assert text(page, "#problem p") == expected
    assert page.run("document.querySelectorAll('.card').length") == 0, "an old list is not this query's"
    assert not page.run("document.querySelector('[aria-busy]')")
    catalogue.broken = False
    page.click("#problem button")
    page.wait(f"{SETTLED} && document.getElementById('problem').hidden")


def test_a_server_that_is_gone_is_told_in_words(page, url):
    page.open(f"{url}/#user=3")
    page.wait(SETTLED)
    page.allowed = "Failed to load resource"
    page.offline(True)
    try:
        page.run("document.getElementById('options').dispatchEvent(new Event('change'))")
        page.wait(
            "document.querySelector('#problem p')?.textContent.startsWith('The server cannot be reached')"
        )
    finally:
        page.offline(False)
