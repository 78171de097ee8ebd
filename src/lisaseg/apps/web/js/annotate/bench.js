/** The work on one project: which picture and sample are open, what is drawn, what goes to the server. Nothing here touches what can be seen. */

import { randomName } from "../api.js";
import { Raster } from "../raster.js";
import { Mask } from "../rle.js";
import { IGNORE, History, blank, content, fromSample, toBody } from "./draft.js";
import { Drafts } from "./drafts.js";

/** @typedef {import("./draft.js").Draft} Draft */
/** @typedef {import("./draft.js").Drawn} Drawn */
/** @typedef {import("../rle.js").Rle} Rle */
/**
 * @typedef {{id: string, name: string, samples: number}} Entry a picture of the list
 * @typedef {{id: string, name: string, width: number, height: number, bitmap: ImageBitmap | null}} Picture
 * @typedef {object} State what the page knows
 * @property {{project: string, folder: string, name: string, file: string, elsewhere: number, model: string | null} | null} project
 * @property {Entry[]} pictures
 * @property {Set<string>} drafted pictures with something that is not saved
 * @property {Picture | null} picture
 * @property {Draft[]} samples of the picture, as the file has them
 * @property {Draft[]} fresh drafts of the picture that were never saved
 * @property {Draft | null} draft what is worked on
 * @property {import("../raster.js").Point[]} corners so far of a polygon
 * @property {"brush" | "eraser" | "polygon" | "move"} tool
 * @property {number} size of brush and eraser: diameter in pixels of the picture
 * @property {{opacity: number, fill: boolean, outline: boolean}} look
 * @property {boolean} compare without masks for the moment
 * @property {"" | "proposing" | "saving" | "opening"} busy
 * @property {string} said by the model
 * @property {{state: string, model: string, queue: number}} server
 * @property {object} limits
 */

/** @returns {State} */
export const initial = () => ({
  project: null, pictures: [], drafted: new Set(), picture: null, samples: [], fresh: [], draft: null, corners: [], tool: "brush", size: 24,
  look: { opacity: 0.45, fill: true, outline: true }, compare: false, busy: "opening", said: "", server: { state: "unknown", model: "", queue: 0 }, limits: {},
});

/** See the head of the file. Methods that ask the server throw an `ApiError`. */
export class Bench {
  /** @param {import("../api.js").Api} api @param {import("../observed.js").Observed<State>} store */
  constructor(api, store) {
    this.api = api;
    this.store = store;
    this.history = new History();
    this.drafts = new Drafts("");
    /** Masks as the model gave them: the next proposal replaces them. @type {WeakSet<Rle>} */
    this.proposed = new WeakSet();
    this.opening = 0;
  }

  /** @returns {State} */
  get state() {
    return this.store.state;
  }

  /** The list of pictures, anew. */
  async load() {
    const { pictures, ...project } = await this.api.call("GET", "/v1/annotate");
    if (project.project !== this.state.project?.project) this.drafts = new Drafts(project.project);
    this.store.set({ project, pictures, drafted: this.drafts.pictures() });
  }

  /** Open a picture, and of its samples the named one, else one with a draft, else the first. @param {string} id @param {string} [sample] */
  async open(id, sample = "") {
    this.keep();
    const turn = ++this.opening;
    this.store.set({ busy: "opening" });
    try {
      const found = await this.api.call("GET", `/v1/annotate/pictures/${id}`);
      const response = await this.api.call("GET", `/v1/annotate/pictures/${id}/content`, null, { raw: true });
      const bitmap = await createImageBitmap(await response.blob());
      if (turn !== this.opening) return; // another one was asked for meanwhile
      const { width, height } = found;
      const picture = { id, name: found.name, width, height, bitmap };
      const samples = found.samples.map(fromSample);
      const fresh = this.drafts.of(id).filter((draft) => !samples.some((one) => one.id === draft.id));
      this.store.set({ picture, samples, fresh, size: Math.max(3, Math.round(Math.max(width, height) / 26)) });
      const wanted = [...samples, ...fresh].find((one) => one.id === sample);
      this.choose((wanted ?? samples[0] ?? fresh[0] ?? this.blank()).id);
    } finally {
      if (turn === this.opening) this.store.set({ busy: "" });
    }
  }

