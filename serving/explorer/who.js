/** The left panel: a user, or a history put together by hand. */

import { Problem, get, pathOf } from "./api.js";
import { combobox } from "./combobox.js";
import { $, count, el, picture, titleOf } from "./dom.js";
import { query } from "./query.js";

let changed, failed, userBox, turn = 0;

/** onChange() after every change of who is asked for; onFailure(error). */
export function setUp(onChange, onFailure) {
  [changed, failed] = [onChange, onFailure];
  userBox = combobox($("user-search"), {
    label: "Search a user",
    find: async (search, signal) => (await get("v1/users", { search, limit: 20 }, signal)).users,
    show: (user) => [el("span", {}, `${user.user_id}`), el("small", {}, count(user.events, "event"))],
    choose: (user) => { chooseUser(user.user_id).catch(failed); return `${user.user_id}`; },
    failed,
  });
  combobox($("item-search"), {
    label: "Add an item",
    find: async (search, signal) => (await get("v1/items", { search, limit: 20 }, signal)).items,
    show: (item) => [picture(item), el("span", {}, titleOf(item))],
    choose: (item) => { addToHistory(item); return ""; },
    failed,
  });
  for (const radio of document.querySelectorAll("input[name=mode]")) {
    radio.addEventListener("change", () => setMode(radio.value).catch(failed));
  }
  $("clear").addEventListener("click", () => { query.history = []; show(); changed(); });
  $("edit").addEventListener("click", () => {
    query.mode = "history"; // keeps the shown lines, which are the user's
    show();
    changed();
    $("item-search-input").focus();
  });
}

/** Start from a link's user or history; by default from the first user, so that the page opens with a list. */
export async function start(link, model) {
  if (link.history) return startFrom(link.history);
  if (link.user !== undefined) return chooseUser(link.user);
  const { users } = model.users ? await get("v1/users", { search: "", limit: 1 }) : { users: [] };
  return users.length ? chooseUser(users[0].user_id) : startFrom([]);
}

async function startFrom(ids) {
  query.mode = "history";
  const lines = await Promise.all(ids.map((id) => get(pathOf("items", id)).catch((error) => {
    // an item of an older link may be gone; anything else is a failure
    if (error instanceof Problem && [404, 422].includes(error.status)) return null;
    throw error;
  })));
  query.history = lines.filter((line) => line !== null);
  const gone = lines.length - query.history.length;
  show();
  if (gone) $("history-note").textContent = `${count(gone, "item")} of the link: not in this catalogue.`;
  changed();
}

export async function chooseUser(userId) {
  const own = ++turn;
  const user = await get(pathOf("users", userId));
  if (own !== turn) return; // somebody else was chosen meanwhile
  query.mode = "user";
  query.user = user.user_id;
  query.history = user.history.toReversed();
  userBox.set(`${user.user_id}`);
  show();
  changed();
}

async function setMode(mode) {
  if (mode === "user" && query.user !== null) return chooseUser(query.user);
  turn += 1;
  query.mode = mode;
  query.history = [];
  show();
  if (mode === "history") changed();
}

export function addToHistory(item) {
  query.history = [item, ...query.history.filter((line) => line.item_id !== item.item_id)];
  $("moved").textContent = `${titleOf(item)} added, now the newest`;
  show();
  changed();
}

function show() {
  const own = query.mode === "history";
  for (const radio of document.querySelectorAll("input[name=mode]")) radio.checked = radio.value === query.mode;
  $("user-search").hidden = own;
  $("item-search").hidden = !own;
  $("edit").hidden = own || !query.history.length;
  $("clear").hidden = !own || !query.history.length;
  const nobody = query.user === null ? "Search for a user." : "Nothing is known of this user.";
  const empty = own ? "Empty: search for an item, or add one from the list." : nobody;
  const events = query.history.length;
  $("history-note").textContent = events ? `${count(events, "event")}, newest first` : empty;
  $("history").replaceChildren(...query.history.map((item, place) => line(item, place, own)));
}

function line(item, place, own) {
  const words = el("span", { class: "words" }, el("span", {}, titleOf(item)),
    el("small", {}, (item.category ?? []).join(" · ")));
  const node = el("li", {}, picture(item), words);
  if (!own) return node;
  const button = (sign, label, onclick, disabled = false) => {
    const named = { "aria-label": `${label} ${titleOf(item)}` };
    return el("button", { type: "button", class: "quiet", ...named, disabled, onclick }, sign);
  };
  const last = query.history.length - 1;
  node.append(
    button("↑", "Newer:", () => move(place, -1), place === 0),
    button("↓", "Older:", () => move(place, 1), place === last),
    button("✕", "Remove", () => remove(place)),
  );
  return node;
}

function move(place, by) {
  const lines = [...query.history];
  [lines[place], lines[place + by]] = [lines[place + by], lines[place]];
  query.history = lines;
  show();
  $("moved").textContent = `${titleOf(lines[place + by])} is now ${place + by + 1} of ${lines.length}`;
  // the same button of the moved line, or its neighbour at an end of the list, so that pressing again goes on
  const [newer, older] = buttons(place + by);
  const pressed = by < 0 ? newer : older;
  (pressed.disabled ? (by < 0 ? older : newer) : pressed).focus();
  changed();
}

function remove(place) {
  $("moved").textContent = `${titleOf(query.history[place])} removed`;
  query.history = query.history.filter((_, index) => index !== place);
  show();
  const next = buttons(Math.min(place, query.history.length - 1));
  (next.at(-1) ?? $("item-search-input")).focus();
  changed();
}

const buttons = (place) => [...($("history").children[place]?.querySelectorAll("button") ?? [])];
