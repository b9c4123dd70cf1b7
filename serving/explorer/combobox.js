/** A search box with a list under it (the WAI-ARIA combobox pattern): typing asks, arrows choose, Enter takes. */

import { $, el } from "./dom.js";

/**
 * box: the element to fill; label; find(text, signal) -> entries; show(entry) -> nodes of one line;
 * choose(entry) -> the text that stays in the box; failed(error).
 */
export function combobox(box, { label, find, show, choose, failed }) {
  const id = `${box.id}-list`;
  const list = el("ul", { id, role: "listbox", "aria-label": label, hidden: true });
  const said = el("p", { class: "hidden", role: "status" });
  const input = el("input", {
    id: `${box.id}-input`, type: "text", role: "combobox", autocomplete: "off", spellcheck: false,
    "aria-expanded": "false", "aria-controls": id, "aria-autocomplete": "list",
  });
  box.classList.add("combobox");
  box.append(el("label", { htmlFor: input.id }, label), input, list, said);

  let entries = [], active = -1, running = new AbortController(), waiting = false, found = Promise.resolve();

  const search = async (text) => {
    running.abort();
    running = new AbortController();
    waiting = true;
    try {
      entries = await find(text, running.signal);
    } catch (error) {
      if (error.name === "AbortError") return; // of a newer search, or of leaving
      waiting = false;
      failed(error);
      return;
    }
    waiting = false;
    if (document.activeElement === input) open(); // an answer may come after the person has left
  };
  const ask = (text) => { found = search(text); };

  function open() {
    active = -1;
    list.replaceChildren(...entries.map((entry, index) => el("li", {
      id: `${id}-${index}`, role: "option", "aria-selected": "false",
      onmousedown: (event) => event.preventDefault(), // the focus stays in the box
      onclick: () => take(index),
    }, ...show(entry))));
    if (!entries.length) list.append(el("li", { class: "note" }, "Nothing found"));
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    input.removeAttribute("aria-activedescendant");
    said.textContent = `${entries.length} found`;
  }

  function close() {
    running.abort();
    waiting = false;
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    said.textContent = "";
  }

  function move(to) {
    if (!entries.length) return;
    if (active >= 0) $(`${id}-${active}`).setAttribute("aria-selected", "false");
    active = (to + entries.length) % entries.length;
    const line = $(`${id}-${active}`);
    line.setAttribute("aria-selected", "true");
    line.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", line.id);
  }

  function take(index) {
    if (!entries.length) return;
    input.value = choose(entries[index]);
    close();
  }

  /** What was typed last decides, although its answer may still be on its way. */
  async function enter() {
    await found;
    if (!list.hidden) take(Math.max(active, 0));
  }

  input.addEventListener("input", () => ask(input.value));
  // what stands in the box is the last choice, so the list offered on entering it is the whole one
  input.addEventListener("focus", () => { input.select(); ask(""); });
  input.addEventListener("click", () => { if (list.hidden) ask(input.value); });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const keys = {
      ArrowDown: () => (list.hidden ? ask(input.value) : move(active + 1)),
      ArrowUp: () => move(active < 0 ? entries.length - 1 : active - 1),
      Enter: enter,
      Escape: close,
    };
    const ready = !list.hidden || event.key === "ArrowDown" || (event.key === "Enter" && waiting);
    if (!keys[event.key] || !ready) return;
    event.preventDefault();
    keys[event.key]();
  });
  return { input, set: (text) => { input.value = text; } };
}
