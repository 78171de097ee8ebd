/** Puts the parts of the annotation page together. */

import { Api } from "../api.js";
import { closeable } from "../dialogs.js";
import { $, h } from "../dom.js";
import { ApiError, problemOf } from "../errors.js";
import { say, tell, themeButton, warn } from "../notices.js";
import { Observed } from "../observed.js";
import { watchServer } from "../server.js";
import { Bench, initial } from "./bench.js";
import { Board } from "./board.js";
import { IGNORE, fromSample } from "./draft.js";
import { Panel } from "./panel.js";
import { Shelf } from "./shelf.js";
import { Tools } from "./tools.js";

const api = new Api();
const store = new Observed(initial());
const bench = new Bench(api, store);
const board = new Board({ view: $("view"), canvas: $("canvas") }, store, (zoom) => ($("zoom").textContent = `${Math.round(100 * zoom)} %`));
const tools = new Tools(board, bench, say);
new Panel(store, bench);
new Shelf(store, (id) => go(id));
const fail = (error) => warn(problemOf(error));

/** @param {string | null} id @param {string} [sample] */
async function go(id, sample) {
  if (!id) return tell("There is no further picture.");
  await bench.open(id, sample).catch(fail);
  say(`Picture ${store.state.picture?.name}`);
}

// --- saving ----------------------------------------------------------------------------------------------------------------------------------------

async function save() {
  try {
    await bench.save();
    if (!bench.dirty) say("Saved.");
  } catch (error) {
    if (error instanceof ApiError && error.code === "sample_changed") await settle(error.body?.now, (revision) => bench.save(revision), "Keep mine");
    else fail(error);
  }
}

async function discard() {
  const { draft } = store.state;
  if (draft?.revision && bench.dirty) {
    bench.revert();
    tell("Back to what is saved.");
    return;
  }
  if (!draft || ((draft.revision || bench.dirty) && !(await confirmed("discard-dialog")))) return;
  try {
    await bench.discard();
    say("Deleted.");
  } catch (error) {
    if (error instanceof ApiError && error.code === "sample_changed") await settle(error.body?.now, (revision) => bench.discard(revision), "Delete it");
    else fail(error);
  }
}

/** Somebody else changed the sample: show theirs, and let her decide. @param {any} now null: it is gone @param {(revision: string | null) => Promise<void>} mine @param {string} word */
async function settle(now, mine, word) {
  const { draft } = store.state;
  if (!draft) return;
  const masks = now?.masks?.length ?? 0;
  $("theirs").textContent = !now ? "It is not in the file any more." : now.problem ?? `“${now.text}”, ${now.masks ? `${masks} ${masks === 1 ? "mask" : "masks"}` : "nothing fits"}`;
  $("keep-mine").textContent = word;
  $("take-theirs").hidden = !now;
  const answer = await confirmed("changed-dialog");
  try {
    if (answer === "mine") await mine(now?.revision ?? null);
    else if (answer === "theirs") bench.take(fromSample(now), draft);
  } catch (error) {
    fail(error);
  }
}

/** @param {string} id of a dialog @returns {Promise<string>} the value of the button, "" for none */
function confirmed(id) {
  const dialog = $(id);
  return new Promise((resolve) => {
    dialog.returnValue = "";
    dialog.onclose = () => resolve(dialog.returnValue);
    dialog.showModal();
  });
}

// --- what is kept ----------------------------------------------------------------------------------------------------------------------------------

/** @type {number | undefined} */
let keeping;
let warned = false;
store.subscribe((state, before) => {
  if (state.draft && state.draft === before.draft) return;
  clearTimeout(keeping);
  keeping = setTimeout(() => {
    bench.keep();
    if (!bench.drafts.works && !warned) tell("This browser keeps no drafts (forbidden, or full): save before you leave.");
    warned ||= !bench.drafts.works;
  }, 200);
  if (state.draft && state.picture) history.replaceState(null, "", `#${state.picture.id}/${encodeURIComponent(state.draft.id)}`);
});
addEventListener("pagehide", () => bench.keep());
document.addEventListener("visibilitychange", () => document.hidden && bench.keep());

// --- what the state says about the page ------------------------------------------------------------------------------------------------------------

store.subscribe((state, before) => {
  for (const tool of ["brush", "eraser", "polygon", "move"]) $(tool).setAttribute("aria-pressed", String(state.tool === tool));
  $("size").value = String(state.size);
  $("size").disabled = state.tool === "polygon" || state.tool === "move";
  $("opacity").value = String(100 * state.look.opacity);
  $("compare").setAttribute("aria-pressed", String(state.compare));
  $("undo").disabled = !bench.history.past.length && !state.corners.length;
  $("redo").disabled = !bench.history.future.length;
  $("view").setAttribute("aria-busy", String(state.busy === "opening"));
  if (state.picture && state.picture !== before.picture) {
    document.title = `${state.picture.name} - lisaseg annotate`;
    $("size").max = String(Math.max(40, Math.round(Math.max(state.picture.width, state.picture.height) / 5)));
  }
  if (state.project !== before.project && state.project) {
    $("folder").textContent = state.project.folder;
    $("file").replaceChildren(h("bdi", { dir: "ltr" }, state.project.name));
    $("file").title = state.project.file;
    $("server").hidden = !state.project.model;
    $("help-file").textContent = state.project.file;
    if (state.project.elsewhere) tell(`${state.project.elsewhere} lines of the file belong to no picture here; they stay as they are.`);
  }
});

