/** What the page of conversations knows. Parts subscribe. */

import { Observed } from "./observed.js";

/** @typedef {import("./types.js").Turn} Turn */
/** @typedef {import("./types.js").Layer} Layer */

/**
 * @typedef {object} State
 * @property {import("./types.js").Picture | null} picture
 * @property {string | null} session id on the server
 * @property {Turn[]} turns
 * @property {{share: number, notice?: string} | null} upload under way, 0 to 1; notice: why it waits
 * @property {import("./errors.js").Problem | null} pictureProblem why the picture could not be sent
 * @property {Record<string, {name?: string, hidden?: boolean}>} touched what the reader did to layers, by id
 * @property {{opacity: number, fill: boolean, outline: boolean, onlyLast: boolean}} look
 * @property {string | null} lit id of the layer that is pointed at
 * @property {string | null} pinned id of the layer that stays lit
 * @property {boolean} compare the masks are away for the moment
 * @property {import("./types.js").Mode} mode
 * @property {any} limits of /v1/limits, or null
 * @property {{state: string, model: string, queue: number}} server
 */

/** @returns {State} */
export const initial = () => ({
  picture: null,
  session: null,
  turns: [],
  upload: null,
  pictureProblem: null,
  touched: {},
  look: { opacity: 0.45, fill: true, outline: true, onlyLast: false },
  lit: null,
  pinned: null,
  compare: false,
  mode: "auto",
  limits: null,
  server: { state: "unknown", model: "", queue: 0 },
});

/** The state of the page of conversations. @extends {Observed<State>} */
export class Store extends Observed {
  constructor() {
    super(initial());
  }

  /** @param {string} key @param {Partial<Turn>} patch */
  setTurn(key, patch) {
    this.set({ turns: this.state.turns.map((turn) => (turn.key === key ? { ...turn, ...patch } : turn)) });
  }
}

/** @type {WeakMap<Turn[], {touched: object, layers: Layer[]}>} */
const known = new WeakMap();

/**
 * The masks of the conversation, in its order.
 * @param {State} state
 * @returns {Layer[]}
 */
export function layersOf({ turns, touched }) {
  const cached = known.get(turns);
  if (cached?.touched === touched) return cached.layers;
  /** @type {Layer[]} */
  const layers = [];
  turns.forEach((turn, at) => {
    for (const segment of turn.answer?.segments ?? turn.segments) {
      if (!segment.mask) continue;
      const id = layerId(turn, segment);
      const number = layers.length + 1;
      const { name = "", hidden = false } = touched[id] ?? {};
      const [height, width] = segment.mask.size;
      const label = name || segment.phrase || `mask ${number}`;
      layers.push({ id, number, turn: at, segment, name, label, hidden, share: segment.area / (width * height) });
    }
  });
  known.set(turns, { touched, layers });
  return layers;
}

/** @param {Turn} turn @param {import("./types.js").Segment} segment */
export const layerId = (turn, segment) => `${turn.key}.${segment.index}`;

/** The layers that are to be seen on the picture. @param {State} state */
export function shownLayers(state) {
  const layers = layersOf(state);
  const last = state.turns.length - 1;
  return layers.filter((layer) => (!layer.hidden || layer.id === (state.lit ?? state.pinned)) && (!state.look.onlyLast || layer.turn === last));
}

/** "21.3 %" @param {number} share */
export const percent = (share) => (share === 0 ? "empty" : share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);
