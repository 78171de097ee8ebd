/**
 * A sample while it is worked on. Values are replaced, never changed in place, so that a step back is the value before. Nothing here touches the page.
 *
 * @typedef {import("../rle.js").Rle} Rle
 * @typedef {{masks: Rle[], ignore: Rle | null, nothing: boolean, active: number}} Drawn
 *   nothing: it is said that nothing fits; active: the mask that is drawn on, from 0, or -1 for the ignored area
 * @typedef {{text: string, is_sentence: boolean, target: string, explanation: string, rephrasings: string}} Words
 *   target: names, separated by commas; rephrasings: one a line
 * @typedef {{id: string, revision: string | null, words: Words, drawn: Drawn, problem?: string}} Draft  revision null: never saved
 */

export const IGNORE = -1;
const STEPS = 200; // that can be taken back

/** @type {Words} */
const NO_WORDS = { text: "", is_sentence: false, target: "", explanation: "", rephrasings: "" };
/** @type {Drawn} */
const NOTHING_DRAWN = { masks: [], ignore: null, nothing: false, active: 0 };

/** @param {string} id @returns {Draft} */
export const blank = (id) => ({ id, revision: null, words: NO_WORDS, drawn: NOTHING_DRAWN });

/** A sample as the server sends it. @param {any} sample @returns {Draft} */
export function fromSample(sample) {
  if (sample.problem) return { ...blank(sample.id), revision: sample.revision, problem: sample.problem };
  const { text, is_sentence, explanation } = sample;
  const words = { text, is_sentence, explanation, target: sample.target.join(", "), rephrasings: sample.rephrasings.join("\n") };
  const drawn = { masks: sample.masks ?? [], ignore: sample.ignore, nothing: sample.masks === null, active: 0 };
  return { id: sample.id, revision: sample.revision, words, drawn };
}

/** What the server takes. @param {Draft} draft @param {string} picture id */
export function toBody({ revision, words, drawn }, picture) {
  const split = (text, by) => text.split(by).map((part) => part.trim()).filter(Boolean);
  return {
    picture,
    revision,
    text: words.text,
    is_sentence: words.is_sentence,
    target: split(words.target, ","),
    explanation: words.explanation,
    rephrasings: split(words.rephrasings, "\n"),
    masks: drawn.nothing ? null : drawn.masks,
    ignore: drawn.nothing ? null : drawn.ignore,
  };
}

/** What makes two drafts differ for the file. @param {Draft} draft */
export const content = (draft) => JSON.stringify(toBody({ ...draft, revision: null }, ""));

/** Whether a text looks like a whole sentence. @param {string} text */
export const looksLikeSentence = (text) => /[.?!]["')\]]?\s*$/.test(text);

/** Steps that were taken, and steps that were taken back. */
export class History {
  constructor() {
    /** @type {Drawn[]} */
    this.past = [];
    /** @type {Drawn[]} */
    this.future = [];
  }

  /** Remember what was, before it changes. @param {Drawn} drawn */
  push(drawn) {
    this.past = [...this.past.slice(1 - STEPS), drawn];
    this.future = [];
  }

  /** @param {Drawn} now @returns {Drawn | undefined} what was before */
  undo(now) {
    const before = this.past.pop();
    if (before) this.future.push(now);
    return before;
  }

  /** @param {Drawn} now @returns {Drawn | undefined} */
  redo(now) {
    const after = this.future.pop();
    if (after) this.past.push(now);
    return after;
  }
}
