/** Puts the parts of the page together. */

import { Api } from "./api.js";
import { Stage } from "./canvas.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { askForKey, closeable, confirmForget, showHelp, showSnippet } from "./dialogs.js";
import { $, h, icon } from "./dom.js";
import { downloads } from "./download.js";
import { problemOf } from "./errors.js";
import { showExamples } from "./examples.js";
import { gestures } from "./gestures.js";
import { kinds, listen, megabytes } from "./intake.js";
import { Layers } from "./layers.js";
import * as local from "./local.js";
import { problemBox, say, tell, themeButton, warn } from "./notices.js";
import { showRecents } from "./recents.js";
import { watchServer } from "./server.js";
import { Store } from "./state.js";

const store = new Store();
const api = new Api(local.key());

/** @param {import("./errors.js").Problem} problem */
function complain(problem) {
  warn(problem);
  if (problem.code === "unauthorized") needKey();
}

const fail = (error) => complain(problemOf(error));
const conversation = new Conversation(api, store, { say, complain });

function needKey() {
  askForKey((key) => {
    api.key = local.setting("key", key, "sessionStorage") ?? key;
    look();
    if (store.state.pictureProblem) conversation.startAgain().catch(() => {});
  });
}

/** @param {Blob} blob @param {string} name @param {import("./types.js").Turn[]} [turns] */
async function open(blob, name, turns) {
  try {
    $("welcome-problem").replaceChildren();
    await conversation.open(blob, name, turns);
    if (!matchMedia("(pointer: coarse)").matches) $("prompt").focus();
    say(`Picture ${name} is open.`);
  } catch (error) {
    if (store.state.picture) fail(error);
    else $("welcome-problem").replaceChildren(problemBox(problemOf(error), null));
  }
}

function pick() {
  $("file").click();
}

async function retry(change) {
  await conversation.retry(change).catch(fail);
}

const composer = new Composer(store, {
  ask: (prompt, mode) => conversation.ask(prompt, mode).catch(fail),
  stop: () => conversation.stop(),
  busy: () => conversation.asking !== null,
});

async function undo() {
  try {
    const prompt = await conversation.undo();
    if (prompt && !composer.field.value) composer.write(prompt);
  } catch (error) {
    fail(error);
  }
}

const stage = new Stage({ view: $("view"), canvas: $("canvas"), tip: $("tip") }, store, (zoom) => ($("zoom").textContent = `${Math.round(100 * zoom)} %`));
gestures(stage, store);
new Layers({ list: $("layers"), empty: $("layers-empty"), count: $("layers-count") }, store);
new Chat($("turns"), store, {
  retry,
  snippet: (turn) => showSnippet(turn, store.state),
  edit: async (turn) => {
    await undo();
    composer.write(turn.prompt);
  },
  suggest: (text) => composer.write(text),
  newChat: () => conversation.newChat().catch(() => {}),
  pick,
  key: needKey,
  say: (text) => {
    tell(text);
    say(text);
  },
});
downloads({ menu: $("downloads"), button: $("download") }, store, conversation, fail);
closeable();

// --- what the state says about the page ------------------------------------------------------------------------------------------------------------

const KEEP_AFTER = 150; // ms; a name is typed letter by letter
/** @type {number | undefined} */
let keeping;
/** What is still to be written down. @type {import("./state.js").State | null} */
let unkept = null;

store.subscribe((state, before) => {
  const open = Boolean(state.picture);
  $("welcome").hidden = open;
  $("work").hidden = !open;
  $("new-picture").hidden = !open;
  document.title = state.picture ? `${state.picture.name} - lisaseg` : "lisaseg";
  $("opacity").value = String(100 * state.look.opacity);
  $("outline").checked = state.look.outline;
  $("only-last").checked = state.look.onlyLast;
  $("compare").setAttribute("aria-pressed", String(state.compare));
  if (state.upload !== before.upload) showUpload(state.upload);
  if (state.picture !== before.picture || state.pictureProblem !== before.pictureProblem) showNotes(state);
  if (state.limits !== before.limits && state.limits) showLimits(state.limits);
  if (!open && before.picture) home();
  const settled = state.turns.every((turn) => turn.state !== "waiting" && turn.state !== "streaming");
  const worth = state.turns !== before.turns || state.touched !== before.touched || state.session !== before.session;
  if (unkept && unkept.session !== state.session) keep();
  if (settled && worth && state.session && state.picture) {
    unkept = state;
    clearTimeout(keeping);
    keeping = setTimeout(keep, KEEP_AFTER);
  }
});

addEventListener("pagehide", keep);


/** Write the conversation down in this browser. */
async function keep() {
  const { session, picture, turns, touched } = unkept ?? {};
  unkept = null;
  if (!session || !picture || !turns || !touched) return;
  const { name, blob, width, height, id } = picture;
  const kept = turns.filter((turn) => turn.answer);
  const records = kept.map(({ key, prompt, mode, answer, recorded }) => ({ key, prompt, mode, answer, recorded, raw_text: answer?.raw_text ?? "" }));
  await local.keep({ session, name, blob, width, height, imageId: id, turns: records, touched, saved: Date.now() });
}

