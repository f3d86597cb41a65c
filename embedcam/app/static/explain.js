// The first tab: one picture, from a file or the camera.

import { bytes, download, post, stem } from "./api.js";
import { accepts, breakable, byId, make, onPaste, showError, sortedLabels, working } from "./dom.js";
import { decode, draw, drawOptions, loadPicture } from "./draw.js";
import { placed, shared } from "./likeness.js";

const [LONGEST_SIDE, LONGEST_CHANNEL_SIDE, LONGEST_TRAINING_SIDE] = [1600, 480, 320];
const MIN_FRAME_MS = 200;

// { file, image, explanation, channels, figures of training images by name, matches with them, current of these or null }
let shown = null;
let latest = 0; // number of the latest request; older responses are dropped
let stream = null;

export function start(info) {
  byId("channels").hidden = !info.channels;
  accepts(byId("file"), ([file]) => showFile(file));
  onPaste(byId("explain"), showFile);
  byId("downloads").addEventListener("click", ({ target }) => target.dataset.format && save(target.dataset.format));
  byId("channels").addEventListener("toggle", showChannels);
  byId("camera").addEventListener("click", () => (stream ? keepFrame() : startCamera()));
}

export function redraw() {
  if (!shown) return;
  const { boxes_at, width, height } = shown.explanation;
  const boxes = drawOptions().boxes ? boxes_at[drawOptions().threshold] : [];
  const levels = shown.current ? shown.current.own : shown.explanation.levels;
  draw(byId("view"), shown.image, levels, LONGEST_SIDE, { boxes, width, height });
  for (const { canvas, image, other } of shown.matches) draw(canvas, image, other, LONGEST_TRAINING_SIDE);
  for (const { canvas, levels } of shown.channels) draw(canvas, shown.image, levels, LONGEST_CHANNEL_SIDE);
}

async function explain(file) {
  const image = await decode(file);
  const query = [["include", "levels"], ...(image ? [] : [["include", "picture"]])];
  const explanation = await (await post("explain", { image: file }, query)).json();
  const empty = { channels: [], figures: new Map(), matches: [], current: null };
  return { file, explanation, ...empty, image: image || (await decode(new Blob([bytes(explanation.picture)]))) };
}

async function showFile(file) {
  const mine = ++latest;
  if (stream) stopCamera();
  const result = await working("Explaining", () => explain(file));
  if (mine !== latest) return;
  show(result || null);
  if (result) showShared();
}

function show(result) {
  shown = result;
  byId("explained").hidden = byId("explanation").hidden = !result;
  byId("channels").open = false;
  if (!result) return;
  redraw();
  byId("view").setAttribute("aria-label", `${result.explanation.image} with its heat map`);
  byId("words").replaceChildren(...description(result.explanation));
  byId("looks-like").replaceChildren(...trainingImages(result));
}

function description(explanation) {
  const labels = sortedLabels(explanation.cluster_labels).map(([name, count]) => `${name} (${count})`);
  const typicality = explanation.typicality_in_words;
  const facts = {
    Cluster: explanation.cluster,
    ...(labels.length ? { "Its labels": labels.join(", ") } : {}),
    Distance: `${explanation.distance.toFixed(3)} from its centroid`,
    Typicality: `${Math.round(100 * explanation.typicality)} % of its training images are at least as far away`,
  };
  const terms = Object.entries(facts).flatMap(([name, value]) => [
    make("dt", {}, name),
    make("dd", {}, breakable(String(value))),
  ]);
  return [
    make("h2", {}, typicality.charAt(0).toUpperCase() + typicality.slice(1)),
    make("dl", {}, ...terms),
    ...explanation.notes.map((note) => make("p", { className: "note" }, note)),
  ];
}

function trainingImages({ explanation: { looks_like: images }, figures }) {
  if (!images.length) return [];
  const title = make("h3", {}, "Most similar training images");
  if (!images.some((image) => image.thumbnail || image.indexed))
    return [title, make("ul", { className: "names" }, ...images.map((image) => make("li", {}, breakable(image.image))))];
  for (const image of images) {
    const thumbnail = image.thumbnail ? [make("img", { src: image.thumbnail, alt: image.image })] : [];
    figures.set(image.image, make("figure", {}, ...thumbnail, make("figcaption", {}, breakable(image.label || image.image))));
  }
  return [title, make("div", { className: "gallery" }, ...figures.values())];
}

