// Builds and finds parts of the page. Text is always set as text: a label is never markup.

export const byId = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Let long names such as "001.Danaus_plexippus" break after their underscores.
export function soft(text) {
  const parts = text.split(/(?<=_)/);
  return make("span", {}, ...parts.flatMap((part, place) => (place ? [make("wbr"), part] : [part])));
}

// A cluster's labels and how many images bear each, the commonest first: objects put keys that are numbers in their order.
export const commonest = (labels) => Object.entries(labels).sort(([, a], [, b]) => b - a);

export function say(error) {
  byId("error").textContent = error ? error.message || String(error) : "";
  byId("error").hidden = !error;
}

// Show that something is going on, and the error if it fails; gives what it gave.
let going = 0;
export async function working(what, work) {
  say(null);
  going++;
  byId("busy").classList.add("on");
  byId("status").textContent = what;
  try {
    return await work();
  } catch (error) {
    say(error);
    return undefined;
  } finally {
    going--;
    byId("busy").classList.toggle("on", going > 0);
    byId("status").textContent = "";
  }
}

// Hand files that are dropped on or chosen in a drop zone to `take`.
export function accepts(input, take) {
  const zone = input.closest(".drop");
  const over = (on) => (event) => {
    event.preventDefault();
    zone.classList.toggle("over", on);
  };
  zone.addEventListener("dragover", over(true));
  zone.addEventListener("dragleave", over(false));
  zone.addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  });
  input.addEventListener("change", () => {
    if (input.files.length) take([...input.files]);
    input.value = ""; // the same file may be chosen again
  });
}
