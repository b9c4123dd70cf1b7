/** Small helpers for building the page. Text is always set as text: a title may hold markup. */

export const $ = (id) => document.getElementById(id);

/** el("li", {class: "card", onclick: f}, "words", node): keys with a dash, `class` and `role` are attributes. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "class" || key === "role") node.setAttribute(key, value);
    else node[key] = value;
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** The item's title, or its id where it has none. */
export const titleOf = (item) => item.title || `Item ${item.item_id}`;

/** A picture, or the initials on a colour of the title's own; also where the picture cannot be loaded. */
export function picture(item) {
  if (!item.image) return placeholder(item);
  // the title stands beside every picture, so a description would be read out twice
  const image = el("img", { class: "picture", alt: "", loading: "lazy", src: item.image.replace(/^\//, "") });
  image.addEventListener("error", () => image.replaceWith(placeholder(item)), { once: true });
  return image;
}

function placeholder(item) {
  const words = titleOf(item).match(/[\p{L}\p{N}]+/gu) ?? ["?"];
  const initials = words.slice(0, 2).map((word) => [...word][0].toUpperCase()).join("");
  const node = el("span", { class: "picture placeholder", "aria-hidden": "true" }, initials);
  let hue = 0;
  for (const letter of titleOf(item)) hue = (hue * 31 + letter.codePointAt(0)) % 360;
  node.style.setProperty("--hue", hue);
  return node;
}

/** 1 item, 2 items. */
export const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** Without the unit, which stands once beside the figures. */
export const milliseconds = (value) => value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0);

/** Three decimals, so that a column can be compared; a minus sign that screen readers read out; null: no score. */
export function figure(value) {
  if (value === null) return "none";
  const size = Math.abs(value);
  const text = size >= 1e6 || (size > 0 && size < 5e-4) ? value.toExponential(2) : value.toFixed(3);
  return text.replace("-", "−");
}
