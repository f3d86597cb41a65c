// Sets up the page: tabs, drawing controls, and the tabs' modules.

import { fetchInfo } from "./api.js";
import * as batch from "./batch.js";
import * as compare from "./compare.js";
import { byId, make, showError, working } from "./dom.js";
import { setColormaps } from "./draw.js";
import * as explain from "./explain.js";
import * as search from "./search.js";

const allTabs = () => [...document.querySelectorAll("[role=tab]")];

function select(tab) {
  const tabs = allTabs();
  showError(null);
  for (const each of tabs) {
    const selected = each === tab;
    each.setAttribute("aria-selected", selected);
    each.tabIndex = selected ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = !selected;
  }
  byId("box-controls").hidden = ["search", "compare"].some((panel) => byId(panel)?.hidden === false); // have no boxes
}

for (const tab of allTabs()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", ({ key }) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    const tabs = allTabs();
    const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
    if (!step) return;
    select(next);
    next.focus();
  });
}

function redraw() {
  byId("alpha-value").textContent = `${Math.round(100 * byId("alpha").value)} %`;
  byId("threshold-value").textContent = Number(byId("threshold").value).toFixed(2);
  search.redraw();
  explain.redraw();
  compare.redraw();
}

// A file dropped outside a drop zone must not replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());

const info = await working("Starting", fetchInfo);
if (info) {
  setColormaps(info.colormaps);
  byId("colormap").append(...Object.keys(info.colormaps).map((name) => make("option", {}, name)));
  byId("about").textContent = info.about;
  byId("look").addEventListener("input", redraw);
  byId("look").addEventListener("submit", (event) => event.preventDefault());
  redraw();
  if (info.gallery) search.start();
  if (info.explain) {
    explain.start(info);
    compare.start(info);
    batch.start();
  }
  const offered = { search: info.gallery, explain: info.explain, compare: info.explain, batch: info.explain };
  for (const tab of allTabs()) {
    const panel = tab.getAttribute("aria-controls");
    if (!offered[panel]) [tab, byId(panel)].forEach((element) => element.remove());
  }
  select(allTabs()[0]);
}
document.body.dataset.ready = Boolean(info);
