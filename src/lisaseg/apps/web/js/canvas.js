/** The stage: the picture with the masks of the conversation, which can be pointed at. */

import { calm } from "./dom.js";
import { paintMasks, shapeOf } from "./paint.js";
import { layersOf, percent, shownLayers } from "./state.js";
import { Viewport } from "./viewport.js";

const FADE = 260; // ms

/** See the head of the file. */
export class Stage extends Viewport {
  /**
   * @param {{view: HTMLElement, canvas: HTMLCanvasElement, tip: HTMLElement}} elements
   * @param {import("./state.js").Store} store
   * @param {(zoom: number) => void} onZoom
   */
  constructor({ view, canvas, tip }, store, onZoom) {
    super({ view, canvas }, onZoom);
    this.tip = tip;
    this.store = store;
    /** When a layer came, so that it fades in. @type {Map<string, number>} */
    this.since = new Map();
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

  /** @override */
  get picture() {
    return this.store.state.picture;
  }

  /** @override @param {CanvasRenderingContext2D} context @param {number} now */
  paint(context, now) {
    const { state } = this.store;
    const { picture } = state;
    if (state.compare || !picture) return;
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
    const [px, py] = this.toPicture(x, y);
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
