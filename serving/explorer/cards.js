/** The list of recommendations as cards. */

import { $, el, figure, milliseconds, picture, titleOf } from "./dom.js";

/** answer: of /v1/recommend. open(item, place) shows the details; verb: what the small button does; act(item). */
export function showCards(answer, { open, verb, act }) {
  $("cards").replaceChildren(...answer.items.map((item, index) => {
    const missing = answer.missing?.[item.item_id] ?? [];
    const place = el("span", { class: "place", "aria-hidden": "true" }, `${index + 1}`);
    const opener = { type: "button", class: "open", onclick: () => open(item, index + 1) };
    const label = `${verb}: ${titleOf(item)}`;
    const doer = { type: "button", class: "quiet", "aria-label": label, onclick: () => act(item) };
    return el("li", { class: "card" },
      el("div", { class: "cover" }, picture(item), place),
      el("h3", {}, el("button", opener, titleOf(item))),
      categories(item),
      sources(item),
      missing.length ? el("p", { class: "note" }, `without ${missing.join(", ")}`) : null,
      el("div", { class: "row foot" },
        el("span", { class: "score" }, el("span", { class: "hidden" }, "score "), figure(item.score)),
        el("button", doer, verb)),
    );
  }));
}

export function categories(item) {
  return item.category?.length ? el("p", { class: "note categories" }, item.category.join(" · ")) : null;
}

/** Which generators proposed the item, and at which rank. */
export function sources(item) {
  if (!item.sources?.length) return null;
  return el("ul", { class: "sources", "aria-label": "Proposed by" }, ...item.sources.map((source) => {
    if (source.rank === null) return el("li", {}, source.generator);
    const rank = el("b", {}, el("span", { class: "hidden" }, " at rank "), ` ${source.rank}`);
    return el("li", {}, source.generator, rank);
  }));
}

/** How the answer came about: which model, and how long each stage took. */
export function showStatus(answer) {
  const facts = [
    answer.model.name, `bundle ${answer.model.bundle_id.slice(0, 12)}`, `recsys ${answer.model.package_version}`,
    ...Object.entries(answer.timings_ms).map(([stage, value]) => `${stage} ${milliseconds(value)} ms`),
  ];
  $("status").replaceChildren(...facts.map((fact) => el("span", {}, fact)));
  if (answer.fallback) $("status").prepend(el("span", { class: "badge" }, `fallback: ${answer.fallback}`));
}

export const FALLBACKS = {
  popular: "Nothing is known of this query: these are the most popular items.",
  content: "The model does not know these items: ranked by content alone.",
};
