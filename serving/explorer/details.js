/** One item in full: who proposed it, what made its score, what resembles it. */

import { get, pathOf, post } from "./api.js";
import { categories } from "./cards.js";
import { $, el, figure, picture, titleOf } from "./dom.js";
import { wanted } from "./query.js";

const SHOWN = 10;
let explained = null, running = new AbortController();

export function setUp() {
  $("close").addEventListener("click", () => $("details").close());
  $("details").addEventListener("click", (event) => { if (event.target === $("details")) $("details").close(); });
  $("details").addEventListener("close", () => running.abort());
}

/** A new answer makes kept explanations old. */
export const forget = () => { explained = null; };

/** model: of /v1/models; place: in the list, from 1; act(item) and its verb, for the similar items. */
export function openDetails(item, place, model, { verb, act }) {
  running = new AbortController();
  $("details-heading").textContent = titleOf(item);
  const why = el("section", {}, el("h3", {}, "What made the score"));
  const alike = el("section", {}, el("h3", {}, "Similar items"));
  $("details-body").replaceChildren(
    el("div", { class: "head" }, picture(item), el("div", {},
      el("p", {}, `Place ${place}, score ${figure(item.score)}`), categories(item),
      el("p", { class: "note" }, `id ${item.item_id}`))),
    generators(item), why, alike,
  );
  $("details").showModal();
  $("details").scrollTop = 0;
  fill(why, () => explanation(item, model));
  fill(alike, () => similar(item, model, { verb, act }));
}

/** Put what make() gives under the section's heading; a refusal stands there in words. */
async function fill(section, make) {
  const waiting = el("p", { class: "note", role: "status" }, "Asking …");
  section.append(waiting);
  try {
    waiting.replaceWith(await make());
  } catch (error) {
    if (error.name !== "AbortError") waiting.textContent = error.message;
  }
}

function generators(item) {
  if (!item.sources?.length) return "";
  const rows = item.sources.map((source) => el("tr", {}, el("th", { scope: "row" }, source.generator),
    el("td", {}, `${source.rank ?? "none"}`), el("td", {}, figure(source.score))));
  const head = ["Proposed by", "rank", "score"].map((name) => el("th", { scope: "col" }, name));
  return el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
}

/** Asked for when wanted, and for the whole list: features that compare candidates need the same candidates. */
async function explanation(item, model) {
  if (!model.ranker) return el("p", { class: "note" }, "This bundle has no ranker: the score is the model's own.");
  explained ??= post("v1/recommend", wanted({ explain: true })).catch((error) => {
    explained = null; // the next one asks again
    throw error;
  });
  const line = (await explained).items.find((other) => other.item_id === item.item_id);
  if (!line) return el("p", { class: "note" }, "The list has changed since it was shown: ask again.");
  if (!line.contributions) return el("p", { class: "note" }, "The server gives no breakdown of this score.");
  return bars(Object.entries(line.contributions));
}

/** Signed bars around a common zero, longest first; small ones are summed up. */
function bars(pairs) {
  const sorted = pairs.toSorted((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const rest = sorted.slice(SHOWN);
  const lines = sorted.slice(0, SHOWN);
  if (rest.length) lines.push([`${rest.length} more`, rest.reduce((sum, pair) => sum + pair[1], 0)]);
  const most = Math.max(...lines.map((pair) => Math.abs(pair[1])), Number.MIN_VALUE);
  const rows = lines.map(([feature, value]) => {
    const bar = el("span", { class: value < 0 ? "bar minus" : "bar plus" });
    bar.style.setProperty("--share", Math.abs(value) / most);
    const sign = value < 0 ? "" : "+";
    return el("tr", {}, el("th", { scope: "row" }, feature.replaceAll("_", " ")),
      el("td", { class: "track", "aria-hidden": "true" }, bar), el("td", {}, `${sign}${figure(value)}`));
  });
  const total = pairs.reduce((sum, pair) => sum + pair[1], 0);
  rows.push(el("tr", { class: "total" }, el("th", { scope: "row" }, "sum"), el("td"), el("td", {}, figure(total))));
  return el("table", { class: "bars" }, el("caption", { class: "hidden" }, "Contribution of each feature to the score"),
    el("tbody", {}, ...rows));
}

async function similar(item, model, { verb, act }) {
  const k = Math.min(8, model.items - 1);
  const { items } = await get(pathOf("items", item.item_id, "/similar"), { k }, running.signal);
  return el("ol", { class: "history" }, ...items.map((other) => el("li", {}, picture(other),
    el("span", { class: "words" }, titleOf(other), el("small", {}, figure(other.score))),
    el("button", {
      type: "button", class: "quiet", "aria-label": `${verb}: ${titleOf(other)}`,
      onclick: () => { $("details").close(); act(other); },
    }, verb))));
}
