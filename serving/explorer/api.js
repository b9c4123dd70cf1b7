/** Requests to the server that this page came from. Paths are relative, so that a proxy may serve it under a prefix. */

/** A refusal in words: RFC 9457 problem details, or what stands in for them. */
export class Problem extends Error {
  constructor(title, detail, status) {
    super(detail ? `${title}: ${detail}` : title);
    this.status = status;
  }
}

export function get(path, params = {}, signal = undefined) {
  const query = new URLSearchParams(params).toString();
  return request(query ? `${path}?${query}` : path, { signal });
}

export function post(path, body, signal = undefined) {
  const headers = { "content-type": "application/json" };
  return request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function request(path, options) {
  let response, text;
  try {
    response = await fetch(path, options);
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server cannot be reached", "is it still running?", 0);
  }
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    // a proxy's error page, most likely
    throw new Problem(`The server answered ${response.status}`, "and not in JSON", response.status);
  }
  if (!response.ok) throw new Problem(answer.title ?? `Error ${response.status}`, answer.detail, response.status);
  return answer;
}

/** The path of one item or user: ids may hold slashes and blanks. */
export const pathOf = (kind, id, rest = "") => `v1/${kind}/${encodeURIComponent(id)}${rest}`;

/** An identifier nobody else makes; crypto.randomUUID is missing where the page does not come over HTTPS. */
export function freshId() {
  const bytes = crypto.getRandomValues(new Uint8Array(8));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
