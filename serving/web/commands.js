// The commands that do what the page just did.

import { ADDRESS, hasToken } from "./ask.js";
import { el, say } from "./dom.js";

/** `text` as one word of a POSIX shell. */
export const word = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** A file's name that is safe to paste into a terminal: one with control characters is not shown. */
export function fileName(text) {
  if (!text || /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/u.test(text)) return "picture";
  return text.startsWith("-") ? `./${text}` : text;
}

/** `name` and `type` of the file, `models` that answered; `path` of the request; `fetched`, the sample's path. */
export function commands({ name, type, models, path, topK, fetched }) {
  const file = fileName(name);
  const curl = [
    ...(fetched ? [`curl -O ${word(`${ADDRESS}/${fetched}`)}`] : []),
    `curl --data-binary ${word(`@${file}`)} \\`,
    `  -H ${word(`Content-Type: ${type || "application/octet-stream"}`)} \\`,
    ...(hasToken() ? ['  -H "Authorization: Bearer $PODIUM_TOKEN" \\'] : []),
    `  ${word(`${ADDRESS}/${path}`)}`,
  ].join("\n");
  const one = models.length === 1;
  const call = `client.classify(image=Path(${JSON.stringify(file)}), model=${one ? JSON.stringify(models[0]) : "model"}, top_k=${topK})`;
  const python = [
    ...(hasToken() ? ["import os"] : []),
    "from pathlib import Path",
    "",
    "import bentoml",
    "",
    `with bentoml.SyncHTTPClient(${JSON.stringify(ADDRESS)}${hasToken() ? ', token=os.environ["PODIUM_TOKEN"]' : ""}) as client:`,
    ...(one ? [`    print(${call})`] : [`    for model in ${JSON.stringify(models)}:`, `        print(${call})`]),
  ].join("\n");
  return el(
    "details",
    { class: "commands", open: true },
    el("summary", {}, el("h2", {}, "The same from a terminal")),
    block("curl", curl),
    block("Python, with BentoML's client", python),
    block("Python, with tritonclient", triton(file, models, topK)),
  );
}

/** The Open Inference Protocol takes pixels: the picture is brought to each network's input by its own recipe. */
function triton(file, models, topK) {
  const headers = hasToken() ? 'headers = {"Authorization": f"Bearer {os.environ[\'PODIUM_TOKEN\']}"}' : "headers = {}";
  return `import json
${hasToken() ? "import os\n" : ""}import urllib.request

import numpy as np
import tritonclient.http as triton
from PIL import Image

${headers}
with triton.InferenceServerClient(${JSON.stringify(new URL(ADDRESS).host)}) as client:
    for model in ${JSON.stringify(models)}:
        about = urllib.request.Request(f"${ADDRESS}/models/{model}", headers=headers)
        recipe = json.load(urllib.request.urlopen(about))["manifest"]["input"]
        picture, crop = Image.open(${JSON.stringify(file)}).convert(recipe["mode"]), recipe["crop"]
        filter, short = Image.Resampling[recipe["interpolation"].upper()], min(picture.size)
        picture = picture.resize([int(recipe["resize"] * side / short) for side in picture.size], filter)
        left, top = (round((side - crop) / 2) for side in picture.size)
        pixels = np.asarray(picture.crop((left, top, left + crop, top + crop)), np.uint8)
        image = triton.InferInput("image", [1, crop, crop, len(recipe["mean"])], "UINT8")
        image.set_data_from_numpy(pixels.reshape(image.shape()))
        wanted = triton.InferRequestedOutput("probabilities", class_count=${topK})
        answer = client.infer(model, [image], outputs=[wanted], headers=headers)
        print(model, answer.as_numpy("probabilities"))`;
}

function block(title, text) {
  const code = el("code", {}, text);
  const button = el("button", { type: "button", "aria-label": `Copy: ${title}` }, "Copy");
  button.addEventListener("click", async () => {
    const done = await copy(text, code);
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    say(done ? `Copied: ${title}.` : "The command is selected; copy it with Ctrl and C.");
    button.addEventListener("blur", () => (button.textContent = "Copy"), { once: true });
  });
  return el(
    "div",
    { class: "command" },
    el("div", { class: "command-head" }, el("h3", {}, title), button),
    el("pre", { tabindex: "0", role: "region", "aria-label": title }, code),
  );
}

/** Whether `text` is in the clipboard; else it is selected. Browsers keep the clipboard from pages without TLS. */
async function copy(text, code) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
}
