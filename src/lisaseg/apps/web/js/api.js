/** The HTTP service as functions. Every failure is an `ApiError` with a code of `errors.js`. */

import { ApiError } from "./errors.js";
import { serverEvents } from "./sse.js";

const OFFLINE = "No answer came from the server. Is it running, and is this machine connected to it?";

/** One server, and the key for it. */
export class Api {
  /** @param {string} key "" where none is needed */
  constructor(key = "") {
    this.key = key;
  }

  /** @param {Record<string, string>} [more] */
  headers(more = {}) {
    return this.key ? { ...more, Authorization: `Bearer ${this.key}` } : more;
  }

  /**
   * Send and get JSON (or, with `raw`, the response itself).
   * @param {string} method
   * @param {string} path
   * @param {object | null} [body]
   * @param {{signal?: AbortSignal, once?: string, raw?: boolean}} [options] once: a name that makes a repeat harmless
   */
  async call(method, path, body = null, { signal, once, raw = false } = {}) {
    const headers = this.headers(body ? { "Content-Type": "application/json" } : {});
    if (once) headers["Idempotency-Key"] = once;
    let response;
    try {
      response = await fetch(path, { method, headers, body: body ? JSON.stringify(body) : null, signal, cache: "no-store" });
    } catch (error) {
      throw signal?.aborted ? error : new ApiError("offline", OFFLINE);
    }
    if (!response.ok) throw await failure(response);
    if (raw) return response;
    return response.status === 204 ? null : response.json();
  }

  /**
   * Ask, and get the events of the answer; ends after `done`.
   * @param {string} path
   * @param {object} body
   * @param {{signal: AbortSignal, once: string}} options
   * @returns {AsyncGenerator<import("./sse.js").ServerEvent>}
   */
  async *stream(path, body, { signal, once }) {
    const response = await this.call("POST", path, { ...body, stream: true }, { signal, once, raw: true });
    let done = false;
    try {
      for await (const event of serverEvents(response.body)) {
        if (event.event === "error") throw fromBody(event.data, 0, 0);
        done ||= event.event === "done";
        yield event;
      }
    } catch (error) {
      if (error instanceof ApiError || signal.aborted) throw error;
    }
    if (!done) throw new ApiError("interrupted", "The answer broke off. Ask again; nothing of the conversation is lost.");
  }

  /**
   * Upload a picture. (XMLHttpRequest, because fetch tells nothing of its progress.)
   * @param {Blob} blob
   * @param {string} name
   * @param {(share: number) => void} onProgress 0 to 1
   * @param {AbortSignal} signal
   * @returns {Promise<any>} the picture of docs/api.md
   */
  upload(blob, name, onProgress, signal) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("POST", "/v1/images");
      for (const [header, value] of Object.entries(this.headers())) request.setRequestHeader(header, value);
      request.responseType = "json";
      request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
      request.onload = () => {
        if (request.status === 201 && request.response) resolve(request.response);
        else reject(fromBody(request.response, request.status, Number(request.getResponseHeader("Retry-After"))));
      };
      request.onerror = () => reject(new ApiError("offline", OFFLINE));
      request.onabort = () => reject(new DOMException("stopped", "AbortError"));
      signal.addEventListener("abort", () => request.abort());
      const form = new FormData();
      form.append("file", blob, name.slice(-100));
      request.send(form);
    });
  }
}

/** @param {Response} response */
async function failure(response) {
  const body = await response.json().catch(() => null);
  return fromBody(body, response.status, Number(response.headers.get("Retry-After")));
}

/** @param {any} body @param {number} status @param {number} retryAfter */
function fromBody(body, status, retryAfter) {
  const error = body?.error;
  if (!error?.code) {
    const message = `The answer of the server (${status}) was not understood. If a proxy stands in between, look into its log.`;
    return new ApiError(status === 413 ? "body_too_large" : status === 503 || status === 502 ? "offline" : "internal", message, { status });
  }
  return new ApiError(error.code, error.message, { status, requestId: error.request_id ?? "", retryAfter: retryAfter || 0, help: error.help_url ?? "", body });
}

/** A random name. (crypto.randomUUID is missing on pages without TLS.) */
export function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
