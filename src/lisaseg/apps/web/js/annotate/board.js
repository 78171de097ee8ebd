/** The picture with what is drawn on it: masks as on the page of conversations, the ignored area hatched, and the tool in hand. */

import { colourOf, css } from "../palette.js";
import { paintMasks, shapeOf } from "../paint.js";
import { Mask } from "../rle.js";
import { Viewport } from "../viewport.js";
import { IGNORE } from "./draft.js";

/** @typedef {import("../rle.js").Rle} Rle */
/** @typedef {import("../raster.js").Point} Point */

/** The same object for the same mask, because shapes are remembered by it. @type {WeakMap<Rle, any>} */
const segments = new WeakMap();

/** @param {Rle} rle */
function segmentOf(rle) {
  const known = segments.get(rle);
  if (known) return known;
  const segment = { mask: rle, area: new Mask(rle).area };
  segments.set(rle, segment);
  return segment;
}

/** Share of the picture that a mask covers, 0 to 1. @param {Rle} rle */
export const shareOf = (rle) => segmentOf(rle).area / (rle.size[0] * rle.size[1]);

/** See the head of the file. */
export class Board extends Viewport {
  /**
   * @param {{view: HTMLElement, canvas: HTMLCanvasElement}} elements
   * @param {import("../observed.js").Observed<import("./bench.js").State>} store
   * @param {(zoom: number) => void} onZoom
   */
  constructor(elements, store, onZoom) {
    super(elements, onZoom);
    this.store = store;
    /** The line that is being drawn. @type {Point[]} */
    this.line = [];
    /** Where the tool is; null: not over the picture. @type {Point | null} */
    this.hand = null;
    this.byKeys = false; // the tool is moved with the arrow keys
    store.subscribe((state, before) => this.changed(state, before));
  }

  /** @override */
  get picture() {
    return this.store.state.picture;
  }

  /** @param {import("./bench.js").State} state @param {import("./bench.js").State} before */
  changed(state, before) {
    if (state.picture !== before.picture) {
      this.hand = null;
      this.fit();
    }
    if (state.corners.length && (state.draft?.id !== before.draft?.id || state.tool !== before.tool)) this.store.set({ corners: [] });
    this.view.dataset.tool = state.tool;
    this.describe(state);
    this.ask();
  }

  /** @param {import("./bench.js").State} state */
  describe({ picture, draft }) {
    if (!picture || !draft) return;
    const { masks, ignore, nothing } = draft.drawn;
    const count = nothing ? "Nothing fits" : `${masks.length || "No"} ${masks.length === 1 ? "mask" : "masks"}${ignore ? ", an ignored area" : ""}`;
    const label = `Picture ${picture.name}, ${picture.width} by ${picture.height} pixels. ${count}.`;
    if (this.view.getAttribute("aria-label") !== label) this.view.setAttribute("aria-label", label);
  }

  /** Masks that are to be seen. @returns {any[]} layers as paint.js takes them */
  layers() {
    const { draft } = this.store.state;
    if (!draft || draft.drawn.nothing) return [];
    return draft.drawn.masks.map((mask, k) => ({ id: `mask-${k}`, number: k + 1, segment: segmentOf(mask), share: shareOf(mask) })).filter((layer) => layer.share);
  }

  /** @override @param {CanvasRenderingContext2D} context */
  paint(context) {
    const { state } = this.store;
    const { picture, draft, look, compare } = state;
    if (!picture || !draft || compare) return;
    const unit = 1 / this.scale;
    paintMasks(context, this.layers(), look, { unit, size: [picture.width, picture.height] });
    if (draft.drawn.ignore && !draft.drawn.nothing) hatch(context, shapeOf(segmentOf(draft.drawn.ignore)).exact, unit);
    if (this.line.length) this.preview(context, state);
    if (state.corners.length) this.polygon(context, state, unit);
    this.tool(context, state, unit);
  }

  /** Colour of what is drawn on. @param {import("./bench.js").State} state @returns {[number, number, number]} */
  colour({ draft }) {
    const active = draft?.drawn.active ?? 0;
    return active === IGNORE ? [120, 124, 132] : colourOf(active + 1);
  }

  /** The line under way: colour for the brush, the bare picture for the eraser. It is cut into pixels at its end. */
  preview(context, state) {
    const { picture, tool, size, look } = state;
    const path = new Path2D();
    this.line.forEach(([x, y], k) => (k ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.lineTo(...this.line[this.line.length - 1]);
    context.save();
    context.beginPath();
    context.rect(0, 0, picture.width, picture.height);
    context.clip();
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = size;
    if (tool === "eraser") context.strokeStyle = context.createPattern(picture.bitmap, "no-repeat");
    else context.strokeStyle = css(this.colour(state), Math.max(0.3, look.opacity));
    context.stroke(path);
    context.restore();
  }

  polygon(context, state, unit) {
    const colour = css(this.colour(state));
    const path = new Path2D();
    const all = this.hand ? [...state.corners, this.hand] : state.corners;
    all.forEach(([x, y], k) => (k ? path.lineTo(x, y) : path.moveTo(x, y)));
    context.save();
    context.globalAlpha = 0.25;
    context.fillStyle = colour;
    context.fill(path);
    context.globalAlpha = 1;
    context.lineJoin = "round";
    for (const [width, style] of /** @type {[number, string][]} */ ([[4, "#fff"], [2, colour]])) {
      context.lineWidth = width * unit;
      context.strokeStyle = style;
      context.stroke(path);
    }
    state.corners.forEach(([x, y], k) => {
      context.beginPath();
      context.arc(x, y, (k ? 4 : 6) * unit, 0, 2 * Math.PI);
      context.fillStyle = "#fff";
      context.fill();
      context.lineWidth = 2 * unit;
      context.strokeStyle = colour;
      context.stroke();
    });
    context.restore();
  }

  /** What the tool would touch; a cross where the keys are. */
  tool(context, { tool, size }, unit) {
    if (!this.hand || tool === "move") return;
    const [x, y] = this.hand;
    const path = new Path2D();
    if (tool !== "polygon") path.arc(x, y, size / 2, 0, 2 * Math.PI);
    if (this.byKeys || tool === "polygon") {
      const arm = 9 * unit;
      path.moveTo(x - arm, y);
      path.lineTo(x + arm, y);
      path.moveTo(x, y - arm);
      path.lineTo(x, y + arm);
    }
    for (const [width, style] of /** @type {[number, string][]} */ ([[3, "rgb(0 0 0 / .55)"], [1.4, "#fff"]])) {
      context.lineWidth = width * unit;
      context.strokeStyle = style;
      context.stroke(path);
    }
  }
}

/** Stripes: neither target nor background. */
function hatch(context, path, unit) {
  const tile = new OffscreenCanvas(12, 12);
  const brush = /** @type {OffscreenCanvasRenderingContext2D} */ (tile.getContext("2d"));
  brush.fillStyle = "rgb(30 32 38 / .45)";
  brush.fillRect(0, 0, 12, 12);
  brush.strokeStyle = "rgb(255 255 255 / .85)";
  brush.lineWidth = 2;
  brush.beginPath();
  for (const from of [-12, 0, 12]) {
    brush.moveTo(from, 12);
    brush.lineTo(from + 12, 0);
  }
  brush.stroke();
  const pattern = context.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(unit));
  context.save();
  context.fillStyle = pattern;
  context.fill(path);
  context.lineWidth = 1.6 * unit;
  context.strokeStyle = "rgb(255 255 255 / .9)";
  context.stroke(path);
  context.restore();
}