// What the picture shares with its training images, on both sides, for those that a gallery index has.
async function showShared() {
  const mine = shown;
  const names = mine.explanation.looks_like.filter(({ indexed }) => indexed).map(({ image }) => ["hit", image]);
  if (!names.length) return;
  const match = await working("Comparing", async () => (await post("match", { image: mine.file }, names)).json());
  if (!match) return;
  const { seen, width, height } = match;
  const area = seen.map((edge, index) => edge / (index % 2 ? height : width));
  const whole = area.join() === "0,0,1,1"; // as thumbnails are
  const thumbnails = new Map(mine.explanation.looks_like.map(({ image, thumbnail }) => [image, thumbnail]));
  const matches = await Promise.all(
    match.hits.map(async (hit) => ({
      name: hit.hit,
      image: (await loadPicture(hit.picture)) ?? (whole && (await loadPicture(thumbnails.get(hit.hit)))),
      own: { ...placed(match, shared(hit, "query")), area },
      other: placed(match, shared(hit, "hit")),
    })),
  );
  if (mine !== shown) return;
  for (const each of matches) {
    each.canvas = make("canvas", { tabIndex: 0, role: "img", ariaLabel: `What the picture shares with ${each.name}` });
    const setCurrent = (current) => () => {
      shown.current = current;
      redraw();
    };
    for (const kind of ["pointerenter", "focus"]) each.canvas.addEventListener(kind, setCurrent(each));
    for (const kind of ["pointerleave", "blur"]) each.canvas.addEventListener(kind, setCurrent(null));
    const figure = mine.figures.get(each.name);
    figure.querySelector("img")?.remove();
    figure.prepend(each.canvas);
  }
  mine.matches = matches;
  byId("looks-like").append(make("p", { className: "hint" }, "Point at one to see what the picture shares with it."));
  redraw();
}

async function showChannels() {
  const gallery = byId("channels").querySelector(".gallery");
  const mine = shown;
  if (!byId("channels").open || !mine) return;
  gallery.replaceChildren();
  const channels = await working("Loading channels", async () => (await post("channels", { image: mine.file })).json());
  if (!channels || mine !== shown) return;
  for (const { channel, weight, share, levels } of channels) {
    const canvas = make("canvas", { role: "img", ariaLabel: `Activation of channel ${channel}` });
    shown.channels.push({ canvas, levels });
    const caption = `${channel}: weight ${weight.toPrecision(2)}, ${Math.round(100 * share)} % of the map`;
    gallery.append(make("figure", {}, canvas, make("figcaption", {}, caption)));
  }
  redraw();
}

async function save(format) {
  const { file, explanation } = shown;
  const name = stem(file.name);
  if (format === "json") {
    const { levels, boxes_at, picture, overlay, heatmap, ...rest } = explanation;
    const boxes = boxes_at[drawOptions().threshold];
    download(new Blob([JSON.stringify({ ...rest, boxes }, null, 2)], { type: "application/json" }), `${name}.json`);
    return;
  }
  const suffixes = { overlay: "overlay.png", heatmap: "heatmap.png", npz: "maps.npz" };
  const query = Object.entries({ format, ...drawOptions() });
  const blob = await working("Downloading", async () => (await post("explain", { image: file }, query)).blob());
  if (blob) download(blob, `${name}-${suffixes[format]}`);
}

async function startCamera() {
  byId("camera").disabled = true; // until the permission is given, or a second click would open it twice
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    showError(`the camera is not available (${error.message}); browsers allow it only on https pages and localhost`);
    return;
  } finally {
    byId("camera").disabled = false;
  }
  const mine = stream;
  byId("camera").textContent = "Stop and keep this picture";
  const video = make("video", { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  while (stream === mine) {
    const pause = new Promise((resolve) => setTimeout(resolve, MIN_FRAME_MS));
    const result = await working("Explaining", async () => explain(await frame(video)));
    if (stream !== mine) break;
    if (result) show(result);
    else stopCamera();
    await pause;
  }
}

async function frame(video) {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new File([await canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 })], "camera.jpg");
}

function keepFrame() {
  stopCamera();
  if (shown) showShared();
}

function stopCamera() {
  stream.getTracks().forEach((track) => track.stop());
  stream = null;
  byId("camera").textContent = "Use the camera";
}
