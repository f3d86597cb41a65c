// Reads a weight database of format 1 (docs/reference/file-format.md) in plain JavaScript: Node 18 or later, browsers.
//
//     node read_database.mjs weights.h5                           lists all items: their shapes and attributes
//     node read_database.mjs weights.h5 /clusters/top_channels    prints one dataset
//
// A damaged file raises an error. Time and memory are not limited: do not read untrusted files with it.

const [SPACE, TYPE, LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, GROUP] = [1, 3, 8, 11, 12, 16, 17]; // message types
const [TEXT, HEAP_TEXT] = [0x13, 0x19]; // first byte of a datatype; for numbers, also the second byte and the size:
const NUMBERS = { "16,8,4": Int32Array, "16,8,8": BigInt64Array, "17,32,4": Float32Array, "17,32,8": Float64Array };
const range = (count, each) => Array.from({ length: count }, (_, i) => each(i));
const padded = (size) => Math.ceil(size / 8) * 8;
const text = (bytes) => new TextDecoder().decode(bytes).replace(/\0+$/, "");
const check = (sound, message) => { if (!sound) throw new Error(message); };

/** Open a file, given as a Uint8Array. `items` are the paths of all groups and datasets; the root is "/". */
export async function openDatabase(bytes) {
  bytes = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength); // slices of Node's Buffer are not copies
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const u16 = (at) => view.getUint16(at, true), u32 = (at) => view.getUint32(at, true);
  const u64 = (at) => Number(view.getBigUint64(at, true));
  const slice = (at, size) => bytes.slice(at, at + size);
  const shapeAt = (at) => range(bytes[at + 1], (i) => u64(at + 8 + 8 * i));

  function messages(header) { // message type -> offsets of an item's messages of that type
    const found = {}, blocks = [[header + 16, u32(header + 8)]];
    for (const [start, size] of blocks) {
      for (let at = start; at < start + size; at += 8 + u16(at + 2)) {
        (found[u16(at)] ??= []).push(at + 8);
        if (u16(at) === CONTINUATION) blocks.push([u64(at + 8), u64(at + 16)]);
      }
    }
    return found;
  }

  function leaves(node, key) { // offsets of the keys of a B-tree's leaves; an address follows each key
    const entries = range(u16(node + 6), (i) => node + 24 + i * (key + 8));
    return bytes[node + 5] ? entries.flatMap((at) => leaves(u64(at + key), key)) : entries;
  }

  function walk(path, header) { // [path, messages] of an item and of all items below it
    const found = messages(header), [group] = found[GROUP] ?? [];
    const nodes = group ? leaves(u64(group), 8).map((at) => u64(at + 8)) : [];
    const below = nodes.flatMap((node) => range(u16(node + 6), (i) => node + 8 + 40 * i)).flatMap((entry) => {
      const name = u64(u64(group + 8) + 24) + u64(entry);
      return walk(`${path}/${text(bytes.subarray(name, bytes.indexOf(0, name)))}`, u64(entry + 8));
    });
    return [[path || "/", found], ...below];
  }

  function heapText(reference) { // a variable-length string: its length, the address of the heap, and the index there
    const length = reference.getUint32(0, true), number = reference.getUint32(12, true);
    let at = Number(reference.getBigUint64(4, true)) + 16;
    while (length && u16(at) !== number) at += 16 + padded(u64(at + 8));
    return text(slice(at + 16, length));
  }

  function decode(type, data, count) { // numbers as a typed array, strings as an array
    const kind = bytes[type], size = u32(type + 4), Numbers = NUMBERS[[kind, bytes[type + 1], size]];
    check(Numbers || kind === TEXT || kind === HEAP_TEXT, "an item has a datatype that format 1 does not use");
    if (Numbers) return new Numbers(data.buffer, 0, count);
    const elements = range(count, (i) => data.slice(i * size, (i + 1) * size));
    return elements.map((element) => (kind === TEXT ? text(element) : heapText(new DataView(element.buffer))));
  }

  function attributes(path) { // name -> string or number, or an array of them; integers are bigint
    return Object.fromEntries((all[path][ATTRIBUTE] ?? []).map((at) => {
      const type = at + 8 + padded(u16(at + 2)), space = type + padded(u16(at + 4)), data = space + padded(u16(at + 6));
      const shape = shapeAt(space), count = shape[0] ?? 1;
      const values = decode(type, slice(data, count * u32(type + 4)), count);
      return [text(slice(at + 8, u16(at + 2))), shape.length ? [...values] : values[0]];
    }));
  }

  const shape = (path) => all[path]?.[SPACE]?.map(shapeAt)[0]; // undefined if the item is not a dataset

  async function dataset(path) { // an array, or an array of rows
    check([1, 2].includes(shape(path)?.length), `there is no dataset ${path}`);
    const [[type], [layout], [pipeline]] = [TYPE, LAYOUT, FILTERS].map((kind) => all[path][kind] ?? []);
    check(u16(layout) === 0x203 && bytes[pipeline + 1] === 3, `${path} is not stored in chunks with three filters`);
    const rank = shape(path).length, size = u32(type + 4);
    const [rows, columns] = [...shape(path), 1], [height, width] = [...range(rank, (i) => u32(layout + 11 + 4 * i)), 1];
    const whole = new Uint8Array(rows * columns * size);
    const keys = leaves(u64(layout + 3), 16 + 8 * rank);
    check(keys.length === Math.ceil(rows / height) * Math.ceil(columns / width), `a chunk of ${path} is missing`);
    for (const key of keys) {
      const chunk = await unpacked(slice(u64(key + 16 + 8 * rank), u32(key)), size);
      check(chunk.length === height * width * size && u32(key + 4) === 0, `a chunk of ${path} is damaged`);
      const top = u64(key + 8), left = rank > 1 ? u64(key + 16) : 0; // chunks are cut off at the edges of the dataset
      for (let row = 0; row < Math.min(height, rows - top); row++) {
        const elements = chunk.subarray(row * width * size).subarray(0, Math.min(width, columns - left) * size);
        whole.set(elements, ((top + row) * columns + left) * size);
      }
    }
    const values = decode(type, whole, rows * columns);
    return rank > 1 ? range(rows, (row) => values.subarray(row * columns, (row + 1) * columns)) : values;
  }

  check(bytes.length > 96 && view.getBigUint64(0) === 0x894844460d0a1a0an && !bytes[8], "not an early HDF5 file");
  await verify(bytes);
  const all = Object.fromEntries(walk("", u64(64)));
  const { "encoding-type": kind, "encoding-version": version } = attributes("/");
  check(kind === "embedcam-weight-database" && /^1(\.\d+)*$/.test(version), `cannot read ${kind} ${version}`);
  return { items: Object.keys(all), attributes, shape, dataset };
}

