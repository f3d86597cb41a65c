// Brings the page to life: tabs, controls, and the three things to do.

import { info } from "./api.js";
import * as batch from "./batch.js";
import * as compare from "./compare.js";
import { byId, make, say, working } from "./dom.js";
import { learn } from "./draw.js";
import * as explain from "./explain.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function select(tab) {
  say(null);
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  byId("box-controls").hidden = !byId("compare").hidden; // what is compared has no boxes
  tab.focus();
}

for (const tab of tabs) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (step) select(tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length]);
  });
}

function redraw() {
  byId("alpha-value").textContent = `${Math.round(100 * byId("alpha").value)} %`;
  byId("threshold-value").textContent = Number(byId("threshold").value).toFixed(2);
  explain.redraw();
  compare.redraw();
}

// A file that misses its drop zone must not replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());

const known = await working("Starting", info);
if (known) {
  learn(known.colormaps);
  byId("colormap").append(...Object.keys(known.colormaps).map((name) => make("option", {}, name)));
  byId("about").textContent = known.about;
  byId("look").addEventListener("input", redraw);
  byId("look").addEventListener("submit", (event) => event.preventDefault());
  redraw();
  explain.start(known);
  compare.start(known);
  batch.start();
}
document.body.dataset.ready = Boolean(known);
