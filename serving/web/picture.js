// A picture that was chosen, dropped, pasted, photographed or taken from the samples, and what every network says about it.

import { Trouble, compare, showTrouble, trouble } from "./ask.js";
import { commands } from "./commands.js";
import { $, el, ms, name, plain, plural, say } from "./dom.js";
import { behind } from "./loaded.js";
import { badge, card, how, readsDigits, verdict, verdictShown } from "./networks.js";

const TOP_K = 5;

let count = 0; // networks that are loaded; 0 if that is not known
let last = null; // { pictures, said, longest } of the picture shown
let asking = null; // aborts the request for the last picture
let shownUrl = null;

const ORDERS = {
  loaded: () => 0,
  sure: (a, b) => b.answer.predictions[0].probability - a.answer.predictions[0].probability,
  fast: (a, b) => a.answer.timing_ms.inference - b.answer.timing_ms.inference,
  year: (a, b) => (a.model.year ?? 9999) - (b.model.year ?? 9999),
  name: (a, b) => a.model.model.localeCompare(b.model.model, "en"),
};

export function start() {
  for (const input of [$("file"), $("camera")]) {
    input.addEventListener("change", () => {
      if (input.files.length) look(input.files[0]);
      input.value = ""; // so that the same file can be chosen again
    });
  }
  for (const button of document.querySelectorAll("[data-sample]")) {
    button.addEventListener("click", () => sample(button.dataset.sample));
  }
  $("sort").addEventListener("change", () => {
    arrange();
    say(`Sorted by ${$("sort").selectedOptions[0].textContent}.`);
  });
  let depth = 0; // dragenter and dragleave come for every element on the way
  const over = (change) => (event) => {
    event.preventDefault();
    depth = change === 0 ? 0 : Math.max(0, depth + change);
    $("drop").classList.toggle("over", depth > 0);
  };
  addEventListener("dragenter", over(1));
  addEventListener("dragleave", over(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    over(0)(event);
    take(event.dataTransfer, "dropped");
  });
  addEventListener("paste", (event) => {
    if (!event.target.closest?.("input:not([type=file]), textarea")) take(event.clipboardData, "pasted");
  });
}

/** Shows the networks that wait for a picture. */
export function show(models) {
  count = models.length;
  const ready = models.filter((model) => !readsDigits(model));
  if (last || asking) return;
  $("verdict").replaceChildren(
    el("h2", { class: "headline waiting" }, ready.length ? "Choose a picture" : "No network for pictures is loaded"),
    el("p", { class: "sentence" }, ready.length ? "Loaded and warm:" : "`python -m export resnet50` exports one; then serve again."),
    el("ul", { class: "waiting cards" }, ready.map((model) => el("li", {}, el("article", { class: "card" }, el("header", {}, el("h3", {}, model.model), model.year && el("span", { class: "year faint" }, String(model.year)), badge(model)), how(model))))),
  );
}

/** Looks at what was dropped or pasted, if it is a file. */
function take(data, verb) {
  const files = [...(data?.files ?? [])];
  if (!files.length) {
    if (verb === "pasted") return; // text, which is not for us
    clear();
    showTrouble($("picture-trouble"), new Trouble("What was dropped is not a file. Save the picture first: addresses are never fetched."));
    return;
  }
  location.hash = "picture";
  look(files[0], files.length > 1 ? `The first of the ${files.length} files ${verb}.` : "");
}

async function sample(file) {
  const signal = begin();
  let content;
  try {
    const response = await fetch(`samples/${file}`, { signal });
    if (!response.ok) throw new Error(String(response.status));
    content = await response.blob();
  } catch {
    if (signal.aborted) return;
    asking = null;
    showTrouble($("picture-trouble"), new Trouble("The sample did not load. Check whether the service still runs.", { again: true }), () => sample(file));
    return;
  }
  look(new File([content], file, { type: "image/jpeg" }), "A sample.", `ui/samples/${file}`);
}

/** Removes the last picture's answers and aborts its request. Returns the signal for the next one. */
function begin() {
  clear();
  asking = new AbortController();
  return asking.signal;
}

function clear() {
  asking?.abort();
  asking = last = null;
  for (const id of ["verdict", "cards", "apart", "picture-commands", "picture-trouble"]) $(id).replaceChildren();
  $("sorting").hidden = true;
}

