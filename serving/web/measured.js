// The figures of the newest result file, as the report has them: time, images per second, power, memory and accuracy.

import { results, showTrouble } from "./ask.js";
import { $, bar, el, number, say, svg, table } from "./dom.js";
import * as live from "./live.js";

const MARK = "†"; // follows the name of every network whose weights are untrained, as in the report

let series = "";
let found = null;
let asking = null; // aborts the current request

/** Shows the result file if there is one, else live numbers. */
export async function open() {
  close();
  const { signal } = (asking = new AbortController());
  showTrouble($("time-trouble"), null);
  try {
    found = await results(signal);
  } catch (error) {
    if (signal.aborted) return;
    found = null;
    showTrouble($("time-trouble"), error, open);
    return;
  }
  $("source").hidden = !found;
  for (const radio of document.getElementsByName("source")) radio.onchange = choose;
  choose();
}

/** The viewer has left the tab: an answer that still comes is not shown. */
export function close() {
  asking?.abort();
  live.stop();
}

function choose() {
  const wantsLive = !found || document.querySelector("[name=source]:checked").value === "live";
  $("measured").hidden = wantsLive;
  $("live").hidden = !wantsLive;
  if (wantsLive) live.start(!found);
  else {
    live.stop();
    show();
  }
}

const seriesOf = (record) => `${record.engine} ${record.precision}`;
const shownName = (record) => record.network + (record.weights === "untrained" ? MARK : "");
const best = (items, value) => items.reduce((a, b) => ((value(b) ?? -1) > (value(a) ?? -1) ? b : a));
const has = (value) => Number.isFinite(value);

function show() {
  const good = found.records.filter((record) => record.status === "ok");
  const all = [...new Set(good.map(seriesOf))].sort();
  if (!all.includes(series)) series = best(all.map((id) => ({ id, n: new Set(good.filter((r) => seriesOf(r) === id).map((r) => r.network)).size })), (one) => one.n).id;
  const records = good.filter((record) => seriesOf(record) === series);
  const { environment } = found;
  const select = el("select", { id: "series" }, all.map((id) => el("option", { value: id, selected: id === series }, id)));
  select.addEventListener("change", () => {
    series = select.value;
    show();
    $("series").focus();
    say(`Figures of ${series}.`);
  });
  const gpu = environment.gpus?.[0];
  const machine = [environment.cpu, environment.cores && `${environment.cores} cores`, gpu && (gpu.name ?? String(gpu))].filter(Boolean).join(", ");
  const day = environment.date ? new Date(environment.date) : null;
  const when = day && !Number.isNaN(day.getTime()) ? day.toLocaleDateString("en", { day: "numeric", month: "long", year: "numeric" }) : "an unknown day";
  const parts = [
    el(
      "header",
      {},
      el("h2", { class: "headline" }, "Time and power, measured"),
      el("p", { class: "sentence" }, `On ${machine || "an unnamed machine"}, ${when}${environment.settings === "quick" ? ", in one quick look" : ""}. From `, el("code", {}, found.file), "."),
    ),
    el("div", { class: "sorting" }, el("label", { for: "series" }, "Engine and precision"), select),
    el("div", { class: "charts" }, ...charts(records.some(photographs) ? records.filter(photographs) : records)),
    unpowered(records),
    el("h2", {}, "Every number"),
    rows(records),
    records.some((record) => record.weights === "untrained") && el("p", { class: "faint" }, `${MARK} untrained weights: time, memory and power are those of the trained network; the accuracy is the published one.`),
    failed(found.records),
  ];
  $("measured").replaceChildren(...parts.filter(Boolean));
}

// A network for digits is a thousand times faster than the others. Beside it, nobody could compare their bars.
const photographs = (record) => (record.classes ?? 1000) > 10;

/** Why there is no energy to show, if there is none. */
function unpowered(records) {
  if (records.some((record) => has(record.power?.joules_per_image))) return null;
  const reason = records.find((record) => record.power?.reason)?.power.reason;
  return el("p", { class: "sentence" }, el("b", {}, "Power and energy were not measured"), reason ? `: ${reason}.` : ".");
}

function charts(records) {
  const networks = [...new Set(records.map((record) => record.network))];
  const of = (network) => records.filter((record) => record.network === network);
  const single = networks.map((network) => of(network).find((record) => record.batch === 1)).filter(Boolean);
  const fastest = networks.map((network) => best(of(network), (record) => record.throughput_img_s));
  const powered = networks.map((network) => of(network).filter((record) => has(record.power?.joules_per_image))).filter((items) => items.length).map((items) => items.reduce((a, b) => (b.power.joules_per_image < a.power.joules_per_image ? b : a)));
  const weighed = networks.map((network) => of(network).filter((record) => has(record.memory_mb?.peak_rss ?? record.memory_mb?.peak_gpu))[0]).filter(Boolean);
  return [
    chart("Time for one picture", "Median at batch 1; the 99th percentile beside it. Shorter is faster.", single, (r) => r.latency_ms.p50, (r) => `${number(r.latency_ms.p50, "ms")}, p99 ${number(r.latency_ms.p99, "ms")}`, false),
    chart("Pictures per second", "At the best batch size measured. Longer is faster.", fastest, (r) => r.throughput_img_s, (r) => `${number(r.throughput_img_s)} at batch ${r.batch}`, true),
    powered.length &&
      chart("Energy per picture", "At the batch size that takes least energy, with the mean power. Shorter is better.", powered, (r) => r.power.joules_per_image, (r) => `${number(r.power.joules_per_image, "J")}, ${number(r.power.mean_w, "W")}`, false),
    chart("Memory", "Peak of the process, or of the GPU if it ran there, weights included.", weighed, (r) => r.memory_mb.peak_gpu ?? r.memory_mb.peak_rss, (r) => number(r.memory_mb.peak_gpu ?? r.memory_mb.peak_rss, "MB"), false),
    balls(single.length ? single : fastest),
  ].filter(Boolean);
}

