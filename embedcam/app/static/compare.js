// The second tab: what two pictures share, and where they differ.

import { post } from "./api.js";
import { accepts, byId, make, working } from "./dom.js";
import { decode, draw } from "./draw.js";

const LONGEST_SIDE = 800;
const SIDES = ["image", "other"];
const files = {};
let shown = null; // { comparison, images }
let latest = 0; // number of the latest request; older responses are dropped

export function start(info) {
  byId("compare-hint").textContent = info.compare_hint;
  byId("compare-hint").hidden = info.compare;
  byId("sides").hidden = !info.compare;
  for (const side of SIDES) {
    accepts(byId(side), ([file]) => {
      files[side] = file;
      byId(side).nextElementSibling.replaceChildren(file.name, " (", make("b", {}, "choose another"), ")");
      if (SIDES.every((name) => files[name])) compare();
    });
  }
}

async function compare() {
  const mine = ++latest;
  const sent = { ...files };
  const result = await working("Comparing", async () => {
    const comparison = await (await post("compare", sent)).json();
    const images = await Promise.all(SIDES.map(async (side) => [side, await decode(sent[side])]));
    return { comparison, images: Object.fromEntries(images) };
  });
  if (mine !== latest) return;
  shown = result;
  byId("compared").hidden = !shown;
  redraw();
}

export function redraw() {
  if (!shown) return;
  const { comparison, images } = shown;
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
  byId("similarity").replaceChildren(
    make("h2", {}, `Similarity ${comparison.similarity.toFixed(3)}`),
    make("p", {}, "The similarity is the sum of the contributions of all cells of a picture, for and against the match."),
    ...comparison.notes.map((note) => make("p", { className: "note" }, note)),
  );
  const views = SIDES.flatMap((side) => [
    [comparison[side], null, side],
    [`shared, ${signed(comparison.for[side])}`, comparison.shared[side], side],
    [`differs, ${signed(comparison.against[side])}`, comparison.differs[side], side],
  ]);
  byId("maps").replaceChildren(
    ...views.map(([caption, levels, side]) => {
      const canvas = make("canvas", { role: "img", ariaLabel: caption });
      draw(canvas, images[side], levels, LONGEST_SIDE, images[side] || comparison.shared[side]);
      return make("figure", {}, canvas, make("figcaption", {}, caption));
    }),
  );
}
