/** Answers as files. The picture with its masks is made here, as it is seen; the rest is made by the server, from answers that carry the reader's names. */

import { h, icon, saveFile } from "./dom.js";
import { slug } from "./layers.js";
import { overlayPng } from "./paint.js";
import { layerId, shownLayers } from "./state.js";

/** @typedef {import("./state.js").State} State */

/** Kind -> what the menu says. @type {Record<string, [string, string]>} */
const KINDS = {
  overlay: ["Picture with masks", "PNG, as you see it"],
  masks: ["Masks", "PNG, 0 and 255, in a zip"],
  json: ["Answers", "JSON, masks as run lengths"],
  coco: ["COCO", "one annotation a mask"],
  zip: ["All of the above", "zip"],
  jsonl: ["Training data", "lisaseg JSONL and the picture"],
  reasonseg: ["ReasonSeg", "pairs of JPEG and JSON"],
  labelme: ["labelme, X-AnyLabeling", "to correct the masks there"],
  labelstudio: ["Label Studio", "tasks with brush labels"],
  cvat: ["CVAT", "for images 1.1"],
  yolo: ["YOLO", "outlines and data.yaml"],
};
/** Kinds that the server makes without the picture. */
const WITHOUT_PICTURE = new Set(["masks", "json", "coco"]);

/**
 * @param {{menu: any, button: HTMLElement}} elements
 * @param {import("./state.js").Store} store
 * @param {import("./conversation.js").Conversation} conversation
 * @param {(error: unknown) => void} fail
 */
export function downloads({ menu, button }, store, conversation, fail) {
  for (const [kind, [name, about]] of Object.entries(KINDS)) {
    const run = async () => {
      menu.hidePopover();
      try {
        await save(kind, store.state, conversation);
      } catch (error) {
        fail(error);
      }
    };
    menu.append(h("button.menu-item", { type: "button", "data-kind": kind, onclick: run }, icon("download"), h("span", {}, h("span", {}, name), h("span.small", {}, about))));
  }
  menu.addEventListener("toggle", (event) => {
    if (event.newState !== "open") return;
    const from = button.getBoundingClientRect();
    menu.style.left = `${Math.max(8, Math.min(from.right - menu.offsetWidth, innerWidth - menu.offsetWidth - 8))}px`;
    menu.style.top = `${Math.max(8, from.top - menu.offsetHeight - 6)}px`;
    menu.querySelector("button")?.focus();
  });
  store.subscribe((state) => {
    const answers = state.turns.some((turn) => turn.answer);
    for (const item of menu.children) item.disabled = item.dataset.kind !== "overlay" && !answers;
  });
}

/** @param {string} kind @param {State} state @param {import("./conversation.js").Conversation} conversation */
async function save(kind, state, conversation) {
  const picture = /** @type {import("./types.js").Picture} */ (state.picture);
  const stem = slug(picture.name.replace(/\.[^.]*$/, ""));
  if (kind === "overlay") {
    saveFile(await overlayPng(picture, shownLayers(state), state.look), `${stem}.overlay.png`);
    return;
  }
  const body = { answers: namedAnswers(state), to: kind, name: stem };
  const make = (image = {}) => conversation.api.call("POST", "/v1/export", { ...body, ...image }, { raw: true });
  const response = await (WITHOUT_PICTURE.has(kind) ? make() : conversation.withPicture((id) => make({ image_id: id })));
  const name = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? `${stem}.${kind}`;
  saveFile(await response.blob(), name);
}

/** The answers (or the last one, if only it is looked at) with the names that the reader gave to masks. @param {State} state */
export function namedAnswers(state) {
  const turns = state.turns.filter((turn) => turn.answer);
  return (state.look.onlyLast ? turns.slice(-1) : turns).map((turn) => {
    const answer = /** @type {import("./types.js").Answer} */ (turn.answer);
    const segments = answer.segments.map((segment) => ({ ...segment, phrase: state.touched[layerId(turn, segment)]?.name || segment.phrase }));
    return { ...answer, segments };
  });
}
