/** The pictures of the project, with how far they are. */

import { $, h, icon } from "../dom.js";

/** @typedef {import("./bench.js").Entry} Entry */

/** See the head of the file. */
export class Shelf {
  /**
   * @param {import("../observed.js").Observed<import("./bench.js").State>} store
   * @param {(id: string) => void} open
   */
  constructor(store, open) {
    this.store = store;
    this.open = open;
    /** @type {Map<string, any>} */
    this.rows = new Map();
    $("todo").addEventListener("change", () => this.refresh());
    store.subscribe((state, before) => {
      const parts = /** @type {const} */ (["pictures", "drafted", "picture"]);
      if (parts.some((part) => state[part] !== before[part])) this.refresh();
      if (state.picture?.id !== before.picture?.id) this.reveal(state.picture?.id);
    });
  }

  refresh() {
    const { pictures, drafted, picture } = this.store.state;
    const todo = $("todo").checked;
    const shown = pictures.filter((entry) => !todo || !entry.samples || entry.id === picture?.id);
    if (shown.length !== $("pictures").children.length || shown.some(({ id }, k) => $("pictures").children[k] !== this.rows.get(id))) {
      $("pictures").replaceChildren(...shown.map((entry) => this.row(entry)));
    }
    for (const entry of shown) this.update(this.row(entry), entry, drafted.has(entry.id), entry.id === picture?.id);
    const done = pictures.filter((entry) => entry.samples).length;
    $("done").textContent = `${done} of ${pictures.length}`;
    $("done-bar").value = pictures.length ? done / pictures.length : 0;
  }

  /** @param {Entry} entry */
  row(entry) {
    const known = this.rows.get(entry.id);
    if (known) return known;
    const image = h("img", { src: `/v1/annotate/pictures/${entry.id}/thumbnail`, alt: "", loading: "lazy", width: 88, height: 66 });
    image.addEventListener("error", () => image.replaceWith(h("span.broken", {}, icon("alert"))));
    const name = entry.name.replace(/^.*\//, "");
    const text = h("span.entry-text", {}, h("span.clip", { title: entry.name }, name), h("span.small.state", {}));
    const row = h("li", {}, h("button.entry", { type: "button", onclick: () => this.open(entry.id) }, image, text));
    this.rows.set(entry.id, row);
    return row;
  }

  update(row, entry, drafted, current) {
    const button = row.firstElementChild;
    if (current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    const saved = entry.samples ? `${entry.samples} ${entry.samples === 1 ? "sample" : "samples"}` : "no sample";
    const state = button.querySelector(".state");
    const mark = drafted ? "unsaved" : entry.samples ? "done" : "";
    if (state.dataset.text === saved + mark) return;
    state.dataset.text = saved + mark;
    state.replaceChildren(...(mark ? [h(`i.mark.${mark}`, {}, mark === "done" ? icon("check") : "")] : []), drafted ? "unsaved" : saved);
  }

  /** @param {string | undefined} id */
  reveal(id) {
    this.rows.get(id ?? "")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
