/** Masks on a canvas, in the same hand on the stage, on the example tiles and in the saved picture. Coordinates are pixels of the picture. */

import { colourOf, css, inkOn } from "./palette.js";
import { Mask } from "./rle.js";
import { cutCorners, deepest, outline } from "./shapes.js";
import { SHARP } from "./viewport.js";

/** @typedef {import("./types.js").Layer} Layer */
/**
 * @typedef {{mask: Mask, exact: Path2D, smooth: Path2D, solid: boolean, spot: {x: number, y: number, depth: number} | null}} Shape
 *   exact: along the edges of pixels; smooth: the same with its corners cut by half a pixel; solid: both are borders that can be stroked
 */

/** @type {WeakMap<object, Shape>} */
const shapes = new WeakMap();

/** What is drawn and asked of a segment; made once. @param {import("./types.js").Segment} segment @returns {Shape} */
export function shapeOf(segment) {
  let shape = shapes.get(segment);
  if (!shape) {
    const mask = new Mask(segment.mask);
    const lines = outline(mask);
    const exact = new Path2D();
    const smooth = lines ? new Path2D() : exact;
    if (lines) {
      for (const line of lines) {
        trace(exact, line);
        trace(smooth, cutCorners(line));
      }
    } else for (const [x, top, bottom] of mask.pieces()) exact.rect(x, top, 1, bottom - top);
    shape = { mask, exact, smooth, solid: lines !== null, spot: deepest(mask, mask.box()) };
    shapes.set(segment, shape);
  }
  return shape;
}

/** @param {Path2D} path @param {number[]} line */
function trace(path, line) {
  path.moveTo(line[0], line[1]);
  for (let k = 2; k < line.length; k += 2) path.lineTo(line[k], line[k + 1]);
  path.closePath();
}

/**
 * Paint masks over a picture that is there already: large ones first, numbers last.
 * @param {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} context in coordinates of the picture
 * @param {Layer[]} layers
 * @param {{opacity: number, fill: boolean, outline: boolean}} look
 * @param {{unit: number, lit?: string | null, size: [number, number], fade?: (layer: Layer) => number, numbers?: boolean}} options
 *   unit: picture pixels in one pixel of the screen; size: width and height of the picture; lit: id of the layer to show before all others
 */
export function paintMasks(context, layers, look, { unit, lit = null, size, fade = () => 1, numbers = true }) {
  context.save();
  context.beginPath();
  context.rect(0, 0, ...size); // lines end with the picture
  context.clip();
  const order = [...layers].sort((a, b) => Number(a.id === lit) - Number(b.id === lit) || b.share - a.share);
  for (const layer of order) {
    const shape = shapeOf(layer.segment);
    const colour = colourOf(layer.number);
    const path = unit * SHARP > 1 ? shape.smooth : shape.exact;
    const dim = lit && layer.id !== lit ? 0.3 : 1;
    if (layer.id === lit) veil(context, path, size, fade(layer));
    if (look.fill) {
      context.globalAlpha = fade(layer) * dim * look.opacity * (layer.id === lit ? 0.6 : 1);
      context.fillStyle = css(colour);
      context.fill(path);
    }
    if ((look.outline || layer.id === lit) && shape.solid) {
      context.globalAlpha = fade(layer) * dim;
      rim(context, path, colour, unit * (layer.id === lit ? 1.4 : 1));
    }
  }
  context.restore();
  if (!numbers) return;
  /** @type {[number, number][]} */
  const taken = [];
  for (const layer of order.reverse()) {
    if (lit && layer.id !== lit) continue;
    const spot = freeSpot(shapeOf(layer.segment), taken, 25 * unit);
    if (!spot) continue;
    taken.push(spot);
    badge(context, spot, layer.number, unit, fade(layer));
  }
  context.globalAlpha = 1;
}

/** Darken all but one mask. */
function veil(context, path, [width, height], alpha) {
  const rest = new Path2D();
  rest.rect(0, 0, width, height);
  rest.addPath(path);
  context.globalAlpha = 0.5 * alpha;
  context.fillStyle = "#0a0c10";
  context.fill(rest, "evenodd");
}

/** A coloured line on a light one, so that it shows on any ground. */
function rim(context, path, colour, unit) {
  context.lineJoin = "round";
  context.lineWidth = 4 * unit;
  context.strokeStyle = "rgb(255 255 255 / .75)";
  context.stroke(path);
  context.lineWidth = 2.2 * unit;
  context.strokeStyle = css(colour);
  context.stroke(path);
}

/**
 * Where the number of a mask does not lie on another one: its deepest point, or a place of the mask around it.
 * @param {Shape} shape
 * @param {[number, number][]} taken
 * @param {number} distance that numbers keep
 * @returns {[number, number] | null}
 */
function freeSpot({ mask, spot }, taken, distance) {
  if (!spot) return null;
  const free = ([x, y]) => taken.every(([a, b]) => Math.hypot(a - x, b - y) >= distance);
  /** @type {[number, number][]} */
  const places = [[spot.x, spot.y]];
  for (let ring = 1; ring <= 3; ring++) {
    for (let k = 0; k < 8; k++) places.push([spot.x + ring * distance * Math.cos((k * Math.PI) / 4), spot.y + ring * distance * Math.sin((k * Math.PI) / 4)]);
  }
  return places.find((place) => mask.has(...place) && free(place)) ?? places[0];
}

function badge(context, [x, y], number, unit, alpha) {
  const colour = colourOf(number);
  const disc = (radius, style) => {
    context.beginPath();
    context.arc(x + 0.5, y + 0.5, radius * unit, 0, 2 * Math.PI);
    context.fillStyle = style;
    context.fill();
  };
  context.globalAlpha = alpha;
  disc(13, "rgb(0 0 0 / .35)");
  disc(12, "#fff");
  disc(10.2, css(colour));
  context.fillStyle = inkOn(colour);
  context.font = `600 ${(number < 10 ? 13 : 11) * unit}px Inter, system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(String(number), x + 0.5, y + 0.5 + 0.5 * unit);
}

/**
 * The picture with masks at its own size, as PNG.
 * @param {import("./types.js").Picture} picture
 * @param {Layer[]} layers
 * @param {{opacity: number, fill: boolean, outline: boolean}} look
 * @returns {Promise<Blob>}
 */
export async function overlayPng(picture, layers, look) {
  const { width, height, bitmap } = picture;
  const canvas = new OffscreenCanvas(width, height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.fillStyle = "#fff"; // transparent parts count as white
  context.fillRect(0, 0, width, height);
  if (bitmap) context.drawImage(bitmap, 0, 0, width, height);
  paintMasks(context, layers, look, { unit: Math.max(1, Math.max(width, height) / 1000), size: [width, height] });
  return canvas.convertToBlob({ type: "image/png" });
}
