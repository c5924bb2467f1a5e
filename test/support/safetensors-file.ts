/** Safetensors files of a header in words. */

export const encode = (text: string) => new TextEncoder().encode(text);

/** A file of a header and a body of counting bytes. */
export function fileOf(header: string, bodyBytes: number): Uint8Array {
  const text = encode(header);
  const file = new Uint8Array(8 + text.length + bodyBytes);
  new DataView(file.buffer).setBigUint64(0, BigInt(text.length), true);
  file.set(text, 8);
  for (let i = 0; i < bodyBytes; i++) file[8 + text.length + i] = i;
  return file;
}

/** A tensor of a header. */
export const entry = (dtype: string, shape: string, start: number | string, end: number | string) =>
  `{"dtype":"${dtype}","shape":${shape},"data_offsets":[${start},${end}]}`;

/** A header of two tensors, whose body has 22 bytes. */
export const TWO = `{"a":${entry("F32", "[2,2]", 0, 16)},"b":${entry("BF16", "[3]", 16, 22)}}`;
