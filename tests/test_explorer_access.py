"""Whether anybody can use the explorer page: by keyboard, by ear, on a phone, in the dark; and without the network."""

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from browser import Page
from explorer_stub import PAGE, SETTLED, TYPES

pytest_plugins = ["explorer_page"]

FILES = sorted(path for path in PAGE.iterdir() if path.suffix in TYPES)
OPERABLE = {
    "button",
    "checkbox",
    "combobox",
    "link",
    "listbox",
    "option",
    "radio",
    "slider",
    "textbox",
    "spinbutton",
}
NAMED = OPERABLE | {"dialog", "form", "list", "region", "table", "img"}

FAINT = """
((root) => {
  const parts = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if ((parts(colour)[3] ?? 1) === 1) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [], walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let seen = 0;
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement, style = getComputedStyle(node);
    const words = walker.currentNode.textContent.trim();
    if (!words || !node.checkVisibility() || node.closest(".hidden, .placeholder, :disabled, .skip, option")) continue;
    const pair = [light(style.color), light(behind(node))].sort((a, b) => a - b);
    const contrast = (pair[1] + 0.05) / (pair[0] + 0.05);
    seen += 1;
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)}: ${words}`);
  }
  return { seen, found };
})(document.querySelector(%r))
"""

SMALL = """
[...document.querySelectorAll("button, select, input, a")].filter((node) => {
  const box = (node.closest("label") ?? node).getBoundingClientRect();
  return node.checkVisibility() && !node.closest(".hidden, .skip") && box.width && Math.min(box.width, box.height) < 24
    && !node.matches(".open"); // its whole card is the target
}).map((node) => node.outerHTML)
"""

RINGED = """
(() => {
  const node = document.activeElement, label = node.closest("label");
  const styles = [getComputedStyle(node), getComputedStyle(node, "::after")];
  for (const other of [node.nextElementSibling, label]) if (other) styles.push(getComputedStyle(other));
  return styles.some((style) => style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2);
})()
"""


def everything(page: Page, url: str) -> Iterator[str]:
    """Open the page and bring up, one after another, all that it can show: the roots to look at, each time."""
    page.open(f"{url}/#user=3")
    page.wait(SETTLED)
    page.click("#time-all")
    page.wait("document.querySelectorAll('.timings tbody tr').length === 4")
    page.run("document.getElementById('new-title').value = 'Quiet Sea'")
    page.click("#new-form .main")
    page.wait("!document.getElementById('ranking').hidden")
    yield "body"
    page.run("document.getElementById('user-search-input').focus()")
    page.wait("document.querySelectorAll('#user-search-list [role=option]').length === 5")
    page.press("ArrowDown")
    yield "#who"
    page.click(".card .open")
    page.wait("document.querySelector('.bars') && document.querySelector('#details .history li')")
    yield "#details"
    page.press("Escape")
    page.click("input[value=history] + span")
    page.wait("document.querySelector('.badge')")
    page.wait(SETTLED)
    page.click(".card .quiet")
    page.wait("document.querySelectorAll('#history li').length === 1")
    page.wait(SETTLED)
    yield "body"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page, url, scheme):
    page.prefer(**{"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"})
    seen = 0
    for root in everything(page, url):
        told = page.run(FAINT % root)
        assert told["found"] == [], root
        seen += told["seen"]
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")
    assert seen > 200


def test_contrast_of_a_refusal(page, url, catalogue):
    page.allowed = "503"
    catalogue.broken = True
    for scheme in ("light", "dark"):
        page.prefer(**{"prefers-color-scheme": scheme})
        page.open(url)
        page.wait("!document.getElementById('problem').hidden")
        assert page.run(FAINT % "#problem") == {"seen": 2, "found": []}


@pytest.mark.parametrize("width", [360, 390, 768, 1280, 2400])
def test_nothing_runs_over_the_edge(page, url, catalogue, width):
    catalogue.items[15]["title"] = (
        "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
    )
    page.size(width, 844)
    for root in everything(page, url):
        assert page.run("document.documentElement.scrollWidth") <= width, root
        assert page.run(SMALL) == [], root


