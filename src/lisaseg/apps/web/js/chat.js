/** The conversation as it is read: questions, answers, what can be done with each. */

import { answerNodes, plainText } from "./answer.js";
import { action, calm, copyText, h, icon } from "./dom.js";
import { problemBox } from "./notices.js";
import { layersOf } from "./state.js";

/** @typedef {import("./types.js").Turn} Turn */
/** @typedef {import("./state.js").State} State */

/** Mode -> its name and what it asks for. @type {Record<import("./types.js").Mode, [string, string]>} */
export const MODES = {
  auto: ["Auto", "The model decides whether to draw a mask"],
  segment: ["Segment", "Draw a mask, or say that nothing fits"],
  explain: ["Segment + why", "Draw a mask and give the reason"],
  text: ["Answer", "Words only, no mask"],
  instances: ["Each one", "A mask for each object of the kind"],
  explain_instances: ["Each one + why", "A mask for each object, and the reason"],
  reason: ["Step by step", "Think aloud, then answer"],
};
/** Those that every model has; more are named in `modes` of /v1/limits. */
export const USUAL_MODES = ["auto", "segment", "explain", "text"];

const HINTS = ["What is alive here?", "What would one sit on?", "Who is working here? Explain.", "What can you see?"];

/** The list of turns. A turn is rebuilt only when it changes. */
export class Chat {
  /**
   * @param {HTMLElement} list
   * @param {import("./state.js").Store} store
   * @param {{retry: (change?: object) => void, snippet: (turn: Turn) => void, edit: (turn: Turn) => void, suggest: (text: string) => void,
   *   newChat: () => void, pick: () => void, key: () => void, say: (text: string) => void}} does
   */
  constructor(list, store, does) {
    this.list = list;
    this.store = store;
    this.does = does;
    /** @type {Map<string, {element: HTMLElement, turn: Turn, touched: object, last: boolean}>} */
    this.drawn = new Map();
    store.subscribe((state, before) => {
      if (state.turns !== before.turns || state.touched !== before.touched || state.picture?.blob !== before.picture?.blob) this.render(state);
    });
  }

  /** @param {State} state */
  render(state) {
    const atEnd = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 60;
    const grown = state.turns.length !== this.drawn.size;
    const { turns } = state;
    for (const [key, { element }] of this.drawn) {
      if (turns.some((turn) => turn.key === key)) continue;
      element.remove();
      this.drawn.delete(key);
    }
    turns.forEach((turn, at) => this.put(turn, at === turns.length - 1, state));
    this.hint(state);
    const behavior = calm.matches || !grown ? "instant" : "smooth";
    // in the next frame: only then does a list that was hidden have a height
    if (atEnd || grown) requestAnimationFrame(() => this.list.scrollTo({ top: this.list.scrollHeight, behavior }));
  }

  /** @param {Turn} turn @param {boolean} last @param {State} state */
  put(turn, last, state) {
    const drawn = this.drawn.get(turn.key);
    if (drawn?.turn === turn && drawn.touched === state.touched && drawn.last === last) return;
    if (drawn && turn.state === "streaming" && drawn.turn.state === "streaming") {
      drawn.element.querySelector(".words")?.replaceChildren(...answerNodes(turn, state), h("span.caret"));
      drawn.turn = turn;
      return;
    }
    const focused = drawn?.element.contains(document.activeElement) ? document.activeElement?.getAttribute("data-layer") : null;
    const element = this.build(turn, last, state);
    if (drawn) drawn.element.replaceWith(element);
    else this.list.append(element);
    if (focused) /** @type {HTMLElement | null} */ (element.querySelector(`.chip[data-layer="${focused}"]`))?.focus();
    this.drawn.set(turn.key, { element, turn, touched: state.touched, last });
  }