async function verify(bytes) { // the optional checksum after the end of the file; browsers need https for this
  const end = bytes.length - 81;
  if (text(bytes.slice(end, end + 17)) !== "\nembedcam-sha256:") return;
  const { subtle } = globalThis.crypto ?? (await import("node:crypto")).webcrypto;
  const digest = new Uint8Array(await subtle.digest("SHA-256", bytes.subarray(0, end)));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  check(found === text(bytes.slice(end + 17)), "the file is damaged: its checksum does not match");
}

async function unpacked(data, size) { // inverts fletcher32, deflate and shuffle
  // The fletcher32 checksum is not compared: the checksum of the file covers it, and deflate has its own.
  const stream = new Blob([data.subarray(0, -4)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer()), count = bytes.length / size;
  return bytes.map((_, i) => bytes[(i % size) * count + Math.floor(i / size)]); // all first bytes, then all second bytes
}

if (globalThis.process?.argv[1]?.endsWith("read_database.mjs")) {
  const [, , file, item] = process.argv, { readFile } = await import("node:fs/promises");
  const database = await openDatabase(await readFile(file));
  const facts = (path) => [path, { shape: database.shape(path), attributes: database.attributes(path) }];
  const found = item ? await database.dataset(item) : Object.fromEntries(database.items.map(facts));
  const plain = (_, value) => { // JSON has neither typed arrays nor bigint
    if (typeof value === "bigint") return Number(value);
    return ArrayBuffer.isView(value) ? [...value] : value;
  };
  console.log(JSON.stringify(found, plain));
}
