/** The stage: the picture with its masks; zoom, move, point at a mask. Drawing never asks the server. */

import { calm } from "./dom.js";
import { SHARP, paintMasks, shapeOf } from "./paint.js";
import { layersOf, percent, shownLayers } from "./state.js";

const MARGIN = 14; // around a picture that fits, in CSS pixels
const FADE = 260; // ms

/** See the head of the file. */
export class Stage {
  /**
   * @param {{view: HTMLElement, canvas: HTMLCanvasElement, tip: HTMLElement}} elements
   * @param {import("./state.js").Store} store
   * @param {(zoom: number) => void} onZoom
   */
  constructor({ view, canvas, tip }, store, onZoom) {
    this.view = view;
    this.canvas = canvas;
    this.tip = tip;
    this.store = store;
    this.onZoom = onZoom;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.fits = true;
    this.scale = 1; // CSS pixels for a pixel of the picture
    this.x = 0; // of the picture's left upper corner, CSS pixels
    this.y = 0;
    /** When a layer came, so that it fades in. @type {Map<string, number>} */
    this.since = new Map();
    this.waiting = false;
    new ResizeObserver(() => this.resize()).observe(view);
    store.subscribe((state, before) => this.changed(state, before));
  }

  /** @param {import("./state.js").State} state @param {import("./state.js").State} before */
  changed(state, before) {
    const { picture } = state;
    const other = picture?.blob !== before.picture?.blob || picture?.width !== before.picture?.width;
    if (other) {
      this.fits = true;
      this.since.clear();
      for (const layer of layersOf(state)) this.since.set(layer.id, -Infinity);
      this.fit();
    }
    const parts = /** @type {const} */ (["turns", "touched", "look", "lit", "pinned", "compare"]);
    if (!other && parts.every((part) => state[part] === before[part])) return;
    this.describe(state);
    this.ask();
  }

  /** Say what is to be seen. @param {import("./state.js").State} state */
  describe(state) {
    const { picture } = state;
    if (!picture) return;
    const masks = shownLayers(state).map(({ number, label, share }) => `mask ${number}, ${label}, ${percent(share)} of the picture`);
    const size = picture.width ? `, ${picture.width} by ${picture.height} pixels` : "";
    this.view.setAttribute("aria-label", `Picture ${picture.name}${size}. ${masks.length ? masks.join("; ") : "No masks"}.`);
  }

  resize() {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const { clientWidth, clientHeight } = this.view;
    if (!clientWidth || !clientHeight) return;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (this.fits) this.fit();
    else this.place();
    this.draw(performance.now()); // at once: a cleared canvas would flash
  }

  /** All of the picture. */
  fit() {
    const { picture } = this.store.state;
    const { clientWidth, clientHeight } = this.view;
    if (!picture?.width || !clientWidth) return;
    this.fits = true;
    this.scale = this.fitting();
    this.x = (clientWidth - picture.width * this.scale) / 2;
    this.y = (clientHeight - picture.height * this.scale) / 2;
    this.onZoom(this.scale);
    this.ask();
  }

  fitting() {
    const { width, height } = /** @type {import("./types.js").Picture} */ (this.store.state.picture);
    const room = (length) => Math.max(1, length - 2 * MARGIN);
    return Math.min(room(this.view.clientWidth) / width, room(this.view.clientHeight) / height, 8);
  }

  /** Zoom by a factor around a point of the view. */
  zoom(factor, x = this.view.clientWidth / 2, y = this.view.clientHeight / 2) {
    if (!this.store.state.picture?.width) return;
    const least = Math.min(1, this.fitting());
    const scale = Math.min(40, Math.max(least, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fits = false;
    this.place();
    this.onZoom(scale);
  }

  /** Move by CSS pixels. */
  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fits = false;
    this.place();
  }

  /** Keep a part of the picture in sight. */
  place() {
    const { picture } = this.store.state;
    if (!picture?.width) return;
    const keep = (at, length, room) => (length <= room ? (room - length) / 2 : Math.min(room / 2, Math.max(room / 2 - length, at)));
    this.x = keep(this.x, picture.width * this.scale, this.view.clientWidth);
    this.y = keep(this.y, picture.height * this.scale, this.view.clientHeight);
    this.ask();
  }

  /** Draw soon. */
  ask() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame((now) => {
      this.waiting = false;
      this.draw(now);
    });
  }

  /** @param {number} now */
  draw(now) {
    const { context, canvas } = this;
    const { state } = this.store;
    const { picture } = state;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!picture?.width) return;
    const ratio = canvas.width / this.view.clientWidth;
    context.setTransform(this.scale * ratio, 0, 0, this.scale * ratio, this.x * ratio, this.y * ratio);
    context.fillStyle = picture.bitmap ? "#fff" : "#8a8f98"; // transparent parts count as white
    context.fillRect(0, 0, picture.width, picture.height);
    context.imageSmoothingEnabled = this.scale < SHARP;
    context.imageSmoothingQuality = "high";
    if (picture.bitmap) context.drawImage(picture.bitmap, 0, 0, picture.width, picture.height);
    if (state.compare) return;
    let fading = false;
    const fade = (layer) => {
      if (!this.since.has(layer.id)) this.since.set(layer.id, calm.matches ? -Infinity : now);
      const share = Math.min(1, (now - (this.since.get(layer.id) ?? 0)) / FADE);
      fading ||= share < 1;
      return Math.max(0, share);
    };
    const lit = state.lit ?? state.pinned;
    paintMasks(context, shownLayers(state), state.look, { unit: 1 / this.scale, lit, size: [picture.width, picture.height], fade });
    if (fading) this.ask();
  }

  /** The layer under a point of the view, the smallest first. @returns {import("./types.js").Layer | null} */
  at(x, y) {
    const [px, py] = [(x - this.x) / this.scale, (y - this.y) / this.scale];
    const under = shownLayers(this.store.state).filter((layer) => shapeOf(layer.segment).mask.has(px, py));
    return under.sort((a, b) => a.share - b.share)[0] ?? null;
  }

  /** Light the layer under the pointer and say its name beside it. */
  point(x, y) {
    const layer = x === null || this.store.state.compare ? null : this.at(x, y);
    const lit = layer?.id ?? null;
    if (lit !== this.store.state.lit) this.store.set({ lit });
    this.tip.hidden = !layer;
    if (!layer) return;
    this.tip.textContent = `${layer.number}  ${layer.label} · ${percent(layer.share)}`;
    const left = Math.min(x + 14, this.view.clientWidth - this.tip.offsetWidth - 6);
    const top = y + 18 + this.tip.offsetHeight > this.view.clientHeight ? y - this.tip.offsetHeight - 8 : y + 18;
    this.tip.style.transform = `translate(${Math.max(4, left)}px, ${top}px)`;
  }
}