/** @param {import("./state.js").State["upload"]} upload */
function showUpload(upload) {
  $("upload").hidden = !upload;
  if (!upload) return;
  $("upload-bar").value = upload.share;
  $("upload-text").textContent = upload.notice ? upload.notice : upload.share < 1 ? `Uploading, ${Math.round(100 * upload.share)} %` : "Checking the picture";
}

/** @param {import("./state.js").State} state */
function showNotes({ picture, pictureProblem }) {
  const notes = (picture?.notes ?? []).map((note) => h("p.note", {}, icon("info"), h("span", {}, note)));
  if (picture?.id && !picture.bitmap) notes.push(h("p.note", {}, icon("info"), h("span", {}, "This browser cannot show this kind of picture; the server reads it. Masks are drawn on grey.")));
  if (pictureProblem) {
    const { remedy } = pictureProblem;
    const word = remedy === "picture" ? "Choose another picture" : remedy === "key" ? "Enter a key" : "Try again";
    const onclick = remedy === "picture" ? pick : remedy === "key" ? needKey : () => conversation.startAgain().catch(() => {});
    notes.push(problemBox(pictureProblem, h("button.quiet.boxed", { type: "button", onclick }, word)));
    if (pictureProblem.code === "unauthorized") needKey();
  }
  $("notes").replaceChildren(...notes);
}

/** @param {any} limits */
function showLimits(limits) {
  $("drop-limits").textContent = `${kinds(limits)}, up to ${megabytes(limits.max_body_bytes).replace(".0", "")} MB and ${limits.max_image_pixels / 1e6} megapixels`;
}

// --- what buttons and keys do ----------------------------------------------------------------------------------------------------------------------

listen($("file"), (file, several) => {
  if (several) tell("One picture at a time: the first one was taken.");
  open(file, file.name || "pasted.png");
});
$("choose").addEventListener("click", pick);
$("drop").addEventListener("click", (event) => event.target.closest("button") ?? pick());
$("new-picture").addEventListener("click", pick);
$("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || !store.state.picture) return;
  event.preventDefault();
  conversation.leave();
  local.nameInAddress(null, true);
});
$("undo").addEventListener("click", undo);
$("new-chat").addEventListener("click", () => conversation.newChat().catch(() => {}));
$("forget").addEventListener("click", async () => (await confirmForget()) && conversation.forget().then(() => tell("Deleted."), fail));
$("help").addEventListener("click", () => showHelp(store.state));
$("zoom-in").addEventListener("click", () => stage.zoom(1.25));
$("zoom-out").addEventListener("click", () => stage.zoom(0.8));
$("zoom-fit").addEventListener("click", () => stage.fit());
const restyle = (patch) => store.set({ look: { ...store.state.look, ...patch } });
$("opacity").addEventListener("input", () => restyle({ opacity: Number($("opacity").value) / 100 }));
$("outline").addEventListener("change", () => restyle({ outline: $("outline").checked }));
$("only-last").addEventListener("change", () => restyle({ onlyLast: $("only-last").checked }));
function fold() {
  const folded = $("layers-panel").toggleAttribute("data-folded");
  $("layers-fold").setAttribute("aria-expanded", String(!folded));
}
$("layers-fold").addEventListener("click", fold);
if (matchMedia("(max-width: 820px)").matches) fold(); // there, the conversation needs the room
const compare = (on) => () => store.state.compare !== on && store.set({ compare: on });
for (const name of ["pointerdown"]) $("compare").addEventListener(name, compare(true));
for (const name of ["pointerup", "pointerleave", "pointercancel", "keyup", "blur"]) $("compare").addEventListener(name, compare(false));
$("compare").addEventListener("keydown", (event) => (event.key === " " || event.key === "Enter") && compare(true)());

themeButton();

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || $("work").hidden) return;
  const writing = event.target instanceof Element && event.target.matches("input, textarea");
  if (event.key === "Escape") {
    if (conversation.asking) conversation.stop();
    else store.set({ pinned: null, lit: null });
  } else if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    $("prompt").focus();
  }
});

// --- beginning -------------------------------------------------------------------------------------------------------------------------------------

async function home() {
  await showRecents({ section: $("recent"), list: $("recents") }, (id) => arrive(id, true));
}

/** Go to the conversation that the address (or a tile) names. @param {string} id @param {boolean} [asNew] */
async function arrive(id, asNew = false) {
  if (id && id !== store.state.session) {
    const found = await conversation.restore(id).catch((error) => (fail(error), false));
    if (found) {
      if (asNew) local.nameInAddress(id, true);
      return;
    }
    tell("This conversation is kept neither here nor on the server any more.");
    local.nameInAddress(null);
  }
  if (!id && store.state.picture) conversation.leave();
}

addEventListener("popstate", () => arrive(local.sessionInAddress()));

const look = watchServer(store, api, async () => {
  try {
    store.set({ limits: await api.call("GET", "/v1/limits") });
  } catch (error) {
    if (problemOf(error).code === "unauthorized") needKey();
  }
});

look();
showExamples($("examples"), open).catch(console.info);
home();
arrive(local.sessionInAddress());
