// Helpers for the page. Text is always set as text, so labels are never parsed as HTML.

export const byId = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Allow line breaks after underscores of long names such as "001.Danaus_plexippus".
export function breakable(text) {
  const parts = text.split(/(?<=_)/);
  return make("span", {}, ...parts.flatMap((part, index) => (index ? [make("wbr"), part] : [part])));
}

// [label, count] of a cluster, most common first. Objects order numeric keys by value, so they are sorted again.
export const sortedLabels = (labels) => Object.entries(labels).sort(([, a], [, b]) => b - a);

export function showError(error) {
  byId("error").textContent = error ? error.message || String(error) : "";
  byId("error").hidden = !error;
}

// Show that work is in progress, and its error if it fails. Returns the result, or undefined after an error.
let running = 0;
export async function working(status, work) {
  showError(null);
  running++;
  byId("busy").classList.add("on");
  byId("status").textContent = status;
  try {
    return await work();
  } catch (error) {
    showError(error);
    return undefined;
  } finally {
    running--;
    byId("busy").classList.toggle("on", running > 0);
    byId("status").textContent = "";
  }
}

// Call `handle` with files that are dropped on, or chosen in, a drop zone.
export function accepts(input, handle) {
  const zone = input.closest(".drop");
  const setHover = (on) => (event) => {
    event.preventDefault();
    zone.classList.toggle("over", on);
  };
  zone.addEventListener("dragover", setHover(true));
  zone.addEventListener("dragleave", setHover(false));
  zone.addEventListener("drop", (event) => {
    setHover(false)(event);
    if (event.dataTransfer.files.length) handle([...event.dataTransfer.files]);
  });
  input.addEventListener("change", () => {
    if (input.files.length) handle([...input.files]);
    input.value = ""; // so that the same file can be chosen again
  });
}

// Call `handle` with a pasted file while a tab is shown.
export function onPaste(panel, handle) {
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData.files;
    if (file && !panel.hidden) handle(file);
  });
}
