// A drawn digit. Strokes are kept as points, so that the drawing can be brought into MNIST's form before it is drawn in
// pixels. LeNet-5 learned from that form and reads no other.

import { classify, showTrouble } from "./ask.js";
import { commands } from "./commands.js";
import { $, el, percent, plural, say } from "./dom.js";
import { known, refresh } from "./loaded.js";
import { bars, heading, how, readsDigits, times, untrained } from "./networks.js";

const SIDE = 28; // pixels of an MNIST digit
const BOX = 20; // of these, the digit's longer side
const PEN = 2.6; // width of a stroke, in the same pixels
const FINE = 10; // how much finer it is drawn before it is averaged down

let networks = null; // that read digits, once they are known
let strokes = []; // each a list of [x, y], 0 to 1 of the pad
let stroke = null; // the one being drawn
let pen = null; // the keyboard's: { x, y }
let asking = null; // aborts the current request
let waiting = false; // whether there is a drawing without an answer
let saved = null; // the address of the PNG sent

export function start() {
  const pad = $("pad");
  const place = (event) => {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  pad.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || stroke) return;
    pad.setPointerCapture(event.pointerId);
    pen = null;
    stroke = [place(event)];
    draw();
  });
  pad.addEventListener("pointermove", (event) => {
    if (!stroke || pen) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) stroke.push(place(each));
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) pad.addEventListener(end, () => pen || finish());
  pad.addEventListener("keydown", key);
  pad.addEventListener("blur", () => {
    if (pen && stroke) finish();
    pen = null;
    draw();
  });
  $("undo").addEventListener("click", undo);
  $("clear").addEventListener("click", clear);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}

/** Shows the networks that read digits. A drawing that has waited for them is sent. */
export function show(models) {
  networks = models.filter(readsDigits);
  if (!strokes.length) empty();
  else if (waiting && !asking) ask();
}

function empty() {
  $("digit-answer").replaceChildren();
  if (!networks) return;
  const names = networks.map((model) => model.model).join(", ");
  $("digit-answer").replaceChildren(
    el("h2", { class: "headline waiting" }, networks.length ? "Any digit, 0 to 9" : "No network for digits is loaded"),
    el("p", { class: "sentence" }, networks.length ? `${names} answers after every stroke.` : "`python -m export lenet5` exports LeNet-5; then serve again."),
    ...networks.map((model) => el("article", { class: "card alone" }, heading(model), how(model))),
  );
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const move = MOVES[event.key];
  if (move) {
    const step = event.shiftKey ? 0.1 : 0.025;
    pen ??= { x: 0.5, y: 0.2 };
    pen.x = Math.min(0.97, Math.max(0.03, pen.x + step * move[0]));
    pen.y = Math.min(0.97, Math.max(0.03, pen.y + step * move[1]));
    stroke?.push([pen.x, pen.y]);
  } else if (event.key === " " || event.key === "Enter") {
    pen ??= { x: 0.5, y: 0.2 };
    if (stroke) finish();
    else {
      stroke = [[pen.x, pen.y]];
      say("Pen down.");
    }
  } else if (event.key === "Backspace") undo();
  else if (event.key === "Delete") clear();
  else return;
  event.preventDefault();
  draw();
}

function finish() {
  if (!stroke) return;
  strokes.push(stroke);
  stroke = null;
  draw();
  ask();
}

function undo() {
  stroke ? (stroke = null) : strokes.pop();
  draw();
  strokes.length ? ask() : clear();
}

function clear() {
  asking?.abort();
  asking = null;
  strokes = [];
  stroke = null;
  draw();
  showTrouble($("digit-trouble"), null);
  $("digit-commands").replaceChildren();
  say("The pad is empty.");
  empty();
}

/** The pad as it stands. */
function draw() {
  const pad = $("pad");
  const context = pad.getContext("2d");
  const style = getComputedStyle(pad);
  context.clearRect(0, 0, pad.width, pad.height);
  trace(context, stroke ? [...strokes, stroke] : strokes, ([x, y]) => [x * pad.width, y * pad.height], (PEN / SIDE) * pad.width, style.color);
  if (pen) {
    context.beginPath();
    context.arc(pen.x * pad.width, pen.y * pad.height, stroke ? 14 : 22, 0, 7);
    context.lineWidth = 5;
    context.strokeStyle = style.outlineColor;
    context.stroke();
  }
  $("undo").disabled = $("clear").disabled = !strokes.length && !stroke;
}

function trace(context, lines, at, width, colour) {
  context.lineCap = context.lineJoin = "round";
  context.lineWidth = width;
  context.strokeStyle = colour;
  for (const line of lines) {
    context.beginPath();
    context.moveTo(...at(line[0]));
    for (const point of line) context.lineTo(...at(point)); // of a single point, the line's round ends remain: a dot
    context.stroke();
  }
}

