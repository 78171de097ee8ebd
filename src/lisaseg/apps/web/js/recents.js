/** Tiles of the conversations that this browser keeps. */

import { h } from "./dom.js";
import { turnOf } from "./conversation.js";
import { thumbnail } from "./examples.js";
import { recent } from "./local.js";

const SHOWN = 4;

/**
 * @param {{section: HTMLElement, list: HTMLElement}} elements
 * @param {(session: string) => void} open
 */
export async function showRecents({ section, list }, open) {
  const records = (await recent()).filter((record) => record.turns.length).slice(0, SHOWN);
  section.hidden = records.length === 0;
  list.replaceChildren(
    ...records.map((record) => {
      const canvas = h("canvas", { width: 112, height: 84, "aria-hidden": "true" });
      thumbnail(canvas, record.blob, record.turns.map(turnOf)).catch(console.info);
      const last = record.turns[record.turns.length - 1];
      const about = `${record.name}, ${record.turns.length} ${record.turns.length === 1 ? "question" : "questions"}`;
      const text = h("span.recent-text", {}, h("span.clip", {}, last.prompt), h("span.small", {}, about));
      return h("li", {}, h("button.recent", { type: "button", onclick: () => open(record.session) }, canvas, text));
    }),
  );
}
