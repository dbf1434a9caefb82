// Files that a person chooses, drops or pastes.

export const PICTURES = ["image/png", "image/jpeg", "image/webp"];

/** Why a file can't be taken as a picture; null if it can. */
export const faultOf = (file) => (PICTURES.includes(file.type) ? null : `${file.name} is no PNG, JPEG or WebP picture.`);

export async function base64Of(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(",") + 1);
}

const SIGNATURE = 8; // bytes
const KEYWORD = "cynosure\0";

/** What Cynosure wrote into a PNG of its own: `{request, image_index, …}`; null if nothing is there. */
export async function madeFrom(file) {
  const data = new DataView(await file.arrayBuffer());
  const text = (from, length) => new TextDecoder("latin1").decode(new Uint8Array(data.buffer, from, length));
  for (let at = SIGNATURE; at + 12 <= data.byteLength; at += 12 + data.getUint32(at)) {
    if (text(at + 4, 4) !== "tEXt") continue;
    const written = text(at + 8, data.getUint32(at));
    if (written.startsWith(KEYWORD)) return JSON.parse(written.slice(KEYWORD.length));
  }
  return null;
}
