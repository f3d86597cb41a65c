// The third tab: explain many pictures and download the results as one zip archive.

import { bytes, download, post } from "./api.js";
import { accepts, breakable, byId, make, sortedLabels, working } from "./dom.js";
import { drawOptions } from "./draw.js";
import { zip } from "./zip.js";

const CONCURRENCY = 2; // one picture is sent while the other is explained
const MAX_SHOWN = 200;

let job = null; // { entries of the zip archive, lines of explanations.jsonl, stopped }

export function start() {
  accepts(byId("files"), run);
  byId("stop").addEventListener("click", () => (job.stopped = true));
  byId("zip").addEventListener("click", () => working("Packing", save));
}

async function run(files) {
  if (job) job.stopped = true; // its results are dropped
  const mine = (job = { entries: [], lines: [], stopped: false });
  byId("failures").replaceChildren();
  byId("results").replaceChildren();
  byId("done").max = files.length;
  byId("batch-progress").hidden = byId("stop").hidden = false;
  byId("zip").hidden = true;
  const names = unique(files.map((file) => file.name));
  let next = 0;
  let done = 0;
  const showCount = () => {
    byId("done").value = done;
    byId("count").textContent = `${done} of ${files.length}`;
  };
  showCount();
  const worker = async () => {
    while (next < files.length && !mine.stopped) {
      const index = next++;
      try {
        await explain(mine, files[index], names[index], index);
      } catch (error) {
        if (job === mine) byId("failures").append(make("li", {}, error.message));
      }
      done++;
      if (job === mine) showCount();
    }
  };
  await Promise.all(Array.from({ length: CONCURRENCY }, worker));
  if (job !== mine) return;
  byId("stop").hidden = true;
  byId("zip").hidden = !mine.lines.length;
}

async function explain(mine, file, name, index) {
  const query = [["include", "overlay"], ["include", "heatmap"], ...Object.entries(drawOptions())];
  const explanation = await (await post("explain", { image: file }, query)).json();
  if (job !== mine) return;
  const { overlay, heatmap, levels, boxes_at, picture, ...line } = explanation;
  const files = { overlay: `overlays/${name}.png`, heatmap: `maps/${name}.png` };
  const overlayFile = new Blob([bytes(overlay)], { type: "image/png" });
  mine.entries.push([files.overlay, overlayFile], [files.heatmap, new Blob([bytes(heatmap)])]);
  mine.lines.push([index, { ...line, ...files }]);
  if (byId("results").childElementCount >= MAX_SHOWN) return;
  const image = make("img", { src: URL.createObjectURL(overlayFile), alt: `${line.image} with its heat map` });
  image.addEventListener("load", () => URL.revokeObjectURL(image.src));
  const label = sortedLabels(line.cluster_labels)[0]?.[0];
  const caption = `${line.image}: ${line.typicality_in_words}, cluster ${line.cluster}${label ? ` of ${label}` : ""}`;
  byId("results").append(make("figure", {}, image, make("figcaption", {}, breakable(caption))));
}

async function save() {
  const lines = job.lines.toSorted(([a], [b]) => a - b).map(([, line]) => JSON.stringify(line) + "\n");
  download(await zip([...job.entries, ["explanations.jsonl", new Blob(lines)]]), "embedcam.zip");
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
