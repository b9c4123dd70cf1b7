/** The page as a whole: ask for a list whenever the query changes, and show it. */

import { freshId, get, post } from "./api.js";
import { FALLBACKS, showCards, showStatus } from "./cards.js";
import * as details from "./details.js";
import { $, count, el } from "./dom.js";
import * as newItem from "./newitem.js";
import { inWords, query, readLink, wanted, writeLink } from "./query.js";
import * as who from "./who.js";
import * as widths from "./widths.js";

let model, running = new AbortController();

async function start() {
  const { models } = await get("v1/models");
  model = models[0];
  showModel();
  const link = readLink(model);
  query.width = link.width ?? null;
  query.items = model.items;
  details.setUp();
  widths.setUp(model, ask, failed);
  newItem.setUp(model, changed);
  who.setUp(changed, failed);
  $("options").addEventListener("submit", (event) => event.preventDefault());
  $("options").addEventListener("change", () => {
    query.k = Number($("k").value);
    query.category = $("category").value;
    query.excludeSeen = $("seen").checked;
    changed();
  });
  $("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address after # is the query
    $("results").focus();
  });
  await who.start(link, model);
}

function showModel() {
  const facts = [
    model.name, count(model.items, "item"), count(model.users, "user"), model.modalities.join(" + "),
    model.generators.length ? count(model.generators.length, "generator") + (model.ranker ? " and a ranker" : "") : "",
  ];
  $("model").replaceChildren(...facts.filter(Boolean).map((fact) => el("span", {}, fact)));
}

/** Another query: what was timed and explained belongs to the last one. */
function changed() {
  widths.forget();
  ask();
}

async function ask() {
  running.abort();
  running = new AbortController();
  details.forget();
  writeLink();
  rememberCategories(query.history);
  $("cards").setAttribute("aria-busy", "true");
  const width = query.width;
  try {
    show(width, await post("v1/recommend", wanted(), running.signal));
  } catch (error) {
    if (error.name === "AbortError") return; // a newer query is on its way and clears the busy mark
    failed(error);
  }
  $("cards").removeAttribute("aria-busy");
}

function show(width, answer) {
  $("problem").hidden = true;
  const words = [`${count(answer.items.length, "item")} for ${inWords()}.`];
  if (answer.fallback) words.push(FALLBACKS[answer.fallback] ?? `Fallback: ${answer.fallback}.`);
  const unknown = answer.unknown_items.length;
  if (unknown) words.push(`${count(unknown, "item")} of the history not in the catalogue.`);
  $("said").textContent = words.join(" ");
  showStatus(answer);
  widths.keep(width, answer);
  const doing = action();
  showCards(answer, { ...doing, open: (item, place) => details.openDetails(item, place, model, doing) });
  rememberCategories(answer.items);
  newItem.listChanged(answer.items);
}

/** What the button of a card does: a history grows here, a user's at the server. */
function action() {
  if (query.mode === "history") return { verb: "Add", act: who.addToHistory };
  return { verb: "Record event", act: (item) => recordEvent(item).catch(failed) };
}

async function recordEvent(item) {
  const user = query.user;
  await post("v1/events", { event_id: `explorer-${freshId()}`, user_id: user, item_id: item.item_id });
  await who.chooseUser(user);
}

/** The API lists no categories: the menu offers those that have been on show. */
function rememberCategories(items) {
  const known = new Set([...$("category").options].map((option) => option.value));
  const names = new Set(items.flatMap((item) => item.category ?? []));
  for (const name of names) {
    if (known.has(name)) continue;
    const after = [...$("category").options].slice(1).find((option) => option.value > name);
    $("category").insertBefore(el("option", { value: name }, name), after ?? null);
  }
}

function failed(error) {
  if (error.name === "AbortError") return;
  const again = el("button", { type: "button", onclick: () => (model ? ask() : location.reload()) }, "Try again");
  $("problem").replaceChildren(el("p", {}, error.message), again);
  $("problem").hidden = false;
  $("cards").replaceChildren();
  $("said").textContent = "";
  $("status").replaceChildren();
}

start().catch(failed);
