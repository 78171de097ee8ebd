/** Drafts outlive the tab: what is not saved yet lies in this browser, one entry a sample. */

import { content } from "./draft.js";

/** @typedef {import("./draft.js").Draft} Draft */

/** See the head of the file. Where the browser forbids it nothing is kept, and `works` says so. */
export class Drafts {
  /** @param {string} project */
  constructor(project) {
    this.head = `lisaseg.annotate.${project}.`;
    this.works = true;
  }

  /** @param {string} picture @param {string} id */
  key = (picture, id) => `${this.head}${picture}.${id}`;

  /** @template T @param {() => T} work @returns {T | null} */
  within(work) {
    try {
      return work();
    } catch {
      this.works = false; // forbidden, or full
      return null;
    }
  }

  /** @param {string} picture @param {Draft} draft @param {Draft} saved as it is in the file; equal drafts are not kept */
  keep(picture, draft, saved) {
    if (content(draft) === content(saved)) return this.forget(picture, draft.id);
    this.within(() => localStorage.setItem(this.key(picture, draft.id), JSON.stringify(draft)));
  }

  /** @param {string} picture @param {string} id */
  forget(picture, id) {
    this.within(() => localStorage.removeItem(this.key(picture, id)));
  }

  /** All of a picture. @param {string} picture @returns {Draft[]} */
  of(picture) {
    const head = `${this.head}${picture}.`;
    return this.names()
      .filter((name) => name.startsWith(head))
      .map((name) => this.within(() => JSON.parse(localStorage.getItem(name) ?? "null")))
      .filter((draft) => draft?.words && draft.drawn);
  }

  /** Ids of the pictures with drafts. @returns {Set<string>} */
  pictures() {
    return new Set(this.names().map((name) => name.slice(this.head.length).split(".")[0]));
  }

  /** @returns {string[]} */
  names() {
    return this.within(() => Object.keys(localStorage).filter((name) => name.startsWith(this.head)).sort()) ?? [];
  }
}
