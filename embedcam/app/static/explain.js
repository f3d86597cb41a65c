// The first tab: one picture, from a file or the camera.

import { bytes, download, post, stem } from "./api.js";
import { accepts, byId, commonest, make, say, soft, working } from "./dom.js";
import { draw, look, picture } from "./draw.js";

const [LONGEST, LONGEST_OF_CHANNELS] = [1600, 480];
const PAUSE = 200; // at least so many ms from frame to frame

let now = null; // { file, image, found } on the screen
let latest = 0; // an older answer that comes late is not shown
let stream = null;

export function start(info) {
  byId("channels").hidden = !info.channels;
  accepts(byId("file"), ([file]) => show(file));
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file && !byId("explain").hidden) show(file);
  });
  byId("downloads").addEventListener("click", (event) => event.target.dataset.format && save(event.target.dataset.format));
  byId("channels").addEventListener("toggle", channels);
  byId("camera").addEventListener("click", () => (stream ? stop() : film()));
}

export function redraw() {
  if (!now) return;
  const { levels, boxes_at, width, height } = now.found;
  const boxes = look().boxes ? boxes_at[look().threshold] : [];
  draw(byId("view"), now.image, levels, LONGEST, { boxes, width, height });
  for (const { canvas, levels } of now.channels) draw(canvas, now.image, levels, LONGEST_OF_CHANNELS);
}

async function explain(file) {
  const image = await picture(file);
  const wanted = [["include", "levels"], ...(image ? [] : [["include", "picture"]])];
  const found = await (await post("explain", { image: file }, wanted)).json();
  return { file, found, channels: [], image: image || (await picture(new Blob([bytes(found.picture)]))) };
}

async function show(file) {
  const mine = ++latest;
  if (stream) stop();
  const seen = await working("Explaining", () => explain(file));
  if (mine !== latest) return;
  put(seen || null);
}

function put(seen) {
  now = seen;
  byId("seen").hidden = byId("found").hidden = !seen;
  byId("channels").open = false;
  if (!seen) return;
  redraw();
  byId("view").setAttribute("aria-label", `${seen.found.image} with its heat map`);
  byId("words").replaceChildren(...words(seen.found));
  byId("looks-like").replaceChildren(...looksLike(seen.found.looks_like));
}

function words(found) {
  const labels = commonest(found.cluster_labels).map(([name, count]) => `${name} (${count})`);
  const said = found.typicality_in_words;
  const facts = {
    Cluster: found.cluster,
    ...(labels.length ? { "Its labels": labels.join(", ") } : {}),
    Distance: `${found.distance.toFixed(3)} from its centre`,
    Typicality: `${Math.round(100 * found.typicality)} % of its training images lie at least as far out`,
  };
  return [
    make("h2", {}, said.charAt(0).toUpperCase() + said.slice(1)),
    make("dl", {}, ...Object.entries(facts).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, soft(String(value)))])),
    ...found.notes.map((note) => make("p", { className: "note" }, note)),
  ];
}

function looksLike(images) {
  if (!images.length) return [];
  const title = make("h3", {}, "It looks like these training images");
  if (!images.some((image) => image.thumbnail))
    return [title, make("ul", { className: "names" }, ...images.map((image) => make("li", {}, soft(image.image))))];
  const figures = images.map((image) => {
    const shown = image.thumbnail ? [make("img", { src: image.thumbnail, alt: image.image })] : [];
    return make("figure", {}, ...shown, make("figcaption", {}, soft(image.label || image.image)));
  });
  return [title, make("div", { className: "gallery" }, ...figures)];
}

async function channels() {
  const gallery = byId("channels").querySelector(".gallery");
  const mine = now;
  if (!byId("channels").open || !mine) return;
  gallery.replaceChildren();
  const found = await working("Looking at channels", async () => (await post("channels", { image: mine.file })).json());
  if (!found || mine !== now) return;
  for (const { channel, weight, share, levels } of found) {
    const canvas = make("canvas", { role: "img", ariaLabel: `Where channel ${channel} is active` });
    now.channels.push({ canvas, levels });
    const said = `${channel}: weight ${weight.toPrecision(2)}, ${Math.round(100 * share)} % of the map`;
    gallery.append(make("figure", {}, canvas, make("figcaption", {}, said)));
  }
  redraw();
}

async function save(format) {
  const { file, found } = now;
  const name = stem(file.name);
  if (format === "json") {
    const { levels, boxes_at, picture: _, overlay, heatmap, ...rest } = found;
    const boxes = boxes_at[look().threshold];
    download(new Blob([JSON.stringify({ ...rest, boxes }, null, 2)], { type: "application/json" }), `${name}.json`);
    return;
  }
  const ends = { overlay: "overlay.png", heatmap: "heatmap.png", npz: "maps.npz" };
  const wanted = Object.entries({ format, ...look() });
  const blob = await working("Fetching", async () => (await post("explain", { image: file }, wanted)).blob());
  if (blob) download(blob, `${name}-${ends[format]}`);
}

async function film() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(`the camera cannot be used (${error.message}); browsers give it to https pages and to localhost alone`);
    return;
  }
  const mine = stream;
  byId("camera").textContent = "Stop, and keep this picture";
  const video = make("video", { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  while (stream === mine) {
    const pause = new Promise((done) => setTimeout(done, PAUSE));
    const seen = await working("Explaining", async () => explain(await frame(video)));
    if (stream !== mine) break;
    if (seen) put(seen);
    else stop();
    await pause;
  }
}

async function frame(video) {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new File([await canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 })], "camera.jpg");
}

function stop() {
  stream.getTracks().forEach((track) => track.stop());
  stream = null;
  byId("camera").textContent = "Use the camera";
}
