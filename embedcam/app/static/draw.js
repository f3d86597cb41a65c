// Draws heat maps over pictures in the browser, so moving a slider sends no request.

import { bytes } from "./api.js";

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

function colored(levels, colormap) {
  const canvas = new OffscreenCanvas(levels.width, levels.height);
  const colors = colormaps.get(colormap);
  const pixels = new ImageData(levels.width, levels.height);
  const values = bytes(levels.values);
  for (let i = 0; i < values.length; i++) {
    pixels.data.set(colors.subarray(3 * values[i], 3 * values[i] + 3), 4 * i);
    pixels.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// Draw a picture and a map (either may be null) with the given longer side, and boxes in pixels of the picture.
export function draw(canvas, image, levels, longestSide, { boxes = [], width, height } = image || levels) {
  const { alpha, colormap } = drawOptions();
  const scale = longestSide / Math.max(width, height);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // the server explains transparent pictures on white
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (levels) {
    context.imageSmoothingQuality = "high";
    context.globalAlpha = image ? alpha : 1;
    context.drawImage(colored(levels, colormap), 0, 0, canvas.width, canvas.height);
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
