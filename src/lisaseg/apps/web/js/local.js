/**
 * What the browser keeps: the last few conversations with their pictures (IndexedDB), so that a reload, a restart of the server or a conversation that
 * the server has forgotten loses nothing. Where the browser forbids that, nothing is kept and nothing fails.
 */

const KEPT = 6;

/** @typedef {{session: string, name: string, blob: Blob, width: number, height: number, imageId: string | null, turns: import("./types.js").ServerTurn[],
 *   touched: object, saved: number}} Kept */

/** @returns {Promise<IDBDatabase>} */
function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("lisaseg", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "session" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/**
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} work
 * @returns {Promise<T | undefined>} undefined if the browser keeps nothing
 */
async function within(mode, work) {
  try {
    const base = await open();
    try {
      return await new Promise((resolve, reject) => {
        const request = work(base.transaction("conversations", mode).objectStore("conversations"));
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
      });
    } finally {
      base.close();
    }
  } catch (error) {
    console.info("Nothing is kept in this browser:", error);
    return undefined;
  }
}

/** @param {Kept} record */
export async function keep(record) {
  await within("readwrite", (store) => store.put(record));
  for (const old of (await recent()).slice(KEPT)) await forget(old.session);
}

/** @param {string} session @returns {Promise<Kept | undefined>} */
export const recall = (session) => within("readonly", (store) => store.get(session));

/** @param {string} session */
export const forget = (session) => within("readwrite", (store) => store.delete(session));

/** The conversations, newest first. @returns {Promise<Kept[]>} */
export async function recent() {
  const all = (await within("readonly", (store) => store.getAll())) ?? [];
  return all.sort((a, b) => b.saved - a.saved);
}

/** The session that the address names, or "". */
export const sessionInAddress = () => /[#&]s=(ses_[A-Za-z0-9_-]{1,70})/.exec(location.hash)?.[1] ?? "";

/** @param {string | null} session @param {boolean} [asNew] as a new entry of the history */
export function nameInAddress(session, asNew = false) {
  const address = session ? `#s=${session}` : location.pathname;
  if (asNew) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
}

/** A key that came with the address (`#key=...`) or that was given in this tab; it leaves the address at once. */
export function key() {
  const given = /[#&]key=([^&]+)/.exec(location.hash)?.[1];
  if (given) {
    setting("key", decodeURIComponent(given), "sessionStorage");
    history.replaceState(null, "", location.pathname + location.hash.replace(/([#&])key=[^&]*&?/, "$1").replace(/[#&]$/, ""));
  }
  return setting("key", undefined, "sessionStorage") ?? "";
}

/**
 * Read a small setting, or write it if `value` is given.
 * @param {string} name
 * @param {string} [value]
 * @param {"localStorage" | "sessionStorage"} [where]
 * @returns {string | null}
 */
export function setting(name, value, where = "localStorage") {
  try {
    if (value !== undefined) window[where].setItem(`lisaseg.${name}`, value);
    return window[where].getItem(`lisaseg.${name}`);
  } catch {
    return value ?? null; // forbidden by the browser
  }
}
