/** Where questions are written. */

import { $, h } from "./dom.js";
import { MODES, USUAL_MODES } from "./chat.js";
import { setting } from "./local.js";

/** See the head of the file. */
export class Composer {
  /**
   * @param {import("./state.js").Store} store
   * @param {{ask: (prompt: string, mode: import("./types.js").Mode) => void, stop: () => void, busy: () => boolean}} does
   */
  constructor(store, does) {
    this.store = store;
    this.does = does;
    this.field = $("prompt");
    this.sendButton = $("send");
    this.stopButton = $("stop");
    this.modes(USUAL_MODES);
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.field.addEventListener("input", () => this.refresh());
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send();
      }
    });
    this.stopButton.addEventListener("click", () => {
      this.does.stop();
      this.field.focus();
    });
    store.subscribe((state, before) => {
      const offered = state.limits?.modes;
      if (offered && String(offered) !== String(before.limits?.modes ?? USUAL_MODES)) this.modes(offered);
      this.refresh();
    });
    this.refresh();
  }

  /** Show the modes of the model; the one that was chosen last is kept, if the model has it. @param {string[]} offered */
  modes(offered) {
    const saved = /** @type {string} */ (setting("mode"));
    const chosen = offered.includes(saved) ? saved : "auto";
    this.store.set({ mode: /** @type {any} */ (chosen) });
    const labels = offered
      .filter((mode) => mode in MODES)
      .map((mode) => {
        const [name, about] = MODES[/** @type {import("./types.js").Mode} */ (mode)];
        const radio = h("input", { type: "radio", name: "mode", value: mode, checked: mode === chosen });
        radio.addEventListener("change", () => {
          this.store.set({ mode: /** @type {any} */ (mode) });
          setting("mode", mode);
        });
        return h("label", { title: about }, radio, h("span", {}, name));
      });
    $("modes").replaceChildren($("modes").children[0], ...labels);
  }

  send() {
    const prompt = this.field.value.trim();
    if (!prompt || this.does.busy() || this.tooLong()) return;
    this.field.value = "";
    this.refresh();
    this.does.ask(prompt, this.store.state.mode);
  }

  /** Put a text into the field, ready to be changed. @param {string} text */
  write(text) {
    this.field.value = text;
    this.refresh();
    this.field.focus();
    this.field.setSelectionRange(text.length, text.length);
  }

  tooLong() {
    const most = this.store.state.limits?.max_prompt_chars ?? Infinity;
    return Array.from(this.field.value).length > most;
  }

  refresh() {
    const busy = this.does.busy();
    const { turns, limits } = this.store.state;
    const focused = document.activeElement;
    this.stopButton.hidden = !busy;
    this.sendButton.hidden = busy;
    if (busy && focused === this.sendButton) this.stopButton.focus();
    if (!busy && focused === this.stopButton) this.sendButton.focus();
    this.sendButton.disabled = !this.field.value.trim() || this.tooLong();
    $("undo").disabled = busy || !turns.length;
    $("new-chat").disabled = busy || !turns.length;
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(140, this.field.scrollHeight)}px`;
    const letters = Array.from(this.field.value).length;
    const most = limits?.max_prompt_chars ?? Infinity;
    const near = letters > 0.9 * most;
    const text = near ? `${letters} of ${most} characters` : "";
    if ($("counter").textContent !== text) $("counter").textContent = text;
    $("counter").classList.toggle("over", letters > most);
  }
}
