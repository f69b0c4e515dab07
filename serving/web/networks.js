// What a network said, as a card, and what all of them said, as a verdict.

import { trouble } from "./ask.js";
import { bar, el, listed, ms, percent, plain, plural } from "./dom.js";

const ENGINES = { onnxruntime: "ONNX Runtime", openvino: "OpenVINO", tensorrt: "TensorRT", "tensorrt-rtx": "TensorRT for RTX" };
const WEIGHTS = { pretrained: "trained", custom: "own weights", untrained: "untrained" };
const STAGES = ["decode", "queue", "inference"];

/** A network that reads digits in grey. It is asked about drawings, and shown apart when pictures are compared. */
export const readsDigits = (model) => model.input?.mode === "L" && model.classes === 10;

export const untrained = (model) => model.weights === "untrained";

const engine = (id) => ENGINES[id] ?? id;

/** Two answers are the same if this is: the class's WordNet id, or its name. */
export const classOf = (prediction) => prediction.synset ?? prediction.label.toLowerCase();

/** The answers grouped by their first class, the most frequent first, then the most certain. */
export function groups(answers) {
  const found = new Map();
  for (const answer of answers) {
    const [best] = answer.predictions;
    const group = found.get(classOf(best)) ?? { class: classOf(best), label: best.label, answers: [], sure: 0 };
    group.answers.push(answer);
    group.sure += best.probability;
    found.set(group.class, group);
  }
  return [...found.values()].sort((a, b) => b.answers.length - a.answers.length || b.sure - a.sure);
}

/** What the trained networks say: `headline`, `sentence`, their `groups`, and the class of the majority. */
export function verdict(answers) {
  const trained = answers.filter((answer) => !untrained(answer));
  const parts = groups(trained);
  const names = (group) => listed(group.answers.map((answer) => answer.model));
  const left = answers.length - trained.length;
  const note = left ? `${plural(left, "network is", "networks are")} untrained and left out of the count.` : "";
  if (!trained.length) {
    return { headline: "Noise", sentence: `${left === 1 ? "The network here has" : "None of the networks here has"} ${left === 1 ? "not " : ""}been trained: the answers mean nothing.`, groups: [], class: null };
  }
  const [first, second] = parts;
  const all = trained.length;
  if (!second) {
    const who = all === 1 ? `says ${names(first)}${left ? ", the only trained network here" : ""}.` : all === 2 ? "Both trained networks agree." : `All ${all} trained networks agree.`;
    return { headline: first.label, sentence: `${who} ${note}`.trim(), groups: parts, class: first.class };
  }
  const tied = first.answers.length === second.answers.length;
  const sentence = tied
    ? `The ${all} trained networks disagree; no answer has a majority.`
    : `${first.answers.length} of ${all} trained networks say so; ${names({ answers: parts.slice(1).flatMap((g) => g.answers) })} ${all - first.answers.length === 1 ? "differs" : "differ"}.`;
  return { headline: tied ? "They disagree" : first.label, sentence: `${sentence} ${note}`.trim(), groups: parts, class: tied ? null : first.class };
}

/** `verdict` on the page. */
export function verdictShown(said) {
  const most = Math.max(1, ...said.groups.map((group) => group.answers.length));
  return [
    el("h2", { class: "headline" }, said.headline),
    el("p", { class: "sentence" }, said.sentence),
    said.groups.length > 1 &&
      el(
        "ul",
        { class: "votes", "aria-label": "Who says what" },
        said.groups.map((group) =>
          el(
            "li",
            { class: group.class === said.class ? "same" : "other" },
            el("span", { class: "label" }, group.label),
            el("span", { class: "value" }, plural(group.answers.length, "network")),
            bar(group.answers.length / most),
            el("span", { class: "who faint" }, group.answers.map((answer) => answer.model).join(", ")),
          ),
        ),
      ),
  ];
}

/** The bars of an answer's classes; those of the class that the majority says are marked. */
export function bars(predictions, majority = null) {
  return el(
    "ol",
    { class: "bars" },
    predictions.map((one) =>
      el(
        "li",
        { class: majority !== null && classOf(one) === majority ? "same" : "" },
        el("span", { class: "label" }, one.label),
        el("span", { class: "value" }, percent(one.probability)),
        bar(one.probability),
      ),
    ),
  );
}

/** Where the time of an answer went; the bar's full width is `longest` milliseconds. */
export function times(answer, longest) {
  const timing = answer.timing_ms;
  const strip = el("div", { class: "strip", "aria-hidden": "true" });
  for (const stage of STAGES) {
    const part = el("span", { class: stage });
    part.style.inlineSize = `${(100 * timing[stage]) / longest}%`;
    strip.append(part);
  }
  return el(
    "div",
    { class: "times" },
    strip,
    el(
      "dl",
      {},
      [...STAGES, "total"].map((stage) => el("div", { class: stage }, el("dt", {}, stage), el("dd", {}, ms(timing[stage])))),
    ),
  );
}

/** What the network is and what runs it. */
export function how(model, answer = null) {
  const batch = answer && answer.batch_size > 1 ? `in a batch of ${answer.batch_size}` : null;
  const params = model.params ? `${plain(model.params / 1e6, model.params < 1e7 ? 2 : 1)}\u00a0M parameters` : null;
  return el("p", { class: "how faint" }, [`${engine(model.engine)} ${model.precision}`, batch, params].filter(Boolean).join(" · "));
}

export const badge = (model) =>
  el("span", { class: `badge ${untrained(model) ? "noise" : ""}` }, WEIGHTS[model.weights] ?? `${model.weights} weights`);

export const heading = (model) =>
  el("header", {}, el("h3", {}, model.model), model.year && el("span", { class: "year faint" }, String(model.year)), badge(model));

/** The card of one network: `model` from /models, `answer` from /compare. */
export function card(model, answer, { majority = null, longest = 1, note = null } = {}) {
  if (answer.error) {
    return el("article", { class: "card" }, heading(model), el("p", { class: "sentence" }, trouble(answer.error).message), el("p", { class: "faint" }, answer.error.message));
  }
  const [best] = answer.predictions;
  const kind = untrained(answer) ? "untrained" : majority === null ? "" : classOf(best) === majority ? "agrees" : "differs";
  const stance = { untrained: "Never trained: these answers are noise", agrees: "", differs: `Differs: ${best.label}`, "": "" }[kind];
  return el(
    "article",
    { class: `card ${kind}` },
    heading({ ...model, ...answer }),
    stance && el("p", { class: "stance" }, stance),
    note && el("p", { class: "faint" }, note),
    bars(answer.predictions, majority),
    times(answer, longest),
    how({ ...model, ...answer }, answer),
  );
}
