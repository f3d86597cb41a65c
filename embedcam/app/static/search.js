// The search tab: the hits of a query, which of their places are alike, and why one hit is above another.

import { bytes, post } from "./api.js";
import { accepts, breakable, byId, make, onPaste, working } from "./dom.js";
import { decode, draw, drawSigned, loadPicture, mark } from "./draw.js";
import { cosines, directions, nearestCell, placed, placedSigned, shared } from "./likeness.js";

const [LONGEST_QUERY_SIDE, LONGEST_HIT_SIDE] = [800, 480];
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

// { file, match, pictures: the query and the hits, pointed: { picture, cell } or null, selected: indices of pictures }
let shown = null;
let latest = 0; // number of the latest request; older responses are dropped

export function start() {
  const search = byId("search");
  accepts(byId("query"), ([file]) => find(file));
  onPaste(search, find);
  byId("top").addEventListener("change", () => shown && find(shown.file));
  search.addEventListener("pointerdown", ({ target }) => target.closest("canvas") || point(null));
  interactive(byId("query-view"), 0);
}

async function find(file) {
  const mine = ++latest;
  const result = await working("Searching", async () => {
    const image = await decode(file);
    const query = [["top", byId("top").value], ["include", "cells"], ...(image ? [] : [["include", "picture"]])];
    const match = await (await post("match", { image: file }, query)).json();
    const [left, top, right, bottom] = match.seen;
    const seen = image
      ? await createImageBitmap(image, left, top, right - left, bottom - top)
      : await decode(new Blob([bytes(match.picture)]));
    return { file, match, seen };
  });
  if (mine === latest) show(result);
}

function show(result) {
  byId("asked").hidden = !result;
  byId("hits").replaceChildren();
  shown = null;
  if (!result) return;
  const { file, match, seen } = result;
  const count = match.rows.length * match.columns.length;
  const pictures = [{ canvas: byId("query-view"), image: seen, side: LONGEST_QUERY_SIDE, cells: directions(match.cells, count) }];
  for (const hit of match.hits) pictures.push(card(hit, pictures.length, directions(hit.cells, count)));
  shown = { file, match, pictures, pointed: null, selected: [] };
  byId("hits").replaceChildren(...pictures.slice(1).map(({ figure }) => figure));
  byId("query-view").ariaLabel = `Query ${match.image}. Arrow keys point at its places.`;
  redraw();
  byId("hits").ariaBusy = "true";
  Promise.all(pictures.slice(1).map(load)).then(() => shown?.match === match && (byId("hits").ariaBusy = "false"));
}

// A hit with its canvas, caption and checkbox.
function card(hit, index, cells) {
  const name = hit.label || hit.hit;
  const canvas = make("canvas", { role: "application" });
  canvas.ariaLabel = `Hit ${hit.rank}, ${name}. Arrow keys point at its places, Enter selects it.`;
  interactive(canvas, index);
  const value = make("span", { className: "value" });
  const missing = make("span", { className: "missing", hidden: Boolean(hit.picture) }, "The picture is missing.");
  const box = make("input", { type: "checkbox", ariaLabel: `Compare hit ${hit.rank}` });
  box.addEventListener("change", () => select(index));
  const title = make("b", {}, `${hit.rank}. `, breakable(name));
  const figure = make("figure", { title: hit.hit }, canvas, make("figcaption", {}, title, value, missing, make("label", {}, box, "Compare")));
  return { hit, figure, canvas, value, missing, box, cells, image: null, side: LONGEST_HIT_SIDE };
}

async function load(picture) {
  picture.image = await loadPicture(picture.hit.picture);
  picture.missing.hidden = Boolean(picture.image);
  redraw();
}

// Pointing with mouse, finger or arrow keys; hits are selected by a click or a key.
function interactive(canvas, index) {
  canvas.tabIndex = 0;
  const follow = ({ clientX, clientY, type }) => {
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const cell = nearestCell(shown.match, (clientY - top) / height, (clientX - left) / width);
    // After a click, the answer stays until the pointer has left the cell.
    if (type === "pointerdown" || shown.left?.picture !== index || shown.left.cell !== cell) point({ picture: index, cell });
  };
  canvas.addEventListener("pointerdown", follow);
  canvas.addEventListener("pointermove", follow);
  // A finger covers what it points at, so that stays lit.
  canvas.addEventListener("pointerleave", ({ pointerType }) => pointerType === "touch" || point(null));
  canvas.addEventListener("blur", () => point(null));
  canvas.addEventListener("keydown", (event) => {
    const selects = index && ["Enter", " "].includes(event.key);
    if (!selects && !STEPS[event.key] && event.key !== "Escape") return;
    event.preventDefault();
    if (selects) select(index);
    else if (event.key === "Escape") point(null);
    else step(index, STEPS[event.key]);
  });
  if (index) canvas.addEventListener("click", () => select(index));
}

