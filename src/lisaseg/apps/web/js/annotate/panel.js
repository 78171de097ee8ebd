/** Question and masks of the open sample: what is written, what is drawn on, what is saved. */

import { $, h, icon } from "../dom.js";
import { colourOf, css, inkOn } from "../palette.js";
import { percent } from "../state.js";
import { shareOf } from "./board.js";
import { IGNORE, looksLikeSentence } from "./draft.js";

/** @typedef {import("./bench.js").State} State */
/** @typedef {import("./draft.js").Draft} Draft */

const FIELDS = /** @type {const} */ (["text", "target", "explanation", "rephrasings"]);

/** See the head of the file. */
export class Panel {
  /**
   * @param {import("../observed.js").Observed<import("./bench.js").State>} store
   * @param {import("./bench.js").Bench} bench
   */
  constructor(store, bench) {
    this.store = store;
    this.bench = bench;
    for (const name of FIELDS) $(name).addEventListener("input", () => this.typed(name));
    $("is-sentence").addEventListener("change", () => bench.write({ is_sentence: $("is-sentence").checked }));
    $("nothing").addEventListener("change", () => bench.change({ nothing: $("nothing").checked }));
    $("new-mask").addEventListener("click", () => bench.activate(Infinity));
    $("ignore").addEventListener("click", () => bench.activate(IGNORE));
    $("new-question").addEventListener("click", () => {
      bench.choose(bench.blank().id);
      $("text").focus();
    });
    store.subscribe((state, before) => this.show(state, before));
  }

  /** @param {(typeof FIELDS)[number]} name */
  typed(name) {
    const { draft } = this.store.state;
    const { value } = $(name);
    if (!draft) return;
    const guessed = name === "text" && draft.words.is_sentence === looksLikeSentence(draft.words.text); // as long as she has not said otherwise
    this.bench.write({ [name]: value, ...(guessed ? { is_sentence: looksLikeSentence(value) } : {}) });
  }

  /** @param {State} state @param {State} before */
  show(state, before) {
    const { draft, samples, fresh, busy, project, server } = state;
    if (draft !== before.draft || samples !== before.samples || fresh !== before.fresh || state.picture !== before.picture) this.questions(state);
    if (draft !== before.draft) this.form(draft, before.draft);
    if (draft?.drawn !== before.draft?.drawn) this.masks(draft);
    const off = !draft || Boolean(draft.problem);
    $("propose").hidden = !project?.model;
    const ready = server.state === "ready";
    $("propose").disabled = off || busy === "proposing" || !draft?.words.text.trim() || !ready;
    $("propose-word").textContent = busy === "proposing" ? "Looking ..." : ready ? "Propose a mask" : server.state === "offline" ? "Server not reachable" : "Model is loading";
    $("said").textContent = state.said;
    $("said").hidden = !state.said;
    const dirty = this.bench.dirty;
    $("save").disabled = off || busy === "saving" || !dirty;
    $("discard").disabled = !draft;
    $("discard-word").textContent = !draft?.revision ? "Discard" : dirty ? "Revert" : "Delete";
    $("discard").title = draft?.revision && dirty ? "Back to what is saved" : "";
    const fresher = draft && !draft.revision && !dirty;
    const status = busy === "saving" ? "saving" : off || fresher ? "" : dirty ? "unsaved" : "done";
    $("status").dataset.state = status;
    $("status-word").textContent = { saving: "Saving ...", unsaved: "Not saved", done: "Saved", "": "" }[status];
  }

  /** The samples of the picture. @param {State} state */
  questions({ samples, fresh, draft }) {
    const rows = [...samples, ...fresh].map((one, k) => {
      const now = one.id === draft?.id ? draft : one;
      const text = one.problem ? "A line that cannot be read" : now.words.text.trim() || "New question";
      const current = one.id === draft?.id;
      const button = h("button.question", { type: "button", onclick: () => this.bench.choose(one.id) }, h("span.order", {}, String(k + 1)), h("span.clip", {}, text));
      if (current) button.setAttribute("aria-current", "true");
      const unsaved = current ? this.bench.dirty : !one.revision || this.bench.drafts.of(this.store.state.picture?.id ?? "").some((kept) => kept.id === one.id);
      if (one.problem) button.append(icon("alert"));
      else if (unsaved) button.append(h("i.mark.unsaved", { role: "img", "aria-label": "unsaved" }));
      return h("li", {}, button);
    });
    const focused = [...$("questions").children].findIndex((row) => row.contains(document.activeElement));
    $("questions").replaceChildren(...rows);
    if (focused >= 0) rows[Math.min(focused, rows.length - 1)]?.querySelector("button")?.focus();
  }

  /** @param {Draft | null} draft @param {Draft | null} before */
  form(draft, before) {
    $("form").disabled = !draft || Boolean(draft.problem);
    $("problem").hidden = !draft?.problem;
    $("problem-text").textContent = draft?.problem ?? "";
    for (const name of FIELDS) {
      const value = draft?.words[name] ?? "";
      if ($(name).value !== value) $(name).value = value;
    }
    $("is-sentence").checked = Boolean(draft?.words.is_sentence);
    if (draft?.id !== before?.id && (draft?.words.explanation || draft?.words.rephrasings)) $("more").open = true;
  }

  /** @param {Draft | null} draft */
  masks(draft) {
    const { masks, ignore, nothing, active } = draft?.drawn ?? { masks: [], ignore: null, nothing: false, active: 0 };
    const shown = active >= masks.length ? [...masks, null] : masks; // the one that will be begun
    const rows = shown.map((mask, k) => {
      const colour = colourOf(k + 1);
      const number = h("span.number", {}, String(k + 1));
      number.style.background = css(colour);
      number.style.color = inkOn(colour);
      const word = mask ? percent(shareOf(mask)) : "draw it";
      const choose = h("button.pick", { type: "button", "aria-pressed": String(k === active), onclick: () => this.bench.activate(k) }, number, h("span", {}, `Mask ${k + 1}`), h("span.small.share", {}, word));
      const away = mask && h("button.quiet.square.away-with", { type: "button", "aria-label": `Remove mask ${k + 1}`, title: "Remove", onclick: () => this.bench.remove(k) }, icon("trash"));
      return h("li", {}, choose, away);
    });
    const focused = [...$("masks").querySelectorAll("button")].indexOf(/** @type {any} */ (document.activeElement));
    $("masks").replaceChildren(...rows);
    if (focused >= 0) /** @type {any} */ ([...$("masks").querySelectorAll("button")][focused] ?? $("new-mask")).focus();
    $("masks").classList.toggle("void", nothing);
    $("nothing").checked = nothing;
    $("new-mask").disabled = active >= masks.length;
    $("ignore").setAttribute("aria-pressed", String(active === IGNORE));
    $("ignore-share").textContent = ignore ? percent(shareOf(ignore)) : "";
  }
}
