/** What pages tell their reader beside the work: passing words, failures, and the switch of colours. */

import { $, h, icon } from "./dom.js";
import { setting } from "./local.js";

/** To screen readers. @param {string} text */
export function say(text) {
  $("announce").textContent = "";
  setTimeout(() => ($("announce").textContent = text), 50); // the same text twice is also said twice
}

/** A passing message. @param {import("./errors.js").Problem} problem */
export function warn(problem) {
  const close = h("button.quiet.square", { type: "button", "aria-label": "Close", onclick: () => toast.remove() }, icon("close"));
  const toast = h("div.toast", { role: "alert" }, problemBox(problem, null), close);
  $("toasts").replaceChildren(...[...$("toasts").children].slice(-2), toast);
}

/** A passing word. @param {string} text */
export function tell(text) {
  const note = h("div.toast.short", { role: "status" }, h("span", {}, text));
  $("toasts").append(note);
  setTimeout(() => note.remove(), 3500);
}

/**
 * What went wrong and what to do.
 * @param {import("./errors.js").Problem} problem
 * @param {Node | null | false} remedy
 */
export function problemBox(problem, remedy) {
  const help = problem.help.startsWith("/docs/") && h("a", { href: problem.help, target: "_blank", rel: "noopener" }, "What this means");
  const number = problem.requestId && h("span", {}, `Request ${problem.requestId}`);
  return h(
    "div.problem",
    { "data-code": problem.code },
    icon("alert"),
    h("div", {}, h("strong", {}, problem.title), h("p", {}, problem.message), h("p.small.origin", {}, help, number), remedy),
  );
}

const THEMES = ["system", "light", "dark"];

/** The switch of colours: as the system, light, dark. */
export function themeButton() {
  const themed = () => $("theme").setAttribute("aria-label", `Colours: ${setting("theme") === "light" ? "light" : setting("theme") === "dark" ? "dark" : "as the system"}`);
  $("theme").addEventListener("click", () => {
    const now = THEMES.indexOf(setting("theme") ?? "system");
    setting("theme", THEMES[(now + 1) % THEMES.length]);
    dispatchEvent(new Event("lisaseg:theme"));
    themed();
    tell($("theme").getAttribute("aria-label") ?? "");
  });
  themed();
}
