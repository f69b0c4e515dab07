// Requests to the service, and its errors as sentences. Paths are relative, so that the page works behind a proxy
// that puts the service into a folder.

import { $, el } from "./dom.js";

export const ADDRESS = new URL("..", location.href.split(/[?#]/)[0]).href.replace(/\/$/, "");

let token = null;
let asked = null; // resolves when the viewer has given a token

export const hasToken = () => token !== null;

const SENTENCES = {
  bad_request: "The service could not read the request.",
  unauthorized: "The service did not accept the token.",
  unknown_model: "That network is no longer loaded. Load the page again to see which are.",
  request_timeout: "The picture took too long to arrive.",
  too_large: "The picture is too large for this service.",
  unsupported_image: "This is not a picture that the service reads. It takes JPEG, PNG, WebP, BMP, GIF and TIFF.",
  damaged_image: "The picture is damaged or cut off, so no network could look at it.",
  overloaded: "The service has more to do than it can take.",
  shutting_down: "The service is shutting down.",
  not_ready: "The service is still loading its networks.",
  deadline_passed: "The service had too much to do to answer in time.",
  internal: "The service failed on this picture; its log says why.",
};

/** An error to show: `message` is a sentence, `detail` the service's own words, `again` whether trying again may help. */
export class Trouble extends Error {
  constructor(message, { code = "", detail = "", again = false } = {}) {
    super(message);
    Object.assign(this, { code, detail, again });
  }
}

/** The service's error `{code, message}` as a `Trouble`. */
export function trouble({ code, message }, retryAfter = null) {
  const again = ["overloaded", "shutting_down", "not_ready", "deadline_passed", "request_timeout"].includes(code);
  const wait = retryAfter ? ` Try again in ${retryAfter} s.` : again ? " Try again in a moment." : "";
  return new Trouble((SENTENCES[code] ?? "The service could not answer.") + wait, { code, detail: message ?? "", again });
}

/** What `read` makes of a request's response, once it is a good one. Asks the viewer for the token if one is wanted. */
async function ask(path, options = {}, read = (response) => response.json()) {
  for (;;) {
    const used = token;
    let response;
    try {
      const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
      response = await fetch(`../${path}`, { ...options, headers, redirect: "error", credentials: "same-origin" });
      if (response.ok) return await read(response);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      const refused = options.body ? ", or have refused the picture before it had all of it" : "";
      throw new Trouble(`No answer came from the service. It may be down${refused}.`, { again: true });
    }
    if (response.status === 401) {
      if (used === token) await askForToken(used !== null);
      continue;
    }
    let answer = {};
    try {
      answer = (await response.json()).error ?? {};
    } catch {
      // Not the service's own answer, perhaps a proxy's.
    }
    options.signal?.throwIfAborted(); // while the error was read
    if (!answer.code) throw new Trouble(`The service answered ${response.status} ${response.statusText}.`, { again: response.status >= 500 });
    throw trouble(answer, response.headers.get("retry-after"));
  }
}

/** Resolves when the viewer has typed a token. All requests that wait share one question. */
function askForToken(refused) {
  asked ??= new Promise((resolve) => {
    const form = $("token");
    form.hidden = false;
    $("token-hint").textContent = refused
      ? "That is not the token. What you type is kept in this tab's memory only."
      : "It is kept in this tab's memory, and forgotten when the tab is closed or loaded again.";
    $("token-field").focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      token = $("token-field").value;
      $("token-field").value = "";
      form.hidden = true;
      asked = null;
      resolve();
    };
  });
  return asked;
}

export const models = () => ask("models");
export const metrics = (signal) => ask("metrics", { signal }, (response) => response.text());
export const results = async (signal) => (await ask("ui/results.json", { signal })).results;

const body = (file, signal) => ({
  method: "POST",
  body: file,
  headers: { "Content-Type": file.type || "application/octet-stream" },
  signal,
});

export const compare = async (file, signal) => (await ask("compare", body(file, signal))).results;

export const classify = (file, model, topK, signal) =>
  ask(`classify?${new URLSearchParams({ model, top_k: topK })}`, body(file, signal));

/** Shows `error` in the alert `where`, with a button if trying again may help. null clears it. */
export function showTrouble(where, error, again = null) {
  if (!error) {
    where.replaceChildren();
    return;
  }
  const button = again && error.again ? el("button", { type: "button" }, "Try again") : null;
  button?.addEventListener("click", again);
  where.replaceChildren(
    el(
      "div",
      { class: "notice bad" },
      el("p", { class: "sentence" }, error instanceof Trouble ? error.message : "This page failed; load it again."),
      error.detail && el("p", { class: "faint" }, `In the service's words: ${error.detail}.`),
      button,
    ),
  );
}
