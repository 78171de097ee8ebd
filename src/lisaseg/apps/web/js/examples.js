/** The example tiles: a picture with the mask of its recorded answer, which is shown at once, also while the model loads. */

import { h } from "./dom.js";
import { turnOf } from "./conversation.js";
import { paintMasks } from "./paint.js";
import { layersOf } from "./state.js";

const FOLDER = "/web/examples/";

/** @typedef {{id: string, file: string, alt: string, turns: import("./types.js").ServerTurn[]}} Example */

/**
 * @param {HTMLElement} list
 * @param {(blob: Blob, name: string, turns: import("./types.js").Turn[]) => void} open
 */
export async function showExamples(list, open) {
  const response = await fetch(`${FOLDER}examples.json`);
  /** @type {Example[]} */
  const examples = await response.json();
  for (const example of examples) list.append(tile(example, open));
}

/** @param {Example} example @param {(blob: Blob, name: string, turns: import("./types.js").Turn[]) => void} open */
function tile(example, open) {
  const turns = example.turns.map((turn) => turnOf({ ...turn, recorded: true }));
  const canvas = h("canvas", { width: 480, height: 300, role: "img", "aria-label": example.alt });
  const blob = fetch(FOLDER + example.file).then((response) => response.blob());
  blob.then((data) => thumbnail(canvas, data, turns)).catch(console.info);
  const more = h("span.small", {}, turns.length > 1 ? `${turns.length} questions` : turns[0].mode === "explain" ? "with a reason" : turns[0].segments.length ? "" : "not there");
  const button = h("button.tile", { type: "button" }, canvas, h("span.tile-text", {}, h("span", {}, `“${turns[0].prompt}”`), more));
  button.addEventListener("click", async () => open(await blob, example.file, example.turns.map((turn) => turnOf({ ...turn, recorded: true }))));
  return h("li", {}, button);
}

/**
 * A picture that fills a small canvas, with masks.
 * @param {HTMLCanvasElement} canvas
 * @param {Blob} blob
 * @param {import("./types.js").Turn[]} turns
 */
export async function thumbnail(canvas, blob, turns) {
  const bitmap = await createImageBitmap(blob);
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const scale = Math.max(canvas.width / bitmap.width, canvas.height / bitmap.height);
  context.setTransform(scale, 0, 0, scale, (canvas.width - bitmap.width * scale) / 2, (canvas.height - bitmap.height * scale) * 0.3);
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  const layers = layersOf(/** @type {any} */ ({ turns, touched: {} }));
  const look = { opacity: 0.45, fill: true, outline: true };
  const lit = layers.length === 1 ? layers[0].id : null; // darkened around: that shows on any picture, however small
  paintMasks(context, layers, look, { unit: 1 / scale, lit, size: [bitmap.width, bitmap.height], numbers: layers.length > 1 });
  bitmap.close();
}
