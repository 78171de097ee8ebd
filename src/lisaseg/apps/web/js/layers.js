/** The list of masks: show, hide, name, save. And the bond between all that stands for one mask: chip, words, row and pixels light together. */

import { number } from "./answer.js";
import { h, icon, saveFile } from "./dom.js";
import { shapeOf } from "./paint.js";
import { greyPng } from "./png.js";
import { layersOf, percent } from "./state.js";

/** @typedef {import("./types.js").Layer} Layer */

/** See the head of the file. */
export class Layers {
  /**
   * @param {{list: HTMLElement, empty: HTMLElement, count: HTMLElement}} elements
   * @param {import("./state.js").Store} store
   */
  constructor({ list, empty, count }, store) {
    this.list = list;
    this.empty = empty;
    this.count = count;
    this.store = store;
    store.subscribe((state, before) => {
      if (state.turns !== before.turns || state.touched !== before.touched || state.look !== before.look) this.render(state);
      light(state);
    });
    bond(store);
  }

  /** @param {import("./state.js").State} state */
  render(state) {
    const layers = layersOf(state);
    this.count.textContent = String(layers.length);
    this.empty.hidden = layers.length > 0;
    const rows = new Map([...this.list.children].map((row) => [row.getAttribute("data-layer"), row]));
    layers.forEach((layer, at) => {
      const old = rows.get(layer.id);
      rows.delete(layer.id);
      const row = old && /** @type {any} */ (old).segment === layer.segment ? old : this.row(layer);
      if (old && row !== old) old.replaceWith(row);
      if (this.list.children[at] !== row) this.list.insertBefore(row, this.list.children[at] ?? null);
      this.update(row, layer, state);
    });
    for (const row of rows.values()) row.remove();
  }

  /** @param {Layer} layer */
  row(layer) {
    const { id } = layer;
    const show = h("input.show", { type: "checkbox", onchange: () => this.touch(id, { hidden: !show.checked }) });
    const name = h("input.name", { type: "text", maxLength: 60, autocomplete: "off", spellcheck: false, oninput: () => this.touch(id, { name: name.value.trim() }) });
    name.addEventListener("keydown", (event) => event.key === "Enter" && name.blur());
    const save = h("button.quiet.square.save", { type: "button", onclick: () => saveMask(this.layer(id)) }, icon("download"));
    const row = h("li.layer", { "data-layer": id }, show, number(layer.number), name, h("span.turn-of.small"), h("span.share.small"), save);
    row.segment = layer.segment;
    return row;
  }

  /** @param {any} row @param {Layer} layer @param {import("./state.js").State} state */
  update(row, layer, state) {
    const [show, , name, turn, share, save] = row.children;
    const called = `mask ${layer.number}`;
    show.checked = !layer.hidden;
    show.setAttribute("aria-label", `Show ${called}, ${layer.label}`);
    if (document.activeElement !== name) name.value = layer.name;
    name.placeholder = layer.segment.phrase || called;
    name.setAttribute("aria-label", `Name of ${called}`);
    turn.textContent = state.turns.length > 1 ? `question ${layer.turn + 1}` : "";
    share.textContent = percent(layer.share);
    const { score } = layer.segment;
    share.title = score === null ? "Share of the picture" : `Share of the picture; the model rates this mask ${score.toFixed(2)}`;
    save.setAttribute("aria-label", `Save ${called} as PNG`);
    save.title = "Save as PNG, 0 and 255";
    row.classList.toggle("away", layer.hidden || (state.look.onlyLast && layer.turn !== state.turns.length - 1));
  }

  /** @param {string} id @returns {Layer} */
  layer = (id) => /** @type {Layer} */ (layersOf(this.store.state).find((layer) => layer.id === id));

  /** @param {string} id @param {{name?: string, hidden?: boolean}} change */
  touch(id, change) {
    const { touched } = this.store.state;
    this.store.set({ touched: { ...touched, [id]: { ...touched[id], ...change } } });
  }
}

/** @param {Layer} layer */
async function saveMask(layer) {
  const { mask } = shapeOf(layer.segment);
  saveFile(await greyPng(mask.bytes(255), mask.width, mask.height), `${slug(layer.label)}.png`);
}

/** A name that any disk takes. @param {string} text */
export const slug = (text) => text.normalize("NFKD").replace(/[^A-Za-z0-9_-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60) || "mask";

/** Mark all that stands for the lit mask. @param {import("./state.js").State} state */
function light({ lit, pinned }) {
  const id = lit ?? pinned;
  for (const element of document.querySelectorAll("[data-layer]")) {
    const own = element.getAttribute("data-layer");
    element.classList.toggle("lit", own === id);
    if (element.matches(".chip")) element.setAttribute("aria-pressed", String(own === pinned));
  }
}

/** Pointing at a word or a row, or reaching it with the keyboard, lights its mask. @param {import("./state.js").Store} store */
function bond(store) {
  const of = (event) => event.target instanceof Element && event.target.closest("[data-layer]")?.getAttribute("data-layer");
  const set = (lit) => lit !== store.state.lit && store.set({ lit });
  document.addEventListener("pointerover", (event) => of(event) && event.pointerType !== "touch" && set(of(event)));
  document.addEventListener("pointerout", (event) => of(event) && !(event.relatedTarget instanceof Element && event.relatedTarget.closest("[data-layer]")) && set(null));
  document.addEventListener("focusin", (event) => of(event) && event.target instanceof Element && event.target.matches(":focus-visible") && set(of(event)));
  document.addEventListener("focusout", (event) => of(event) && set(null));
  document.addEventListener("click", (event) => {
    const chip = event.target instanceof Element && event.target.closest("button.chip[data-layer]");
    if (!chip) return;
    const id = chip.getAttribute("data-layer");
    store.set({ pinned: store.state.pinned === id ? null : id, lit: null });
  });
}