/** Sends `file`, as it is, to every network, and shows what they say. */
async function look(file, remark = "", fetched = null) {
  const signal = begin();
  choose(file, remark);
  $("verdict").replaceChildren(el("p", { class: "sentence busy" }, `Asking ${count ? plural(count, "network") : "the networks"} …`));
  say("Asking the networks.");
  const began = performance.now();
  try {
    const results = await compare(file, signal);
    const took = performance.now() - began;
    const networks = await behind(results);
    if (signal.aborted) return;
    asking = null;
    answered(results, networks, took);
    const models = Object.keys(results).filter((model) => !results[model].error);
    $("picture-commands").replaceChildren(commands({ name: file.name, type: file.type, models, path: "compare", topK: TOP_K, fetched }));
    reveal();
  } catch (error) {
    if (signal.aborted) return;
    asking = null;
    $("verdict").replaceChildren();
    say("");
    showTrouble($("picture-trouble"), error, () => look(file, remark, fetched));
    reveal();
  }
}

/** Shows the picture that was chosen. */
function choose(file, remark) {
  if (shownUrl) URL.revokeObjectURL(shownUrl);
  shownUrl = URL.createObjectURL(file);
  const image = el("img", { src: shownUrl, alt: "The picture that was sent" });
  const size = el("span", {});
  image.addEventListener("load", () => size.replaceChildren(`, ${plain(image.naturalWidth, 0)} × ${plain(image.naturalHeight, 0)}`));
  image.addEventListener("error", () => image.replaceWith(el("p", { class: "no-preview faint" }, "This browser cannot show the file.")));
  $("chosen").replaceChildren(image, el("figcaption", {}, name(file.name || "pasted picture"), el("span", { class: "faint" }, ` ${plain(file.size, 0)} bytes`, size, ". ", remark)));
  $("chosen").hidden = false;
}

/** On a phone the answers are below the picture. Scroll so that both are seen. */
function reveal() {
  if (matchMedia("(max-width: 56rem)").matches) $("chosen").scrollIntoView();
}

function answered(results, networks, took) {
  const rows = Object.entries(results).map(([id, answer]) => ({ answer, model: networks.find((model) => model.model === id) ?? { model: id } }));
  const errors = rows.map((row) => row.answer.error);
  if (rows.length && errors.every((error) => error && error.code === errors[0].code)) throw trouble(errors[0]);
  const pictures = rows.filter((row) => !readsDigits(row.model));
  const digits = rows.filter((row) => readsDigits(row.model) && !row.answer.error);
  const good = pictures.filter((row) => !row.answer.error);
  const longest = Math.max(1e-3, ...good.map((row) => row.answer.timing_ms.total));
  const said = good.length ? verdict(good.map((row) => row.answer)) : null;
  last = { pictures, said, longest };
  $("verdict").replaceChildren(...(said ? verdictShown(said).filter(Boolean) : []));
  $("sorting").hidden = pictures.length < 1;
  $("legend").replaceChildren(
    ...["decode", "queue", "inference"].map((stage) => el("span", { class: stage }, stage)),
    `Networks take turns at the engine, and queue is that wait. The whole request took ${ms(took)}.`,
  );
  arrange();
  if (digits.length) {
    $("apart").replaceChildren(
      el("h2", {}, "Not counted: it reads digits"),
      el("ul", { class: "cards" }, digits.map(({ model, answer }) => el("li", {}, card(model, answer, { longest: Math.max(longest, answer.timing_ms.total), note: "It knows only the digits 0 to 9, and answers one of them for any picture." })))),
    );
  }
  say(said ? `${said.headline}. ${said.sentence}` : "");
}

/** Sorts the cards as the viewer has chosen. Networks that failed come last. */
function arrange() {
  if (!last) return;
  const { pictures, said, longest } = last;
  const good = pictures.filter((row) => !row.answer.error).sort(ORDERS[$("sort").value]);
  const bad = pictures.filter((row) => row.answer.error);
  $("cards").replaceChildren(...[...good, ...bad].map(({ model, answer }) => el("li", {}, card(model, answer, { majority: said?.class ?? null, longest }))));
}