// --- buttons and keys ------------------------------------------------------------------------------------------------------------------------------

const choose = (tool) => store.set({ tool });
const resize = (factor) => store.set({ size: Math.min(Number($("size").max), Math.max(1, Math.round(store.state.size * factor + Math.sign(factor - 1)))) });
for (const tool of ["brush", "eraser", "polygon", "move"]) $(tool).addEventListener("click", () => choose(tool));
$("size").addEventListener("input", () => store.set({ size: Number($("size").value) }));
$("opacity").addEventListener("input", () => store.set({ look: { ...store.state.look, opacity: Number($("opacity").value) / 100 } }));
$("undo").addEventListener("click", () => tools.undo());
$("redo").addEventListener("click", () => bench.redo());
$("zoom-in").addEventListener("click", () => board.zoom(1.25));
$("zoom-out").addEventListener("click", () => board.zoom(0.8));
$("zoom-fit").addEventListener("click", () => board.fit());
$("compare").addEventListener("click", () => store.set({ compare: !store.state.compare }));
$("propose").addEventListener("click", () => propose());
$("save").addEventListener("click", save);
$("discard").addEventListener("click", discard);
$("previous").addEventListener("click", () => go(bench.neighbour(-1)));
$("next").addEventListener("click", () => go(bench.neighbour(1)));
$("help").addEventListener("click", () => $("help-dialog").showModal());
themeButton();
closeable();

async function propose() {
  try {
    const said = await bench.propose();
    if (said) say(said);
  } catch (error) {
    fail(error);
  }
}

/** Keys that are heard everywhere but in a text; with Ctrl also there. [shown, what it does] is the list in the help. */
const KEYS = [
  ["B, E, P, H", "brush, eraser, polygon, hand"],
  ["[ and ]", "smaller, larger brush"],
  ["1 to 9, N, I", "draw on that mask, on a new one, on the ignored area"],
  ["X", "nothing fits, or something does"],
  ["Ctrl + Z, Ctrl + Y", "undo, redo what was drawn"],
  ["Enter, Shift + Enter", "polygon: fill it, cut it out; Esc gives it up"],
  ["+ − 0, wheel, pinch", "zoom in, out, fit"],
  ["Space + drag", "move the picture"],
  ["C", "with and without masks"],
  ["Arrows, Space", "on the picture: move the tool, use it (Shift: farther)"],
  ["Ctrl + Enter", "propose a mask"],
  ["Ctrl + S", "save"],
  ["Page up, page down", "picture before, next picture"],
  ["Q, /, Esc", "new question; to the instruction; out of a text, to the picture"],
];
$("keys").replaceChildren(...KEYS.flatMap(([keys, text]) => [h("dt", {}, keys), h("dd", {}, text)]));

const PLAIN = {
  b: () => choose("brush"),
  e: () => choose("eraser"),
  p: () => choose("polygon"),
  h: () => choose("move"),
  "[": () => resize(0.8),
  "]": () => resize(1.25),
  n: () => bench.activate(Infinity),
  i: () => bench.activate(IGNORE),
  x: () => store.state.draft && bench.change({ nothing: !store.state.draft.drawn.nothing }),
  c: () => store.set({ compare: !store.state.compare }),
  q: () => $("new-question").click(),
  "/": () => $("text").focus(),
  "+": () => board.zoom(1.25),
  "=": () => board.zoom(1.25),
  "-": () => board.zoom(0.8),
  0: () => board.fit(),
  escape: () => tools.giveUp(),
};
const CTRL = { s: save, enter: () => !$("propose").hidden && !$("propose").disabled && propose() };
const DRAWING = { z: (shift) => (shift ? bench.redo() : tools.undo()), y: () => bench.redo() };

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.altKey || event.isComposing) return;
  const target = /** @type {Element} */ (event.target);
  const writing = target.matches("textarea, input[type=text]");
  const key = event.key.toLowerCase();
  let does;
  if (key === "escape" && writing) does = () => $("view").focus();
  else if (event.ctrlKey || event.metaKey) does = CTRL[key] ?? (writing ? undefined : DRAWING[key]);
  else if (writing) return;
  else if (key === "pageup" || key === "pagedown") {
    if (!target.matches("input[type=range]")) does = () => go(bench.neighbour(key === "pageup" ? -1 : 1)); // a slider has its own use for them
  } else does = /^[1-9]$/.test(key) ? () => bench.activate(Number(key) - 1) : PLAIN[key];
  if (!does) return;
  event.preventDefault();
  does(event.shiftKey);
});

// --- beginning -------------------------------------------------------------------------------------------------------------------------------------

const look = watchServer(store, api, async () => {});

async function begin() {
  try {
    await bench.load();
  } catch (error) {
    fail(error);
    return;
  }
  const [, id, sample] = /^#([0-9a-f]{16})(?:\/(.*))?$/.exec(location.hash) ?? [];
  const { pictures, project, drafted } = store.state;
  if (project?.model) look();
  const first = pictures.find((one) => one.id === id) ?? pictures.find((one) => drafted.has(one.id)) ?? pictures.find((one) => !one.samples) ?? pictures[0];
  await go(first.id, sample && decodeURIComponent(sample));
}

begin();
