/** An item nobody has seen: rank it among the shown list, and add it to the catalogue. */

import { freshId, post } from "./api.js";
import { $, count, el, figure, titleOf } from "./dom.js";
import { who } from "./query.js";

/** Bodies are limited; encoders see a few hundred pixels, so that a larger picture is made smaller, not refused. */
const LARGEST_FILE = 400_000, LARGEST_SIDE = 768;

/** image: a promise of base64 or null, since reading a file takes a while. */
let model, shown = [], image = Promise.resolve(null), ranked = null, itemId = null, running = new AbortController();

/** added(): the catalogue has changed. */
export function setUp(its, added) {
  model = its;
  const blind = its.modalities.filter((name) => (its.encoders[name] ?? "none") === "none");
  const none = "This model looks at no content: it cannot rank what it has not seen.";
  const some = `This server has no encoder for ${blind.join(" and ")}: that part will not count.`;
  $("image-note").textContent = !its.modalities.length ? none : blind.length ? some : "";
  $("new-image").addEventListener("change", () => {
    image = read($("new-image").files[0]);
    image.catch(refused);
  });
  // the file input lies over the whole area, so that the browser itself takes what is dropped there
  for (const kind of ["dragenter", "dragleave", "drop"]) {
    $("drop").addEventListener(kind, () => $("drop").classList.toggle("over", kind === "dragenter"));
  }
  $("new-form").addEventListener("input", () => {
    ranked = null; // what was ranked is no longer what the form holds
    $("add").disabled = true;
  });
  $("new-form").addEventListener("submit", (event) => {
    event.preventDefault();
    rank().then(() => $("ranking").scrollIntoView({ block: "nearest" })).catch(refused);
  });
  $("add").addEventListener("click", () => add(added).catch(refused));
}

function refused(error) {
  if (error.name === "AbortError") return;
  $("new-said").textContent = error.message;
  $("ranking").hidden = true;
  $("add").disabled = true;
}

/** Show the picture and give it as base64, made smaller where it is large. */
async function read(file) {
  $("preview").hidden = true;
  $("drop-words").textContent = file ? file.name : "Drop a picture here, or choose one";
  if (!file) return null;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is no picture that this browser can read.`);
  }
  const side = Math.min(bitmap.width, bitmap.height);
  const from = [(bitmap.width - side) / 2, (bitmap.height - side) / 2, side, side];
  $("preview").getContext("2d").drawImage(bitmap, ...from, 0, 0, $("preview").width, $("preview").height);
  $("preview").hidden = false;
  return base64(file.size > LARGEST_FILE ? await smaller(bitmap) : file);
}

function smaller(bitmap) {
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
}

async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

async function record() {
  // typed as the catalogue's ids are; milliseconds are far above ids that count from one
  itemId ??= model.id_type.item === "int" ? Date.now() : `new-${freshId()}`;
  const made = { item_id: itemId, title: $("new-title").value.trim() };
  const category = $("new-categories").value.split(",").map((name) => name.trim()).filter(Boolean);
  if ($("new-text").value.trim()) made.text = $("new-text").value.trim();
  if (category.length) made.category = category;
  const picture = await image;
  if (picture) made.image = picture;
  return made;
}

/** Rank the item with the list on show, for the same query. */
async function rank() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  $("new-said").textContent = "Ranking …";
  const made = await record();
  const body = { ...who(), candidates: shown.map((item) => item.item_id), items: [made] };
  const answer = await post("v1/rank", body, signal);
  ranked = made;
  const place = answer.items.findIndex((item) => item.item_id === made.item_id) + 1;
  if (!place) throw new Error("The server did not rank the new item.");
  const missing = answer.missing?.[made.item_id] ?? [];
  const words = [`Place ${place} of ${answer.items.length}, with score ${figure(answer.items[place - 1].score)}.`];
  if (missing.length) words.push(`Ranked without ${missing.join(" and ")}.`);
  if (answer.fallback) words.push(`Fallback: ${answer.fallback}.`);
  $("new-said").textContent = words.join(" ");
  const titles = new Map(shown.map((item) => [item.item_id, titleOf(item)]));
  $("ranking").replaceChildren(...answer.items.map((item) => el("li",
    item.item_id === made.item_id ? { class: "mine", "aria-current": "true" } : {},
    el("span", {}, item.item_id === made.item_id ? made.title : titles.get(item.item_id) ?? titleOf(item)),
    el("small", {}, figure(item.score)))));
  $("ranking").hidden = false;
  $("add").disabled = false;
}

/** A new list is on show: an item that was ranked is ranked among it. */
export function listChanged(items) {
  shown = items;
  if (ranked) rank().catch(refused);
}

async function add(added) {
  const answer = await post("v1/items", { items: [ranked] });
  const missing = answer.missing?.[ranked.item_id] ?? [];
  const without = missing.length ? ` It has no ${missing.join(" and ")} that this server can read.` : "";
  const words = `${count(answer.added, "item")} added: ${ranked.title}, id ${ranked.item_id}.${without}`;
  ranked = itemId = null;
  $("ranking").hidden = true;
  $("add").disabled = true;
  added();
  $("new-said").textContent = words;
}
