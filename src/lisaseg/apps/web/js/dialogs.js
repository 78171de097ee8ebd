/** Windows over the page: the turn as a program, help, the key, the question before deleting. */

import { $, copyText, h } from "./dom.js";
import { kinds, megabytes } from "./intake.js";
import { SNIPPETS } from "./snippets.js";

/** Close buttons, and a click beside a window, close it. */
export function closeable() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      const target = /** @type {Element} */ (event.target);
      if (target === dialog || target.closest("[data-close]")) dialog.close();
    });
  }
}

/**
 * This turn as curl, Python and JavaScript.
 * @param {import("./types.js").Turn} turn
 * @param {import("./state.js").State} state
 */
export function showSnippet(turn, state) {
  const before = state.turns.slice(0, state.turns.indexOf(turn)).filter((one) => one.answer);
  const history = before.map(({ prompt, mode, answer }) => ({ prompt, mode, raw_text: /** @type {any} */ (answer).raw_text }));
  const key = Boolean(state.limits?.key_required);
  const call = { server: location.origin, file: state.picture?.name ?? "picture.jpg", prompt: turn.prompt, mode: turn.mode, history, key };
  const select = (language) => {
    for (const tab of $("api-tabs").children) {
      const chosen = tab.textContent === language;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      if (chosen) $("api-panel").setAttribute("aria-labelledby", tab.id);
    }
    $("api-code").textContent = SNIPPETS[language](call);
    $("api-copy").textContent = "Copy";
  };
  const names = Object.keys(SNIPPETS);
  const tabs = names.map((name) => h("button.tab", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "api-panel", onclick: () => select(name) }, name));
  $("api-tabs").replaceChildren(...tabs);
  $("api-tabs").onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    select(next.textContent);
    next.focus();
  };
  $("api-note").textContent = key ? "Put your key into the environment as LISASEG_KEY." : "Run it where the picture lies.";
  $("api-copy").onclick = async () => {
    $("api-copy").textContent = (await copyText($("api-code").textContent)) ? "Copied" : "Select the text and copy it";
  };
  select(names[0]);
  $("api-dialog").showModal();
}

const KEYS = [
  ["Enter / Shift + Enter", "send / new line"],
  ["Esc", "stop the answer; let go of a mask"],
  ["/", "to the question"],
  ["Tab", "through masks in the answers; each lights on the picture"],
  ["Arrows, + −, 0", "on the picture: move, zoom, fit"],
  ["1 to 9", "on the picture: show or hide a mask"],
  ["O, C", "on the picture: outlines; hold to see it without masks"],
];

/** @param {import("./state.js").State} state */
export function showHelp({ limits, server }) {
  const list = (rows) => h("dl", {}, ...rows.flatMap(([term, text]) => [h("dt", {}, term), h("dd", {}, text)]));
  const facts = limits
    ? [
        ["Model", server.model || "not known"],
        ["Pictures", `${kinds(limits)}, up to ${megabytes(limits.max_body_bytes)} MB, ${limits.max_image_pixels / 1e6} megapixels, ${limits.max_image_side} pixels on a side`],
        ["Questions", `up to ${limits.max_prompt_chars} characters, ${limits.max_turns} in a conversation`],
        ["Kept", `by the server for ${Math.round(limits.session_idle_seconds / 60)} minutes after the last use; by this browser: the last six conversations, until you delete them`],
      ]
    : [["Limits", "not known while the server cannot be reached"]];
  const modes = [
    ["Auto", "the model decides whether to draw a mask"],
    ["Segment", "a mask, or the statement that nothing fits"],
    ["Segment + why", "a mask and the reason"],
    ["Answer", "words only"],
  ];
  $("help-body").replaceChildren(
    h("h3", {}, "How to answer"), list(modes),
    h("h3", {}, "Keys"), list(KEYS),
    h("h3", {}, "This server"), list(facts),
    h("p.small", {}, h("a", { href: "/docs" }, "API"), " · ", h("a", { href: "/docs/errors" }, "Error codes"), " · ", h("a", { href: "/v1/limits" }, "All limits")),
  );
  $("help-dialog").showModal();
}

/** Ask for a key. @param {(key: string) => void} take */
export function askForKey(take) {
  if ($("key-dialog").open) return;
  $("key-form").onsubmit = () => take($("key-input").value.trim());
  $("key-dialog").showModal();
}

/** @returns {Promise<boolean>} */
export function confirmForget() {
  return new Promise((resolve) => {
    const dialog = $("forget-dialog");
    dialog.returnValue = "no";
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
    dialog.showModal();
  });
}
