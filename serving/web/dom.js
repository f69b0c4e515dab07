// Elements, numbers and words. Text is put in only as text nodes, so nothing in a file name or a label can run.

export const $ = (id) => document.getElementById(id);

/** An element: `el("p", { class: "faint" }, "text", child)`. Attributes that are null or false are left out. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same in SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A file's name in an element of its own, so that its direction of writing does not change the sentence around it. */
export const name = (text) => el("bdi", { class: "name" }, text);

/** A bar of `share` (0 to 1) of its track. Screen readers skip it, because its number stands beside it. */
export function bar(share, kind = "") {
  const fill = el("span", { class: `fill ${kind}` });
  fill.style.inlineSize = `${100 * Math.min(1, Math.max(0, share))}%`;
  return el("span", { class: "bar", "aria-hidden": "true" }, fill);
}

export const plain = (value, digits) => value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** Three digits, no exponent; a dash for what was not measured. */
export function number(value, unit = "") {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  const digits = size === 0 || size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : Math.min(6, 2 - Math.floor(Math.log10(size)));
  return plain(value, digits) + (unit && `\u00a0${unit}`);
}

export const ms = (value) => (value < 100 ? `${plain(value, 1)}\u00a0ms` : `${plain(value, 0)}\u00a0ms`);

export function percent(probability) {
  const value = 100 * probability;
  return value > 0 && value < 0.1 ? "<\u20090.1\u00a0%" : `${plain(value, 1)}\u00a0%`;
}

export const plural = (count, one, many = `${one}s`) => `${plain(count, 0)} ${count === 1 ? one : many}`;

/** "a, b and c" */
export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

/** Says `text` to a screen reader. */
export function say(text) {
  $("status").textContent = text;
}

/** A table that scrolls inside itself if it is too wide. `rows` are arrays of text, the first cell a heading. */
export function table(caption, heads, rows) {
  return el(
    "div",
    { class: "wide", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", { class: "unseen" }, caption),
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => (i ? el("td", {}, cell) : el("th", { scope: "row" }, cell)))))),
    ),
  );
}
