// The third tab: many pictures, one after the other, and all that came of them as one zip file.

import { bytes, download, post } from "./api.js";
import { accepts, byId, commonest, make, soft } from "./dom.js";
import { look } from "./draw.js";
import { zip } from "./zip.js";

const AT_ONCE = 2; // one is sent while the other is explained
const SHOWN = 200;

let entries = []; // of the zip file
let lines = [];
let stopped = false;

export function start() {
  accepts(byId("files"), run);
  byId("stop").addEventListener("click", () => (stopped = true));
  byId("zip").addEventListener("click", save);
}

async function run(files) {
  [entries, lines, stopped] = [[], [], false];
  byId("failures").replaceChildren();
  byId("results").replaceChildren();
  byId("done").max = files.length;
  byId("batch-progress").hidden = byId("stop").hidden = false;
  byId("zip").hidden = true;
  const names = unique(files.map((file) => file.name));
  let next = 0;
  let done = 0;
  const count = () => {
    byId("done").value = done;
    byId("count").textContent = `${done} of ${files.length}`;
  };
  count();
  const lane = async () => {
    while (next < files.length && !stopped) {
      const place = next++;
      try {
        await one(files[place], names[place], place);
      } catch (error) {
        byId("failures").append(make("li", {}, error.message));
      }
      done++;
      count();
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, lane));
  byId("stop").hidden = true;
  byId("zip").hidden = !lines.length;
}

async function one(file, name, place) {
  const wanted = [["include", "overlay"], ["include", "heatmap"], ...Object.entries(look())];
  const found = await (await post("explain", { image: file }, wanted)).json();
  const { overlay, heatmap, levels, boxes_at, picture, ...line } = found;
  const files = { overlay: `overlays/${name}.png`, heatmap: `maps/${name}.png` };
  const drawn = new Blob([bytes(overlay)], { type: "image/png" });
  entries.push([files.overlay, drawn], [files.heatmap, new Blob([bytes(heatmap)])]);
  lines.push([place, { ...line, ...files }]);
  if (byId("results").childElementCount >= SHOWN) return;
  const image = make("img", { src: URL.createObjectURL(drawn), alt: `${found.image} with its heat map` });
  image.addEventListener("load", () => URL.revokeObjectURL(image.src));
  const label = commonest(found.cluster_labels)[0]?.[0];
  const said = `${found.image}: ${found.typicality_in_words}, cluster ${found.cluster}${label ? ` of ${label}` : ""}`;
  byId("results").append(make("figure", {}, image, make("figcaption", {}, soft(said))));
}

async function save() {
  const sorted = lines.toSorted(([a], [b]) => a - b).map(([, line]) => JSON.stringify(line) + "\n");
  download(await zip([...entries, ["explanations.jsonl", new Blob(sorted)]]), "embedcam.zip");
}

function unique(names) {
  const taken = new Set();
  return names.map((name) => {
    const [, stem, suffix] = name.match(/^(.*?)(\.[^.]*)?$/s);
    let candidate = name;
    for (let n = 2; taken.has(candidate); n++) candidate = `${stem}-${n}${suffix || ""}`;
    taken.add(candidate);
    return candidate;
  });
}
