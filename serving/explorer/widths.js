/** The width slider of a nested model, and what each width costs and keeps. */

import { post } from "./api.js";
import { $, el, milliseconds } from "./dom.js";
import { query, wanted } from "./query.js";

const COLOURS = 4;

let widths = [], timed = new Map(), running = new AbortController();

/** model: of /v1/models; changed() asks for the list again; failed(error). Hidden where there is one width. */
export function setUp(model, changed, failed) {
  widths = [...model.widths].sort((a, b) => a - b);
  if (widths.length < 2) return;
  query.width ??= widths.at(-1);
  const slider = $("width");
  slider.max = widths.length - 1;
  slider.value = widths.indexOf(query.width);
  slider.addEventListener("input", () => {
    query.width = widths[slider.value];
    label();
    changed();
  });
  $("time-all").addEventListener("click", () => timeAll().catch(failed));
  $("widths").hidden = false;
  label();
}

function label() {
  $("width").setAttribute("aria-valuetext", `${query.width} of ${widths.at(-1)} dimensions`);
  $("width-now").textContent = `${query.width} of ${widths.at(-1)}`;
}

/** What was timed for another query says nothing about this one. */
export function forget() {
  running.abort();
  timed = new Map();
}

/** Keep the timings and the list of an answer given at this width. */
export function keep(width, answer) {
  if (widths.length < 2) return;
  timed.set(width, { stages: answer.timings_ms, ids: answer.items.map((item) => item.item_id) });
  show();
}

/** One after another: requests at the same time would wait for each other and time that. */
async function timeAll() {
  running = new AbortController();
  const { signal } = running;
  for (const width of widths) {
    try {
      const answer = await post("v1/recommend", wanted({}, width), signal);
      if (signal.aborted) return;
      keep(width, answer);
    } catch (error) {
      if (error.name === "AbortError") return;
      throw error;
    }
  }
}

function show() {
  const rows = widths.filter((width) => timed.has(width));
  const named = new Set(rows.flatMap((width) => Object.keys(timed.get(width).stages)));
  const stages = [...named].filter((stage) => stage !== "total");
  const longest = Math.max(...rows.map((width) => totalOf(timed.get(width).stages)), Number.MIN_VALUE);
  const full = timed.get(widths.at(-1));
  const heading = (name, swatch = null) => el("th", { scope: "col" }, swatch, name);
  const colour = (index) => el("span", { class: `swatch stage-${index % COLOURS}` });
  const head = [
    heading("width"), ...stages.map((stage, index) => heading(stage, colour(index))), heading("total, ms"),
    el("td", { "aria-hidden": "true" }), heading("kept"),
  ];
  const body = rows.map((width) => {
    const { stages: times, ids } = timed.get(width);
    const cells = [...stages.map((stage) => times[stage] ?? 0), totalOf(times)];
    return el("tr", width === query.width ? { "aria-current": "true" } : {},
      el("th", { scope: "row" }, `${width}`),
      ...cells.map((value) => el("td", {}, milliseconds(value))),
      el("td", { class: "track", "aria-hidden": "true" }, stack(stages, times, longest)),
      el("td", {}, full ? `${ids.filter((id) => full.ids.includes(id)).length} of ${full.ids.length}` : "–"));
  });
  const caption = el("caption", { class: "hidden" },
    "Milliseconds the server took at each width, and how much of the widest list each keeps");
  $("timings").replaceChildren(el("table", { class: "timings" }, caption,
    el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body)));
}

const totalOf = (times) => times.total ?? Object.values(times).reduce((sum, value) => sum + value, 0);

/** The stages end to end; the longest total fills the track. */
function stack(stages, times, longest) {
  return el("span", { class: "stack" }, ...stages.map((stage, index) => {
    const part = el("span", { class: `stage stage-${index % COLOURS}` });
    part.style.setProperty("--share", (times[stage] ?? 0) / longest);
    return part;
  }));
}
