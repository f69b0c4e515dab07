// The page: its tabs, and which networks are loaded.

import { showTrouble } from "./ask.js";
import { $, plural } from "./dom.js";
import * as digit from "./digit.js";
import * as loaded from "./loaded.js";
import * as measured from "./measured.js";
import * as picture from "./picture.js";

const TABS = ["picture", "digit", "time"];

function open(chosen, focus = false) {
  for (const id of TABS) {
    const tab = $(`tab-${id}`);
    const selected = id === chosen;
    $(id).hidden = !selected;
    tab.setAttribute("aria-selected", String(selected));
    tab.tabIndex = selected ? 0 : -1;
    if (selected && focus) tab.focus();
  }
  chosen === "time" ? measured.open() : measured.close();
}

const fromAddress = () => (TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "picture");

for (const [i, id] of TABS.entries()) {
  $(`tab-${id}`).addEventListener("click", () => (location.hash = id));
  $(`tab-${id}`).addEventListener("keydown", (event) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: TABS.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = TABS.at(to % TABS.length);
    history.replaceState(null, "", `#${next}`);
    open(next, true);
  });
}
addEventListener("hashchange", () => {
  if (location.hash !== "#main") open(fromAddress());
});

function show(networks) {
  showTrouble($("trouble"), null);
  $("loaded").textContent = `${plural(networks.length, "network looks", "networks look")} at your picture`;
  picture.show(networks);
  digit.show(networks);
}

async function load() {
  showTrouble($("trouble"), null);
  try {
    await loaded.refresh();
  } catch (error) {
    showTrouble($("trouble"), error, load);
  }
}

loaded.whenAsked(show);
picture.start();
digit.start();
open(fromAddress());
load();