  /** @param {Turn} turn @param {boolean} last @param {State} state */
  build(turn, last, state) {
    const mode = turn.mode === "auto" ? null : h("span.tag", {}, MODES[turn.mode][0]);
    const ask = h("div.ask", {}, h("p", {}, turn.prompt), mode);
    const reply = h("div.reply", { "data-state": turn.state });
    if (turn.state === "waiting") reply.append(h("p.words.dots", { "aria-label": "Waiting" }, h("i"), h("i"), h("i")), h("p.notice.small", {}, turn.notice));
    else if (turn.state === "failed") reply.append(this.problem(turn, last));
    else reply.append(h("p.words", {}, ...answerNodes(turn, state), turn.state === "streaming" && h("span.caret")));
    if (turn.state === "stopped") reply.append(h("p.note", {}, icon("info"), h("span", {}, "Stopped. This question is not part of the conversation.")));
    if (turn.answer) reply.append(...this.remarks(turn, last, state), h("p.facts.small", {}, facts(turn)));
    if (turn.state !== "waiting" && turn.state !== "streaming") reply.append(this.tools(turn, last, state));
    return h("li.turn", {}, ask, reply);
  }

  /** What an answer without mask, a cut one or an odd picture needs said. @param {Turn} turn @param {boolean} last @param {State} state */
  remarks(turn, last, state) {
    const answer = /** @type {import("./types.js").Answer} */ (turn.answer);
    const found = [];
    const again = (word, change) => last && action("retry", word, () => this.does.retry(change));
    const note = (text, ...more) => found.push(h("p.note", {}, icon("info"), h("span", {}, text), ...more));
    if (answer.status === "no_target") note("No mask: nothing in the picture fits. Other words for it may help.");
    if (answer.status === "no_mask_requested" && turn.mode === "auto") note("Answered in words only.", again("Segment it", { mode: "segment" }));
    if (answer.status === "truncated") {
      const most = state.limits?.max_new_tokens ?? 512;
      const tokens = Math.min(most, 4 * Math.max(16, answer.usage.completion_tokens));
      note("Cut at the length limit.", answer.usage.completion_tokens < most && again("Ask for more", { tokens }));
    }
    const empty = layersOf(state).filter((layer) => state.turns[layer.turn] === turn && layer.segment.area === 0);
    for (const layer of empty) note(`Mask ${layer.number} is empty: the model found no pixels for it.`);
    for (const warning of answer.warnings) note(warning.message);
    return found;
  }

  /** @param {Turn} turn @param {boolean} last @param {State} state */
  tools(turn, last, state) {
    const row = h("div.turn-tools");
    if (turn.answer) {
      const copy = action("copy", "Copy", async () => this.does.say((await copyText(plainText(turn, this.store.state))) ? "Copied." : "The browser forbids copying."));
      row.append(copy);
    }
    if (last && turn.state !== "failed") row.append(action("retry", "Retry", () => this.does.retry()));
    if (turn.answer && state.picture) row.append(action("code", "API", () => this.does.snippet(turn), "This turn as curl, Python or JavaScript"));
    return row;
  }

  /** @param {Turn} turn @param {boolean} last */
  problem(turn, last) {
    const problem = /** @type {import("./errors.js").Problem} */ (turn.problem);
    const remedies = {
      resend: () => last && action("retry", "Try again", () => this.does.retry()),
      edit: () => action("undo", "Change the question", () => this.does.edit(turn)),
      "new-chat": () => action("chat", "New chat on this picture", () => this.does.newChat()),
      picture: () => action("image", "Another picture", () => this.does.pick()),
      key: () => action("info", "Enter a key", () => this.does.key()),
      none: () => null,
    };
    return problemBox(problem, remedies[problem.remedy]());
  }

  /** Ideas for a picture that nothing was asked about. @param {State} state */
  hint(state) {
    this.list.querySelector(".hints")?.remove();
    if (state.turns.length || !state.picture) return;
    const chips = HINTS.map((text) => h("button.suggestion", { type: "button", onclick: () => this.does.suggest(text) }, text));
    this.list.append(h("li.hints", {}, h("p", {}, "Ask for a thing by name, by what it is for, or by what only a look at the picture can tell."), h("div", {}, ...chips)));
  }
}

/** "1.8 s · 8 tokens · 1 mask" @param {Turn} turn */
function facts({ answer, recorded }) {
  const { timings_ms: timings, usage, segments, model } = /** @type {import("./types.js").Answer} */ (answer);
  const seconds = Object.values(timings).reduce((sum, ms) => sum + ms, 0) / 1000;
  const masks = `${segments.length || "no"} ${segments.length === 1 ? "mask" : "masks"}`;
  const made = recorded ? `Recorded with ${model}` : `${seconds.toFixed(1)} s`;
  return [made, `${usage.completion_tokens} tokens`, masks].join(" · ");
}
