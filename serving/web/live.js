// Live numbers from /metrics, in Prometheus's text format, read every two seconds while they are shown.

import { metrics, showTrouble } from "./ask.js";
import { $, el, number, plain, table } from "./dom.js";

const EVERY = 2000; // ms
const WINDOW = 30; // s that a rate looks back

let timer = null;
let control = null;
let history = []; // [{ at (s), images }]
let explain = false; // whether to say how to get a result file

/** Samples of a Prometheus text: [{ name, labels, value }]. */
export function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, key, value] of (found[2] ?? "").matchAll(/([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g)) {
      labels[key] = value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
    }
    const value = found[3] === "+Inf" ? Infinity : Number(found[3]);
    samples.push({ name: found[1], labels, value });
  }
  return samples;
}

/** The `q` quantile of a histogram's cumulative buckets, interpolated between their bounds; Infinity beyond the last. */
export function quantile(q, buckets) {
  const sorted = buckets.map(({ labels, value }) => [labels.le === "+Inf" ? Infinity : Number(labels.le), value]).sort((a, b) => a[0] - b[0]);
  const total = sorted.at(-1)?.[1] ?? 0;
  if (!total) return NaN;
  let [low, below] = [0, 0];
  for (const [bound, count] of sorted) {
    if (count >= q * total) return bound === Infinity ? Infinity : low + ((bound - low) * (q * total - below)) / (count - below || 1);
    [low, below] = [bound, count];
  }
  return NaN;
}

/** Begins to show live numbers. `alone`: there is no result file to show instead. */
export function start(alone) {
  explain = alone;
  if (timer !== null) return;
  history = [];
  timer = 0;
  tick();
}

export function stop() {
  clearTimeout(timer);
  control?.abort();
  timer = control = null;
}

async function tick() {
  const mine = (control = new AbortController());
  try {
    const text = await metrics(mine.signal);
    if (mine.signal.aborted) return;
    showTrouble($("time-trouble"), null);
    show(parse(text), performance.now() / 1e3);
  } catch (error) {
    if (error.name === "AbortError") return;
    showTrouble($("time-trouble"), error);
  }
  if (!mine.signal.aborted) timer = setTimeout(tick, EVERY);
}

const sum = (samples) => samples.reduce((total, sample) => total + sample.value, 0);

const milliseconds = (seconds) => (seconds === Infinity ? "over 10 s" : number(1e3 * seconds, "ms"));

function show(samples, now) {
  const of = (name, labels = {}) => samples.filter((s) => s.name === name && Object.entries(labels).every(([key, value]) => s.labels[key] === value));
  const images = sum(of("podium_requests_total", { outcome: "ok" }));
  if (images < history.at(-1)?.images) history = []; // another process counts: the service was started again
  history = [...history.filter((point) => now - point.at <= WINDOW), { at: now, images }];
  const [first] = history;
  const rate = history.length > 1 ? (images - first.images) / (now - first.at) : NaN;
  // The metrics have every model that was loaded, and "unknown" for what failed before its model was known.
  const models = [...new Set(of("podium_queue_depth").concat(of("podium_requests_total")).map((s) => s.labels.model))].sort();
  const total = (labels) => {
    const merged = new Map();
    for (const bucket of of("podium_stage_seconds_bucket", { stage: "total", ...labels })) {
      const kept = merged.get(bucket.labels.le) ?? { labels: { le: bucket.labels.le }, value: 0 };
      kept.value += bucket.value;
      merged.set(bucket.labels.le, kept);
    }
    return [...merged.values()];
  };
  const batch = (labels) => sum(of("podium_batch_size_sum", labels)) / sum(of("podium_batch_size_count", labels));
  const watts = of("podium_power_watts");
  const joules = of("podium_energy_joules_total");
  const tiles = [
    ["per second", number(rate), `images, over the last ${WINDOW}\u00a0s`],
    ["answered", plain(images, 0), "images since the start"],
    ["p50", milliseconds(quantile(0.5, total({}))), "half took no longer"],
    ["p99", milliseconds(quantile(0.99, total({}))), "99 in 100 took no longer"],
    ["batch size", number(batch({})), "images per engine call"],
    ["waiting", plain(sum(of("podium_queue_depth")), 0), "images in the queues"],
    watts.length ? ["power", number(sum(watts), "W"), joules.length ? `${number(sum(joules), "J")} since the start` : "now"] : ["power", "–", "no sensor reports here"],
  ];
  const rows = models.map((model) => {
    const ok = sum(of("podium_requests_total", { model, outcome: "ok" }));
    const all = sum(of("podium_requests_total", { model }));
    const depth = of("podium_queue_depth", { model });
    return [model === "unknown" ? "refused before a network was known" : model, plain(ok, 0), plain(all - ok, 0), milliseconds(quantile(0.5, total({ model }))), milliseconds(quantile(0.99, total({ model }))), number(batch({ model })), depth.length ? plain(sum(depth), 0) : "–"];
  });
  const where = $("live");
  if (!where.firstChild) {
    const sentence = el("p", { class: "sentence" });
    where.append(el("header", {}, el("h2", { class: "headline" }, "Live, from this service"), sentence), el("dl", { class: "tiles" }), el("div", {}), el("p", { class: "faint" }, "p50 and p99 are estimated from the histogram's buckets. They count from the body's last byte to the answer, since the service started. Read every two seconds."));
  }
  const [header, list, holder] = where.children;
  const sentence = header.lastChild;
  const words = explain ? ["No result file is here; ", el("code", {}, "python -m benchmarks run --set five"), " makes one. Until then, these are the service's own counts:"] : ["These are the service's own counts."];
  if (sentence.dataset.explain !== String(explain)) sentence.replaceChildren(...words);
  sentence.dataset.explain = String(explain);
  list.replaceChildren(...tiles.map(([title, value, note]) => el("div", {}, el("dt", {}, title), el("dd", {}, el("b", {}, value), el("span", { class: "faint" }, note)))));
  const fresh = table("By network", ["network", "answered", "failed", "p50", "p99", "batch", "waiting"], rows);
  // The element that scrolls and has the focus stays. Its content is replaced.
  if (holder.firstChild) holder.firstChild.replaceChildren(...fresh.children);
  else holder.append(fresh);
}
