/** How the server is: looked at now and then, often while it is not ready, never while the page is hidden. */

import { $ } from "./dom.js";

const SLOW = 15_000;
const FAST = 1_500;

/**
 * @param {{state: any, set: (patch: any) => void, subscribe: (listener: (state: any, before: any) => void) => void}} store with `server` and `limits`
 * @param {import("./api.js").Api} api
 * @param {() => Promise<void>} onBack called when its limits are not known, and when its model is loaded, which may have modes of its own
 */
export function watchServer(store, api, onBack) {
  /** @type {number | undefined} */
  let timer;
  const look = async () => {
    clearTimeout(timer);
    const before = store.state.server;
    const server = await readiness(before.model);
    if (JSON.stringify(server) !== JSON.stringify(before)) store.set({ server });
    const loaded = server.state === "ready" && before.state !== "ready";
    if (loaded || (server.state !== "offline" && !store.state.limits)) await onBack();
    timer = setTimeout(() => !document.hidden && look(), server.state === "ready" && !server.queue ? SLOW : FAST);
  };
  document.addEventListener("visibilitychange", () => !document.hidden && look());
  addEventListener("online", look);
  store.subscribe((state, before) => state.server !== before.server && show(state.server));
  return look;
}

/** @param {string} model known before */
async function readiness(model) {
  try {
    const response = await fetch("/readyz", { cache: "no-store", signal: AbortSignal.timeout(8000) });
    const body = await response.json();
    return { state: body.status, model: body.model, queue: body.queue_depth };
  } catch {
    return { state: "offline", model, queue: 0 };
  }
}

const WORDS = { loading: "loading the model", restarting: "restarting", draining: "shutting down", failed: "out of order", offline: "not reachable", unknown: "connecting" };

/** @param {{state: string, model: string, queue: number}} server */
function show({ state, model, queue }) {
  $("server").dataset.state = state;
  const word = WORDS[state] ?? (queue ? `${queue} waiting` : "ready");
  $("server-text").textContent = model ? `${model} · ${word}` : word;
  $("server").title = $("server-text").textContent;
}