  /** A new sample of the picture. */
  blank() {
    const { picture, fresh } = this.state;
    const empty = fresh.find((one) => content(one) === content(blank("")));
    if (empty) return empty;
    const stem = /** @type {Picture} */ (picture).name.replace(/^.*\//, "").replace(/\.[^.]*$/, "").replace(/[^A-Za-z0-9_-]+/g, "-").slice(0, 60);
    const draft = blank(`${stem || "sample"}-${randomName().slice(0, 8)}`);
    this.store.set({ fresh: [...fresh, draft] });
    return draft;
  }

  /** Work on another sample of the picture. @param {string} id */
  choose(id) {
    this.keep();
    const { picture, samples, fresh } = this.state;
    const kept = this.drafts.of(/** @type {Picture} */ (picture).id).find((draft) => draft.id === id);
    const draft = kept ?? [...samples, ...fresh].find((one) => one.id === id) ?? null;
    this.history = new History();
    this.store.set({ draft, said: "" });
  }

  /** The draft as the file has it. @param {Draft} draft */
  saved = (draft) => this.state.samples.find((one) => one.id === draft.id) ?? blank(draft.id);

  /** Whether something is not in the file. */
  get dirty() {
    const { draft } = this.state;
    return Boolean(draft) && content(/** @type {Draft} */ (draft)) !== content(this.saved(/** @type {Draft} */ (draft)));
  }

  /** Lay the draft down in the browser. */
  keep() {
    const { draft, picture, fresh } = this.state;
    if (!draft || !picture || draft.problem) return;
    this.drafts.keep(picture.id, draft, this.saved(draft));
    const drafted = this.drafts.pictures();
    this.store.set({ drafted, fresh: fresh.map((one) => (one.id === draft.id ? draft : one)) });
  }

  // --- drawing -------------------------------------------------------------------------------------------------------------------------------------

  /** Change what is drawn; `undo` takes it back. @param {Partial<Drawn>} patch */
  change(patch) {
    const { draft } = this.state;
    if (!draft || draft.problem) return;
    this.history.push(draft.drawn);
    this.store.set({ draft: { ...draft, drawn: { ...draft.drawn, ...patch } } });
  }

  /** Draw on the active mask, or on the ignored area. @param {(raster: Raster) => void} work */
  draw(work) {
    const { draft, picture } = this.state;
    if (!draft || !picture || draft.problem) return;
    const { masks, ignore, active } = draft.drawn;
    const before = active === IGNORE ? ignore : masks[active];
    const raster = before ? Raster.of(before) : new Raster(picture.width, picture.height);
    work(raster);
    const after = raster.rle();
    if (after.counts === (before?.counts ?? new Raster(picture.width, picture.height).rle().counts)) return;
    if (active === IGNORE) this.change({ ignore: new Mask(after).area ? after : null, nothing: false });
    else this.change({ masks: before ? masks.map((mask, k) => (k === active ? after : mask)) : [...masks, after], active: before ? active : masks.length, nothing: false });
  }

  undo = () => this.step(this.history.undo(this.state.draft?.drawn ?? blank("").drawn));
  redo = () => this.step(this.history.redo(this.state.draft?.drawn ?? blank("").drawn));

  /** @param {Drawn | undefined} drawn */
  step(drawn) {
    const { draft } = this.state;
    if (draft && drawn) this.store.set({ draft: { ...draft, drawn } });
    return Boolean(drawn);
  }

  /** Choose what is drawn on: a mask from 0, the number after the last for a new one, or IGNORE. @param {number} active */
  activate(active) {
    const { draft } = this.state;
    if (!draft || draft.problem) return;
    const last = draft.drawn.masks.length;
    this.store.set({ draft: { ...draft, drawn: { ...draft.drawn, active: active === IGNORE ? IGNORE : Math.min(Math.max(0, active), last) } } });
  }

  /** @param {number} at */
  remove(at) {
    const { draft } = this.state;
    if (!draft) return;
    const masks = draft.drawn.masks.filter((_, k) => k !== at);
    this.change({ masks, active: Math.max(0, Math.min(draft.drawn.active, masks.length - 1)) });
  }

  /** @param {Partial<import("./draft.js").Words>} patch */
  write(patch) {
    const { draft } = this.state;
    if (draft && !draft.problem) this.store.set({ draft: { ...draft, words: { ...draft.words, ...patch } } });
  }

  // --- the server ----------------------------------------------------------------------------------------------------------------------------------

  /** Ask the model. Masks that it gave before and that were not touched make room. @returns {Promise<string>} what it said */
  async propose() {
    const { draft, picture } = this.state;
    if (!draft || !picture || this.state.busy) return "";
    this.store.set({ busy: "proposing", said: "" });
    try {
      const answer = await this.api.call("POST", `/v1/annotate/pictures/${picture.id}/propose`, { prompt: draft.words.text, mode: "segment" });
      if (this.state.draft?.id !== draft.id) return ""; // she has gone on meanwhile
      const found = answer.segments.map((segment) => segment.mask).filter((mask) => new Mask(mask).area);
      const own = this.state.draft.drawn.masks.filter((mask) => !this.proposed.has(mask));
      for (const mask of found) this.proposed.add(mask);
      if (found.length) this.change({ masks: [...own, ...found], active: own.length, nothing: false });
      const said = found.length ? `${answer.model}: ${answer.text}` : `${answer.model} finds nothing that fits: ${answer.text}`;
      this.store.set({ said });
      return said;
    } finally {
      this.store.set({ busy: "" });
    }
  }

  /** Write the sample into the file. @param {string | null} [revision] in place of the draft's own, to overwrite what somebody else wrote */
  async save(revision) {
    const { draft, picture } = this.state;
    if (!draft || !picture || draft.problem || this.state.busy === "saving") return;
    this.keep();
    this.store.set({ busy: "saving" });
    try {
      const body = toBody({ ...draft, revision: revision === undefined ? draft.revision : revision }, picture.id);
      const sample = fromSample(await this.api.call("PUT", `/v1/annotate/samples/${encodeURIComponent(draft.id)}`, body));
      this.take(sample, draft);
    } finally {
      this.store.set({ busy: "" });
    }
  }

  /** A sample as it is in the file now; the work goes on from it. @param {Draft} sample @param {Draft} draft that it was before */
  take(sample, draft) {
    const { samples, fresh, picture, draft: now } = this.state;
    const known = samples.some((one) => one.id === draft.id);
    const all = known ? samples.map((one) => (one.id === draft.id ? sample : one)) : [...samples, sample];
    this.store.set({ samples: all, fresh: fresh.filter((one) => one.id !== draft.id) });
    if (now?.id === draft.id) {
      const same = content(now) === content(draft); // else she went on drawing while it was saved
      const drawn = { ...sample.drawn, active: Math.min(now.drawn.active, Math.max(0, sample.drawn.masks.length - 1)) };
      this.store.set({ draft: same ? { ...sample, drawn } : { ...now, revision: sample.revision } });
    }
    if (picture) this.drafts.forget(picture.id, draft.id);
    this.keep();
    this.count();
  }

  /** Remove the sample from the file, or the draft from the browser; the one beside it is next. @param {string | null} [revision] as in `save` */
  async discard(revision) {
    const { draft, picture, samples, fresh } = this.state;
    if (!draft || !picture) return;
    const at = revision === undefined ? draft.revision : revision;
    if (at !== null) await this.api.call("DELETE", `/v1/annotate/samples/${encodeURIComponent(draft.id)}?revision=${at}`);
    this.drafts.forget(picture.id, draft.id);
    const others = (list) => list.filter((one) => one.id !== draft.id);
    this.store.set({ draft: null, samples: others(samples), fresh: others(fresh), drafted: this.drafts.pictures() });
    this.count();
    this.choose((this.state.samples[0] ?? this.state.fresh[0] ?? this.blank()).id);
  }

  /** Back to what is in the file; what was drawn can be had again with `undo`. */
  revert() {
    const { draft } = this.state;
    if (!draft) return;
    const { words, drawn } = this.saved(draft);
    this.change(drawn);
    this.write(words);
  }

  /** How many samples the list shows for the picture. */
  count() {
    const { pictures, picture, samples } = this.state;
    this.store.set({ pictures: pictures.map((one) => (one.id === picture?.id ? { ...one, samples: samples.length } : one)) });
  }

  /** Id of the picture some places further. @param {number} step @param {(entry: Entry) => boolean} [wanted] */
  neighbour(step, wanted = () => true) {
    const { pictures, picture } = this.state;
    const at = pictures.findIndex((one) => one.id === picture?.id);
    for (let k = at + step; k >= 0 && k < pictures.length; k += step) if (wanted(pictures[k])) return pictures[k].id;
    return null;
  }
}
