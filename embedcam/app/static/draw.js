// Draws heat maps over pictures in the browser, so moving a slider sends no request.

import { bytes } from "./api.js";

const [FOR, AGAINST, EVIDENCE_ALPHA] = [[255, 140, 0], [20, 80, 255], 0.7]; // as the server draws evidence
const RADIUS = 10; // of marks, in pixels of the page

const colormaps = new Map();

export function setColormaps(colors) {
  for (const [name, rgb] of Object.entries(colors)) colormaps.set(name, bytes(rgb));
}

// The drawing options of the controls.
export function drawOptions() {
  const value = (id) => document.getElementById(id).value;
  return {
    alpha: Number(value("alpha")),
    colormap: value("colormap"),
    boxes: document.getElementById("boxes").checked,
    threshold: Number(value("threshold")),
  };
}

// Decode a picture; null if the browser does not support the format, which the server may.
export async function decode(file) {
  return createImageBitmap(file).catch(() => null);
}

// A picture of the server; null if it is missing.
export async function loadPicture(path) {
  const response = path && (await fetch(path).catch(() => null));
  const file = response && (await response.blob()); // read in any case, or the connection stays busy
  return response?.ok ? decode(file) : null;
}

function colored(levels, colormap) {
  const canvas = new OffscreenCanvas(levels.width, levels.height);
  const colors = colormaps.get(colormap);
  const pixels = new ImageData(levels.width, levels.height);
  const values = typeof levels.values === "string" ? bytes(levels.values) : levels.values;
  for (let i = 0; i < values.length; i++) {
    pixels.data.set(colors.subarray(3 * values[i], 3 * values[i] + 3), 4 * i);
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// Size a canvas, and draw the picture (or none) on white: the server sees transparent pictures so.
function drawPicture(canvas, image, longestSide, { width, height }) {
  const scale = longestSide / Math.max(width, height);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return { context, scale };
}

// Draw a picture and a map (either may be null) with the given longer side, and boxes in pixels of the picture. The
// map covers the picture, or its `area` from (left, top) to (right, bottom), in shares of the sides.
export function draw(canvas, image, levels, longestSide, { boxes = [], width, height } = image || levels) {
  const { alpha, colormap } = drawOptions();
  const { context, scale } = drawPicture(canvas, image, longestSide, { width, height });
  if (levels) {
    context.globalAlpha = image ? alpha : 1;
    const [left, top, right, bottom] = levels.area || [0, 0, 1, 1];
    const corner = [left * canvas.width, top * canvas.height];
    context.drawImage(colored(levels, colormap), ...corner, (right - left) * canvas.width, (bottom - top) * canvas.height);
    context.globalAlpha = 1;
  }
  const lineWidth = Math.min(canvas.width, canvas.height) / 200;
  for (const [color, factor] of [["black", 2], ["white", 1]]) {
    context.strokeStyle = color;
    context.lineWidth = factor * lineWidth;
    for (const { left, top, right, bottom } of boxes)
      context.strokeRect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
  }
}

// Draw evidence in [-1, 1] over the grey picture: orange for, blue against, and nothing where there is none.
export function drawSigned(canvas, image, { width, height, values }, longestSide) {
  const { context } = drawPicture(canvas, image, longestSide, image || { width, height });
  context.globalCompositeOperation = "saturation";
  context.fillRect(0, 0, canvas.width, canvas.height); // white has none
  context.globalCompositeOperation = "source-over";
  const evidence = new OffscreenCanvas(width, height);
  const pixels = new ImageData(width, height);
  values.forEach((value, index) => pixels.data.set([...(value > 0 ? FOR : AGAINST), 255 * EVIDENCE_ALPHA * Math.abs(value)], 4 * index));
  evidence.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(evidence, 0, 0, canvas.width, canvas.height);
}

// Mark a place (y, x), a share of the picture, with a ring or a numbered disc.
export function mark(canvas, y, x, text = "") {
  const context = canvas.getContext("2d");
  const radius = (RADIUS * canvas.width) / (canvas.clientWidth || canvas.width);
  const inside = (share, side) => Math.min(Math.max(share * side, radius), side - radius);
  const centre = [inside(x, canvas.width), inside(y, canvas.height)];
  context.beginPath();
  context.arc(...centre, radius, 0, 2 * Math.PI);
  for (const [color, factor] of [["black", 0.45], ["white", 0.2]]) {
    context.strokeStyle = color;
    context.lineWidth = factor * radius;
    context.stroke();
  }
  if (!text) return;
  context.fillStyle = "white";
  context.fill();
  context.fillStyle = "black";
  context.font = `${1.5 * radius}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(text, ...centre);
}
