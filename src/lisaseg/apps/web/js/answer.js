/** The words of an answer, with its masks among them as buttons that light the mask on the picture. */

import { h } from "./dom.js";
import { colourOf, css, inkOn } from "./palette.js";
import { layerId, layersOf, percent } from "./state.js";

/** @typedef {import("./types.js").Turn} Turn */
/** @typedef {import("./types.js").Layer} Layer */

/**
 * @param {Turn} turn
 * @param {import("./state.js").State} state
 * @returns {(Node | string)[]}
 */
export function answerNodes(turn, state) {
  if (!turn.answer) return unfinished(turn.text);
  const letters = Array.from(turn.answer.text); // spans count code points
  const layers = new Map(layersOf(state).map((layer) => [layer.id, layer]));
  const nodes = [];
  let from = 0;
  for (const segment of [...turn.answer.segments].sort((a, b) => a.span[0] - b.span[0])) {
    const before = letters.slice(from, segment.span[0]).join("");
    const layer = layers.get(layerId(turn, segment));
    from = segment.span[1];
    if (!layer) {
      nodes.push(before, letters.slice(...segment.span).join(""));
      continue;
    }
    nodes.push(...phrase(before, layer), chip(layer));
  }
  nodes.push(letters.slice(from).join(""));
  return nodes;
}

/** The words that a mask belongs to, underlined in its colour, if they stand right before it. @param {string} before @param {Layer} layer */
function phrase(before, layer) {
  const words = layer.segment.phrase;
  const at = words ? before.trimEnd().length - words.length : -1;
  if (at < 0 || before.slice(at, at + words.length) !== words) return [before];
  const mark = h("span.phrase", { "data-layer": layer.id }, words);
  mark.style.setProperty("--mask", css(colourOf(layer.number)));
  return [before.slice(0, at), mark, before.slice(at + words.length)];
}

/** @param {Layer} layer */
function chip(layer) {
  const empty = layer.segment.area === 0;
  const label = layer.name || `mask ${layer.number}`;
  const about = empty ? "empty" : `${percent(layer.share)} of the picture`;
  const button = h(
    empty ? "button.chip.empty" : "button.chip",
    { type: "button", "data-layer": layer.id, "aria-label": `${label}, ${about}`, "aria-pressed": "false", title: about },
    number(layer.number),
    h("span", {}, label),
  );
  button.style.setProperty("--mask", css(colourOf(layer.number)));
  return button;
}

/** The disc with the number of a mask. @param {number} of */
export function number(of) {
  const disc = h("span.number", { "aria-hidden": "true" }, String(of));
  const colour = colourOf(of);
  disc.style.backgroundColor = css(colour);
  disc.style.color = inkOn(colour);
  return disc;
}

/** Text under way: masks are announced but not drawn yet. @param {string} text */
function unfinished(text) {
  return text.split(/(\[mask \d+\])/).map((part) => (/^\[mask \d+\]$/.test(part) ? h("span.chip.coming", {}, h("span.number", {}), part.slice(1, -1)) : part));
}

/** As it can be read without colours: "It is the cup [mask 1]." with the numbers of the page. @param {Turn} turn @param {import("./state.js").State} state */
export function plainText(turn, state) {
  return answerNodes(turn, state)
    .map((node) => (!(node instanceof Element) ? node : node.classList.contains("chip") ? `[${node.lastChild?.textContent}]` : node.textContent))
    .join("");
}
