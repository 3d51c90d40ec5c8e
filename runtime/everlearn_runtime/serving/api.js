// The device's API, with the token that it may want.

const KEPT = "everlearn-token";

export class Refused extends Error {
  constructor(status, message, wait) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

// A link with #token=... logs in; what stands behind the # is never sent, and does not stay in the address.
const found = new URLSearchParams(location.hash.slice(1)).get("token");
if (found) {
  sessionStorage.setItem(KEPT, found);
  history.replaceState(null, "", location.pathname);
}

export function keepToken(token) {
  sessionStorage.setItem(KEPT, token);
}

async function send(path, options) {
  const token = sessionStorage.getItem(KEPT);
  if (token) options.headers = { ...options.headers, Authorization: `Bearer ${token}` };
  let answer;
  try {
    answer = await fetch(path, { ...options, cache: "no-store", redirect: "error" });
  } catch {
    throw new Refused(0, "The device does not answer.", 2);
  }
  let said = {};
  try {
    said = await answer.json();
  } catch {
    // Only an answer of something in between is no JSON.
  }
  if (answer.ok) return said;
  const wait = Number(answer.headers.get("Retry-After")) || 1;
  throw new Refused(answer.status, said.error || `The device answers ${answer.status}.`, wait);
}

export const get = (path) => send(path, { method: "GET" });

export const post = (path, data) =>
  send(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(data),
  });

export const postPicture = (path, blob) =>
  send(path, { method: "POST", headers: { "Content-Type": blob.type }, body: blob });