def test_every_control_has_a_name(page, url):
    for _ in everything(page, url):
        nodes = [
            (node["role"]["value"], node.get("name", {}).get("value", ""), node)
            for node in page.call("Accessibility.getFullAXTree")["nodes"]
            if not node.get("ignored")
        ]
        assert {"button", "combobox", "slider", "checkbox"} & {role for role, _, _ in nodes}
        nameless = [node["role"]["value"] for role, name, node in nodes if role in NAMED and not name.strip()]
        # lists of words inside a named part need no name of their own
        assert [role for role in nameless if role not in ("list", "table")] == []
        names = [name for role, name, _ in nodes if role == "button"]
        repeated = {name for name in names if names.count(name) > 1}
        assert not repeated, "two buttons that sound alike"


def test_all_can_be_reached_and_seen_by_keyboard(page, url):
    page.open(f"{url}/#user=3")
    page.wait(SETTLED)
    page.press("Tab")
    assert page.run("document.activeElement.className") == "skip"
    page.press("Enter")
    assert page.run("document.activeElement.id") == "results"
    assert page.run("location.hash") == "#user=3&width=128"
    page.run("document.activeElement.blur(); document.querySelector('.skip').focus()")
    wanted = page.run(
        "[...document.querySelectorAll('button:enabled, input, select, textarea')].filter(node =>"
        " node.checkVisibility() && !(node.type === 'radio' && !node.checked)).length"
    )
    reached = set()
    for _ in range(wanted + 10):
        page.press("Tab")
        if page.run("document.activeElement.matches('button, input, select, textarea')"):
            reached.add(page.run("(document.activeElement.dataset.reached ??= String(Math.random()))"))
            assert page.run(RINGED), page.run("document.activeElement.outerHTML")
    assert len(reached) == wanted


def test_what_changes_is_said(page, url):
    page.open(f"{url}/#user=3")
    page.wait(SETTLED)
    for selector in ("#said", "#moved", "#new-said"):
        assert page.run(f"document.querySelector('{selector}').getAttribute('role')") == "status"
    assert page.run("document.getElementById('problem').getAttribute('role')") == "alert"
    # figures that change with every answer would drown the rest
    assert not page.run(
        "document.querySelector('#status, #timings, #cards').closest('[role=status], [aria-live]')"
    )
    levels = page.run(
        "[...document.querySelectorAll('h1, h2, h3')].filter(n => n.checkVisibility()).map(n => n.tagName)"
    )
    assert levels[0] == "H1" and levels.count("H1") == 1
    assert all(int(after[1]) <= int(before[1]) + 1 for before, after in pairwise(levels))


def test_reduced_motion(page, url):
    moving = (
        "[...document.querySelectorAll('*')].filter(node =>"
        " parseFloat(getComputedStyle(node).transitionDuration) > 0).length"
    )
    page.open(f"{url}/#user=3")
    page.wait(SETTLED)
    assert page.run(moving) > 0
    page.prefer(**{"prefers-reduced-motion": "reduce"})
    assert page.run(moving) == 0


def test_the_files_stand_alone():
    """Nothing from elsewhere, nothing inline that a content policy forbids, nothing that is not there."""
    names = {path.name for path in FILES}
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 250 and max(map(len, text.splitlines())) <= 120, path.name
        foreign = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)) - {"http://www.w3.org"}
        assert not foreign, path.name
        for used in re.findall(r'(?:from "\./|(?:src|href)="explorer/)([^"]+)"', text):
            assert used in names, f"{path.name} uses {used}"
        if path.suffix == ".js":
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text
            )
            assert text.startswith("/** "), f"{path.name} says what it is for"
    page = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r'\sstyle="|\son\w+="|<style|<script(?![^>]*\ssrc=)', page)
