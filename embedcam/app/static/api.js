// Talks to the server. Errors are one line, to be shown as they are.

const TRIES = 5;

let largest = Infinity; // bytes of a file

export async function info() {
  const known = await (await answered(() => fetch("info"))).json();
  largest = known.upload;
  return known;
}

// Post files by field name; query is a list of pairs. Waits and tries again where the server asks for it.
export async function post(path, files, query = []) {
  const form = new FormData();
  for (const [field, file] of Object.entries(files)) {
    if (file.size > largest) throw new Error(`${file.name} is larger than ${largest / 1e6} MB; shrink it`);
    form.append(field, file, file.name);
  }
  return answered(() => fetch(`${path}?${new URLSearchParams(query)}`, { method: "POST", body: form }));
}

async function answered(ask) {
  for (let tries = 1; ; tries++) {
    const response = await ask().catch(() => {
      throw new Error("the server cannot be reached; is it still running?");
    });
    if (response.ok) return response;
    const wait = Number(response.headers.get("Retry-After"));
    if (!wait || tries === TRIES) {
      const said = await response.json().catch(() => ({}));
      throw new Error(said.error || `the server answered ${response.status}; its log says why`);
    }
    await new Promise((done) => setTimeout(done, 1000 * wait));
  }
}

export function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export function stem(name) {
  return name.replace(/\.[^.]*$/, "");
}