const figure = (title, caption, ...content) => el("figure", { class: "chart" }, el("figcaption", {}, el("h3", {}, title), caption && el("p", { class: "faint" }, caption)), ...content);

/** A bar per network, the best first; null if no record has the value. */
function chart(title, caption, records, value, text, largestFirst) {
  const known = records.filter((record) => has(value(record))).sort((a, b) => (largestFirst ? value(b) - value(a) : value(a) - value(b)));
  if (!known.length) return null;
  const most = Math.max(...known.map(value));
  return figure(title, caption, el("ol", { class: "bars" }, known.map((record) => el("li", {}, el("span", { class: "label" }, shownName(record)), el("span", { class: "value" }, text(record)), bar(value(record) / most, record.weights === "untrained" ? "hatched" : "")))));
}

/** The paper's ball chart: accuracy over operations, a ball's area in proportion to the parameters. */
function balls(records) {
  const known = records.filter((r) => has(r.top1) && r.macs > 0 && r.params > 0 && (r.classes ?? 1000) === 1000).sort((a, b) => a.macs - b.macs);
  if (known.length < 2) return null;
  // Text keeps its size, so on a phone there are fewer units across.
  const [width, height, left, bottom, top, right] = innerWidth > 640 ? [720, 400, 56, 48, 20, 90] : [340, 340, 36, 48, 20, 80];
  const accuracies = known.map((r) => r.top1);
  const [low, high] = [Math.floor((Math.min(...accuracies) - 3) / 5) * 5, Math.ceil((Math.max(...accuracies) + 2) / 5) * 5];
  const [from, to] = [Math.log10(known[0].macs / 1.6), Math.log10(known.at(-1).macs * 1.6)];
  const x = (macs) => left + ((Math.log10(macs) - from) / (to - from)) * (width - left - right);
  const y = (top1) => height - bottom - ((top1 - low) / (high - low)) * (height - bottom - top);
  const most = Math.max(...known.map((r) => r.params));
  const parts = [];
  for (let tick = low; tick <= high; tick += high - low > 30 ? 10 : 5) {
    parts.push(svg("line", { class: "grid", x1: left, x2: width - right / 2, y1: y(tick), y2: y(tick) }), svg("text", { x: left - 8, y: y(tick) + 5, "text-anchor": "end" }, `${tick}`));
  }
  for (const giga of [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]) {
    const at = Math.log10(giga * 1e9);
    if (at > from && at < to) parts.push(svg("text", { x: x(giga * 1e9), y: height - bottom + 22, "text-anchor": "middle" }, `${giga}`));
  }
  parts.push(svg("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "operations, G multiply-adds"));
  const taken = [];
  // From the top down, so that labels which give way to each other keep the balls' order.
  for (const record of [...known].sort((a, b) => b.top1 - a.top1)) {
    const [cx, cy, r] = [x(record.macs), y(record.top1), Math.max(4, 38 * Math.sqrt(record.params / most))];
    let at = cy + 5;
    while (taken.some((other) => Math.abs(other.y - at) < 17 && Math.abs(other.x - cx) < 120)) at += 17;
    taken.push({ x: cx, y: at });
    parts.push(svg("circle", { class: "ball", cx, cy, r }), svg("text", { class: "ball-name", x: cx + r + 5, y: at }, shownName(record)));
  }
  const text = known.map((r) => `${r.network} ${number(r.top1)} % at ${number(r.macs / 1e9)} G`).join("; ");
  return figure("Accuracy over operations", "Top-1 accuracy in percent; a ball's area is the number of parameters.", svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": text }, parts));
}

function rows(records) {
  const heads = ["network", "batch", "p50 ms", "p90 ms", "p99 ms", "pictures/s", "memory MB", "W", "J per picture", "top-1 %"];
  const sorted = [...records].sort((a, b) => a.network.localeCompare(b.network, "en", { numeric: true }) || a.batch - b.batch);
  return table(
    "Every number",
    heads,
    sorted.map((r) => [shownName(r), String(r.batch), number(r.latency_ms.p50), number(r.latency_ms.p90), number(r.latency_ms.p99), number(r.throughput_img_s ?? NaN), number(r.memory_mb?.peak_gpu ?? r.memory_mb?.peak_rss ?? NaN), number(r.power?.mean_w ?? NaN), number(r.power?.joules_per_image ?? NaN), number(r.top1 ?? NaN)]),
  );
}

function failed(records) {
  const bad = records.filter((record) => record.status !== "ok");
  return bad.length ? el("ul", { class: "faint" }, bad.map((r) => el("li", {}, `${r.network}, ${seriesOf(r)}, batch ${r.batch}: ${r.status}`))) : null;
}
