// The second tab: what two pictures share, and where they differ.

import { post } from "./api.js";
import { accepts, byId, make, working } from "./dom.js";
import { draw, picture } from "./draw.js";

const LONGEST = 800;
const SIDES = ["image", "other"];
const files = {};
let now = null; // { found, images } on the screen

export function start(info) {
  byId("compare-hint").textContent = info.compare_hint;
  byId("compare-hint").hidden = info.compare;
  byId("sides").hidden = !info.compare;
  for (const side of SIDES) {
    accepts(byId(side), ([file]) => {
      files[side] = file;
      byId(side).nextElementSibling.replaceChildren(file.name, " (", make("b", {}, "another file"), ")");
      if (SIDES.every((name) => files[name])) compare();
    });
  }
}

async function compare() {
  now = await working("Comparing", async () => {
    const found = await (await post("compare", files)).json();
    return { found, images: Object.fromEntries(await Promise.all(SIDES.map(async (side) => [side, await picture(files[side])]))) };
  });
  byId("compared").hidden = !now;
  if (now) redraw();
}

export function redraw() {
  if (!now) return;
  const { found, images } = now;
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
  byId("similarity").replaceChildren(
    make("h2", {}, `Similarity ${found.similarity.toFixed(3)}`),
    make("p", {}, "It is the sum of what all places of a picture say for and against the match."),
    ...found.notes.map((note) => make("p", { className: "note" }, note)),
  );
  const cells = SIDES.flatMap((side) => [
    [found[side], null, side],
    [`shared, ${signed(found.for[side])}`, found.shared[side], side],
    [`differs, ${signed(found.against[side])}`, found.differs[side], side],
  ]);
  byId("maps").replaceChildren(
    ...cells.map(([caption, levels, side]) => {
      const canvas = make("canvas", { role: "img", ariaLabel: caption });
      draw(canvas, images[side], levels, LONGEST, images[side] || found.shared[side]);
      return make("figure", {}, canvas, make("figcaption", {}, caption));
    }),
  );
}
