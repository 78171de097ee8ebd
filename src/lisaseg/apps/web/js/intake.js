/** Pictures from the disk, the clipboard or another window: read, and checked against the limits of the server before anything is sent. */

import { ApiError } from "./errors.js";

/** @typedef {import("./types.js").Picture} Picture */

/**
 * @param {Blob} blob
 * @param {string} name
 * @param {any} limits of /v1/limits, or null
 * @returns {Promise<Picture>} bitmap is null, and width and height 0, for kinds that this browser cannot show (TIFF): the server may know them
 * @throws {ApiError} the server would refuse it
 */
export async function openPicture(blob, name, limits) {
  if (!blob.size) throw new ApiError("corrupt_image", `${name} is empty. Choose another file.`);
  if (limits && blob.size + 1000 > limits.max_body_bytes) {
    const most = (limits.max_body_bytes / 2 ** 20).toFixed(0);
    throw new ApiError("body_too_large", `${name} has ${megabytes(blob.size)} MB; this server takes ${most} MB. Save it smaller or as JPEG, and try again.`);
  }
  const size = await measure(blob);
  if (!size && blob.type && !blob.type.startsWith("image/")) {
    throw new ApiError("unsupported_format", `${name} is not a picture (${blob.type}). Choose a ${kinds(limits)} file.`);
  }
  if (size && limits) check(name, size, limits);
  const bitmap = size ? await createImageBitmap(blob).catch(() => null) : null;
  return { name, blob, bitmap, width: bitmap?.width ?? 0, height: bitmap?.height ?? 0, id: null, notes: [] };
}

/** @param {string} name @param {{width: number, height: number}} size @param {any} limits */
function check(name, { width, height }, limits) {
  const what = `${name} has ${width} x ${height} pixels`;
  if (width * height > limits.max_image_pixels || Math.max(width, height) > limits.max_image_side) {
    const most = `${limits.max_image_pixels / 1e6} megapixels and ${limits.max_image_side} on a side`;
    throw new ApiError("image_too_large", `${what}; this server takes ${most}. Make it smaller and try again.`);
  }
  if (Math.max(width, height) > limits.max_image_aspect * Math.min(width, height)) {
    throw new ApiError("extreme_aspect_ratio", `${what}; one side may be at most ${limits.max_image_aspect} times the other. Crop it and try again.`);
  }
}

/**
 * The size of a picture from its head alone, upright; null if the browser cannot read it. (A bitmap would decode all of it, whatever its size.)
 * @param {Blob} blob
 * @returns {Promise<{width: number, height: number} | null>}
 */
async function measure(blob) {
  const address = URL.createObjectURL(blob);
  try {
    const image = new Image();
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = reject;
      image.src = address;
    });
    return { width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** "JPEG, PNG or WebP" @param {any} limits */
export const kinds = (limits) => (limits?.image_formats ?? ["JPEG", "PNG", "WEBP"]).filter((kind) => kind !== "MPO").join(", ").replace(/, (\w+)$/, " or $1");

/** @param {number} bytes */
export const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(1);

/**
 * Listen for pictures that are dropped on the page, pasted or chosen.
 * @param {HTMLInputElement} input
 * @param {(file: File, several: boolean) => void} take
 */
export function listen(input, take) {
  const first = (/** @type {FileList | File[] | undefined} */ files) => files?.length && take(files[0], files.length > 1);
  input.addEventListener("change", () => {
    first(input.files ?? undefined);
    input.value = "";
  });
  addEventListener("paste", (event) => {
    const files = event.clipboardData?.files;
    if (files?.length) {
      event.preventDefault();
      first(files);
    }
  });
  let depth = 0;
  const hover = (on) => document.documentElement.toggleAttribute("data-dropping", on);
  const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => {
    if (carriesFile(event)) hover(++depth > 0);
  });
  addEventListener("dragleave", (event) => {
    if (carriesFile(event)) hover(--depth > 0);
  });
  addEventListener("dragover", (event) => carriesFile(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    hover((depth = 0) > 0);
    first(event.dataTransfer?.files);
  });
}
