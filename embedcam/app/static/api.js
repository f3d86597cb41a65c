// Calls the HTTP API. Error messages are single lines, shown as they are.

const MAX_TRIES = 5;

let maxFileBytes = Infinity;

export async function fetchInfo() {
  const info = await (await request(() => fetch("info"))).json();
  maxFileBytes = info.upload;
  return info;
}

// Post files by field name; query is a list of pairs. Retries after the time that the server asks for.
export async function post(path, files, query = []) {
  const form = new FormData();
  for (const [field, file] of Object.entries(files)) {
    if (file.size > maxFileBytes) throw new Error(`${file.name} is larger than ${maxFileBytes / 1e6} MB; use a smaller file`);
    form.append(field, file, file.name);
  }
  return request(() => fetch(`${path}?${new URLSearchParams(query)}`, { method: "POST", body: form }));
}

async function request(send) {
  for (let tries = 1; ; tries++) {
    const response = await send().catch(() => {
      throw new Error("the server cannot be reached; is it still running?");
    });
    if (response.ok) return response;
    const seconds = Number(response.headers.get("Retry-After"));
    if (!seconds || tries === MAX_TRIES) {
      const body = await response.json().catch(() => ({}));
      throw new Error(body.error || `the server responded with status ${response.status}; see its log`);
    }
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
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
