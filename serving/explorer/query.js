/** What is asked: whom for, which width, how the list is cut; and the address bar that keeps it. */

export const query = {
  mode: "user",
  user: null,
  /** Item lines, newest first: as shown, and the other way round from what the API takes. */
  history: [],
  width: null,
  k: 12,
  /** Items in the catalogue: more than that cannot be asked for. */
  items: 1,
  category: "",
  excludeSeen: true,
};

/** The part of a body that says who asks. */
export function who(width = query.width) {
  const person = query.mode === "user"
    ? { user_id: query.user }
    : { history: query.history.map((item) => item.item_id).reverse() };
  return width === null ? person : { ...person, width };
}

/** The body of /v1/recommend. */
export function wanted(extra = {}, width = query.width) {
  const filters = query.category ? { filters: { category: [query.category] } } : {};
  return { ...who(width), k: Math.min(query.k, query.items), exclude_seen: query.excludeSeen, ...filters, ...extra };
}

export const inWords = () =>
  query.mode === "user" ? `user ${query.user}` : `a history of ${query.history.length}`;

/** Keep the query in the address, so that it can be sent to somebody; no new entry for the back button. */
export function writeLink() {
  const parts = query.mode === "user"
    ? [`user=${encodeURIComponent(query.user)}`]
    : [`history=${query.history.map((item) => encodeURIComponent(item.item_id)).join(",")}`];
  if (query.width !== null) parts.push(`width=${query.width}`);
  history.replaceState(null, "", `#${parts.join("&")}`);
}

/** {user} or {history: ids, newest first}, and {width}, of the address; ids typed as the model's are. */
export function readLink(model) {
  const parts = new Map(location.hash.slice(1).split("&").map((part) => part.split("=")));
  const typed = (text, kind) => (model.id_type[kind] === "int" ? Number(text) : text);
  const link = {};
  if (parts.get("user")) link.user = typed(decodeURIComponent(parts.get("user")), "user");
  if (parts.has("history")) {
    const ids = (parts.get("history") ?? "").split(",").filter(Boolean);
    link.history = ids.map((id) => typed(decodeURIComponent(id), "item"));
  }
  const width = Number(parts.get("width"));
  if (model.widths.includes(width)) link.width = width;
  return link;
}
