// Draws heat maps over pictures, from numbers: nothing is asked of the server when a slider moves.

import { bytes } from "./api.js";

const colormaps = new Map();

export function learn(colors) {
  for (const [name, rgb] of Object.entries(colors)) colormaps.set(name, bytes(rgb));
}

// How heat maps are to be drawn: what the controls say.
export function look() {
  const value = (id) => document.getElementById(id).value;
  return {
    alpha: Number(value("alpha")),
    colormap: value("colormap"),
    boxes: document.getElementById("boxes").checked,
    threshold: Number(value("threshold")),
  };
}

// Read a picture; null where the browser does not know the format, though the server may.
export async function picture(file) {
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

// Draw a picture (null: nothing) with a map (null: none), so many pixels long, and boxes in the picture's pixels.
export function draw(canvas, image, levels, longest, { boxes = [], width, height } = image || levels) {
  const { alpha, colormap } = look();
  const scale = longest / Math.max(width, height);
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // transparent pictures are explained on white
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (levels) {
    context.imageSmoothingQuality = "high";
    context.globalAlpha = image ? alpha : 1;
    context.drawImage(colored(levels, colormap), 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
  }
  const line = Math.min(canvas.width, canvas.height) / 200;
  for (const [color, wide] of [["black", 2 * line], ["white", line]]) {
    context.strokeStyle = color;
    context.lineWidth = wide;
    for (const { left, top, right, bottom } of boxes)
      context.strokeRect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
  }
}