function step(index, [down, right]) {
  const { rows, columns } = shown.match;
  const here = shown.pointed?.picture === index ? shown.pointed.cell : null;
  const move = (place, by, count) => Math.min(Math.max(place + by, 0), count - 1);
  const row = here === null ? rows.length >> 1 : move(Math.floor(here / columns.length), down, rows.length);
  const column = here === null ? columns.length >> 1 : move(here % columns.length, right, columns.length);
  point({ picture: index, cell: row * columns.length + column });
  const found = shown.pictures.map(({ hit, likeness }) => [hit ? `hit ${hit.rank}` : "the query", Math.max(...likeness)]);
  const others = found.filter((_, other) => other !== index).sort(([, a], [, b]) => b - a).slice(0, 3);
  byId("status").textContent =
    `Row ${row + 1} of ${rows.length}, column ${column + 1} of ${columns.length}. ` +
    `Most alike: ${others.map(([name, cosine]) => `${name}, ${cosine.toFixed(2)}`).join("; ")}`;
}

function point(place) {
  if (!shown || (place?.picture === shown.pointed?.picture && place?.cell === shown.pointed?.cell)) return;
  shown.pointed = place;
  shown.left = null;
  redraw();
}

// Two hits at most; a third replaces the first.
function select(index) {
  const { selected } = shown;
  shown.selected = selected.includes(index) ? selected.filter((each) => each !== index) : [...selected, index].slice(-2);
  shown.left = shown.pointed;
  shown.pointed = null;
  redraw();
}

export function redraw() {
  if (!shown) return;
  const { match, pictures, pointed, selected } = shown;
  const direction = pointed && pictures[pointed.picture].cells[pointed.cell];
  const current = pictures[selected.length === 1 ? selected[0] : 1].hit; // whose shared map the query shows
  pictures.forEach((picture, index) => {
    const { hit, canvas, image, side, cells } = picture;
    picture.likeness = pointed && cosines(direction, cells);
    const values = pointed ? picture.likeness.map((cosine) => Math.max(cosine, 0)) : shared(hit || current, hit ? "hit" : "query");
    draw(canvas, image, placed(match, values), side);
    if (pointed?.picture === index) markCell(canvas, pointed.cell);
    if (!pointed && selected.length === 1 && (!hit || hit === current))
      current.correspondences.forEach((pair, number) => mark(canvas, ...pair[hit ? "hit" : "query"], String(number + 1)));
    if (hit) describe(picture, selected.includes(index));
  });
  byId("query-caption").textContent = pointed
    ? "Every place lights up as far as it is like the one you point at."
    : `What it shares with hit ${current.rank}. Point at a place of any picture to see where else it is found.`;
  showDifference();
}

function describe({ hit, figure, value, box, likeness }, selected) {
  value.textContent = likeness ? `most alike ${Math.max(...likeness).toFixed(2)}` : score(hit);
  figure.classList.toggle("selected", selected);
  box.checked = selected;
}

const score = ({ similarity, distance }) =>
  shown.match.metric === "cosine" ? `similarity ${similarity.toFixed(3)}` : `distance ${distance.toFixed(3)}`;

function markCell(canvas, cell) {
  const { rows, columns } = shown.match;
  mark(canvas, rows[Math.floor(cell / columns.length)], columns[cell % columns.length]);
}

// Why the higher one of two selected hits is above the other.
function showDifference() {
  const { match, pictures, selected } = shown;
  byId("difference").hidden = selected.length < 2;
  if (selected.length < 2) return;
  const [first, second] = selected.toSorted((a, b) => a - b).map((index) => pictures[index].hit);
  const [more, less] = [first, second].map((hit) => hit.contributions.query.flat());
  const signed = more.map((value, cell) => value - less[cell]);
  const scale = Math.max(...signed.map(Math.abs)) || 1;
  drawSigned(byId("difference-view"), pictures[0].image, placedSigned(match, signed.map((value) => value / scale)), LONGEST_QUERY_SIDE);
  const sum = (sign) => signed.reduce((total, value) => total + Math.max(sign * value, 0), 0).toFixed(3);
  byId("difference-title").textContent = `Why hit ${first.rank} is above hit ${second.rank}`;
  const apart = first.similarity - second.similarity;
  byId("difference-text").textContent =
    `Orange speaks for hit ${first.rank} (${sum(1)}), blue for hit ${second.rank} (${sum(-1)}); their similarities differ by ${apart.toFixed(3)}.`;
  byId("difference-view").ariaLabel = byId("difference-title").textContent;
}
