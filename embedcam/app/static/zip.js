// Packs files into a zip archive without compression, since PNG files are compressed already.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(data) {
  let crc = -1;
  for (const byte of data) crc = TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc;
}

// Little-endian numbers, each [value, bytes].
function packed(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let offset = 0;
  for (const [value, size] of fields) {
    size === 4 ? view.setUint32(offset, value, true) : view.setUint16(offset, value, true);
    offset += size;
  }
  return view;
}

// entries: [name, Blob]. APPNOTE.TXT 6.3, sections 4.3.7, 4.3.12 and 4.3.16, without ZIP64.
export async function zip(entries) {
  const [files, directory] = [[], []];
  let offset = 0;
  for (const [path, blob] of entries) {
    const name = new TextEncoder().encode(path);
    const crc = crc32(new Uint8Array(await blob.arrayBuffer()));
    // UTF-8 name, stored, dated 1980-01-01 00:00.
    const common = [[0x800, 2], [0, 2], [0, 2], [0x21, 2], [crc, 4], [blob.size, 4], [blob.size, 4], [name.length, 2], [0, 2]];
    const header = packed([0x04034b50, 4], [20, 2], ...common);
    directory.push(packed([0x02014b50, 4], [20, 2], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]), name);
    files.push(header, name, blob);
    offset += header.byteLength + name.length + blob.size;
  }
  const size = directory.reduce((sum, part) => sum + part.byteLength, 0);
  const count = entries.length;
  if (count > 0xffff || offset + size > 0xffffffff)
    throw new Error("the results exceed the limits of a zip archive (65,535 files, 4 GB); explain fewer pictures at a time");
  const end = packed([0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [size, 4], [offset, 4], [0, 2]);
  return new Blob([...files, ...directory, end], { type: "application/zip" });
}