/** The drawing as MNIST has its digits: white on black, its longer side 20 of 28 pixels, its weight in the middle. */
export function mnist(lines) {
  const xs = lines.flat().map(([x]) => x);
  const ys = lines.flat().map(([, y]) => y);
  const [left, top] = [Math.min(...xs), Math.min(...ys)];
  const [width, height] = [Math.max(...xs) - left, Math.max(...ys) - top];
  const side = SIDE * FINE;
  const scale = ((BOX - PEN) * FINE) / Math.max(width, height, 0.15); // a dot stays a dot
  const shift = [(side - width * scale) / 2, (side - height * scale) / 2];
  const fine = paint(side, (context) => {
    trace(context, lines, ([x, y]) => [(x - left) * scale + shift[0], (y - top) * scale + shift[1]], PEN * FINE, "white");
  });
  const { data } = fine.getContext("2d").getImageData(0, 0, side, side);
  let [mass, atX, atY] = [0, 0, 0];
  for (let i = 0; i < data.length; i += 4) {
    mass += data[i];
    atX += data[i] * ((i / 4) % side);
    atY += data[i] * Math.floor(i / 4 / side);
  }
  const middle = (side - 1) / 2;
  const room = (SIDE - BOX) / 2; // no stroke leaves the frame
  const within = (distance) => Math.min(room, Math.max(-room, distance));
  return paint(SIDE, (context) => {
    context.imageSmoothingQuality = "high";
    context.drawImage(fine, within((middle - atX / mass) / FINE), within((middle - atY / mass) / FINE), SIDE, SIDE);
  });
}

function paint(side, work) {
  const canvas = el("canvas", { width: side, height: side });
  const context = canvas.getContext("2d");
  context.fillStyle = "black";
  context.fillRect(0, 0, side, side);
  work(context);
  return canvas;
}

async function ask() {
  asking?.abort();
  const { signal } = (asking = new AbortController());
  waiting = true;
  if (!$("digit-answer").firstChild) $("digit-answer").replaceChildren(el("p", { class: "sentence busy" }, "Asking the networks …"));
  const file = await new Promise((resolve) => mnist(strokes).toBlob(resolve, "image/png"));
  if (signal.aborted) return;
  try {
    const answers = await read(file, signal);
    if (signal.aborted) return;
    asking = null;
    showTrouble($("digit-trouble"), null);
    if (!answers.length) return empty();
    waiting = false;
    answered(file, answers);
  } catch (error) {
    if (signal.aborted) return;
    asking = null;
    for (const id of ["digit-answer", "digit-commands"]) $(id).replaceChildren(); // they belong to an earlier drawing
    showTrouble($("digit-trouble"), error, ask);
  }
}

/** What each network for digits reads: [{ model, answer }]. If none is known or one is gone, the service is asked again. */
async function read(file, signal) {
  for (const list of [known, refresh]) {
    const readers = (await list()).filter(readsDigits);
    try {
      const answers = await Promise.all(readers.map((model) => classify(file, model.model, model.classes, signal)));
      if (answers.length) return readers.map((model, i) => ({ model, answer: answers[i] }));
    } catch (error) {
      if (error.code !== "unknown_model" || list === refresh) throw error;
    }
  }
  return [];
}

function answered(file, readings) {
  const [{ model: asked }] = readings;
  const answers = readings.map((reading) => reading.answer);
  if (saved) URL.revokeObjectURL(saved);
  saved = URL.createObjectURL(file);
  const [first] = answers;
  const [best] = first.predictions;
  const meaning = untrained(first) ? `${first.model} was never trained: its answers are noise.` : `says ${first.model}, ${percent(best.probability)} certain.`;
  $("digit-answer").replaceChildren(
    el("div", { class: "read" }, el("h2", { class: "headline digit" }, best.label), el("p", { class: "sentence" }, meaning)),
    el(
      "div",
      { class: "pair" },
      el(
        "figure",
        { class: "sent" },
        el("img", { src: saved, alt: "The drawing, centred and scaled, white on black", width: SIDE, height: SIDE }),
        el(
          "figcaption",
          { class: "faint" },
          `This is what was sent: the drawing in MNIST's form, which the network learned from. ${SIDE} × ${SIDE} pixels, white on black, the longer side ${BOX} of them, its weight in the middle. `,
          el("a", { href: saved, download: "digit.png" }, "Save digit.png"),
        ),
      ),
      ...readings.map((reading) => {
        const answer = reading.answer;
        const model = { ...reading.model, ...answer };
        const inOrder = [...answer.predictions].sort((a, b) => a.class_id - b.class_id);
        return el("article", { class: `card ${untrained(model) ? "untrained" : ""}` }, heading(model), bars(inOrder, answer.predictions[0].label), times(answer, answer.timing_ms.total), how(model, answer));
      }),
    ),
  );
  $("digit-commands").replaceChildren(
    commands({ name: "digit.png", type: "image/png", models: answers.map((answer) => answer.model), path: `classify?model=${encodeURIComponent(asked.model)}&top_k=${asked.classes}`, topK: asked.classes }),
  );
  say(`${answers.map((answer) => `${answer.model} reads ${answer.predictions[0].label}`).join(", ")}, after ${plural(strokes.length, "stroke")}.`);
}
