/** Small helpers to build the page. Text is always set as text: what a model or a person wrote never becomes markup. */

/**
 * An element.
 * @param {string} tag "button.quiet.square"
 * @param {Record<string, any>} [properties] of the element; `on...` are listeners, `aria-...`, `data-...` and `role` attributes
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {any}
 */
export function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  element.classList.add(...classes);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key.includes("-") || key === "role") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An icon of icons.svg, which the server puts into every page. @param {string} name */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.classList.add("icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** The element with this id. @param {string} id @returns {any} */
export const $ = (id) => document.getElementById(id);

/** A button with an icon and a word. @param {string} name @param {string} word @param {() => void} onclick @param {string} [title] */
export const action = (name, word, onclick, title) => h("button.quiet", { type: "button", onclick, title }, icon(name), h("span", {}, word));

export const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Save a file on the reader's disk. @param {Blob} blob @param {string} name */
export function saveFile(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Copy text; also on pages without TLS, where the clipboard API is missing. @param {string} text @returns {Promise<boolean>} */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const host = document.querySelector("dialog[open]") ?? document.body;
    const area = h("textarea.hidden", { value: text, "aria-hidden": "true" });
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    host.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return done;
  }
}
