// Cells of pictures: how alike they are, and their values as maps.

import { bytes } from "./api.js";

const SIDE = 112; // of a map, in pixels

// The directions of the embeddings of `count` cells, each of length 1.
export function directions(base64, count) {
  const numbers = Float32Array.from(new Int8Array(bytes(base64).buffer));
  const dim = numbers.length / count;
  return Array.from({ length: count }, (_, cell) => {
    const one = numbers.subarray(cell * dim, (cell + 1) * dim);
    const length = Math.sqrt(one.reduce((sum, value) => sum + value * value, 0)) || 1;
    return one.map((value) => value / length);
  });
}

// The cosine of one cell to each of others.
export function cosines(direction, others) {
  return others.map((other) => other.reduce((sum, value, index) => sum + value * direction[index], 0));
}

// The cell of a place (y, x), a share of the picture.
export function nearestCell({ rows, columns }, y, x) {
  const nearest = (centres, place) =>
    centres.reduce((best, centre, index) => (Math.abs(centre - place) < Math.abs(centres[best] - place) ? index : best), 0);
  return nearest(rows, y) * columns.length + nearest(columns, x);
}

// What speaks for a match, in the cells of one side; both sides are on one scale.
export function shared(hit, side) {
  const scale = Math.max(...Object.values(hit.evidence).flat(2)) || 1;
  return hit.evidence[side].flat().map((value) => value / scale);
}

// Values in [0, 1] of cells as a map with 256 levels, which `draw` takes; each value at the centre of its cell.
export function placed(grid, values) {
  return { width: SIDE, height: SIDE, values: Uint8Array.from(interpolated(grid, values), (value) => Math.round(255 * value)) };
}

// Values in [-1, 1] of cells as a map of evidence, which `drawSigned` takes.
export function placedSigned(grid, values) {
  return { width: SIDE, height: SIDE, values: interpolated(grid, values) };
}

// Bilinear; places beyond the outermost centres take the value of the nearest cell.
function interpolated({ rows, columns }, values) {
  const [vertical, horizontal] = [rows, columns].map(weights);
  const map = new Float32Array(SIDE * SIDE);
  for (let y = 0; y < SIDE; y++)
    for (let x = 0; x < SIDE; x++)
      for (const [row, rowShare] of vertical[y])
        for (const [column, columnShare] of horizontal[x])
          map[y * SIDE + x] += rowShare * columnShare * values[row * columns.length + column];
  return map;
}

// For each pixel, the two cells between whose centres it lies, and their shares.
function weights(centres) {
  const last = centres.length - 1;
  const stride = last ? (centres[last] - centres[0]) / last : 1;
  return Array.from({ length: SIDE }, (_, pixel) => {
    const position = Math.min(Math.max(((pixel + 0.5) / SIDE - centres[0]) / stride, 0), last);
    const cell = Math.min(Math.floor(position), Math.max(last - 1, 0));
    return last ? [[cell, 1 - position + cell], [cell + 1, position - cell]] : [[0, 1]];
  });
}
