/**
 * What went wrong, in words for the person at the page, and what they can do about it. The codes are those of docs/api.md; a test holds that each has its
 * entry here. The server's own message tells the particulars and is shown under the title.
 */

/**
 * @typedef {"resend" | "edit" | "new-chat" | "picture" | "key" | "none"} Remedy
 *   resend: the same again may work; edit: change the question; new-chat: begin again on this picture; picture: take another picture; key: give a key
 * @typedef {{code: string, title: string, message: string, remedy: Remedy, requestId: string, help: string}} Problem
 */

/** code -> [title, remedy] @type {Record<string, [string, Remedy]>} */
export const CATALOGUE = {
  invalid_json: ["The server could not read the request.", "resend"],
  invalid_request: ["The server did not accept the request.", "edit"],
  invalid_base64: ["The picture arrived damaged.", "picture"],
  missing_image: ["The picture did not arrive.", "picture"],
  invalid_multipart: ["The upload arrived damaged.", "picture"],
  unauthorized: ["This server asks for a key.", "key"],
  host_not_allowed: ["The server does not know itself by this address.", "none"],
  origin_not_allowed: ["The server refuses requests from this page.", "none"],
  not_found: ["The server does not have this any more.", "resend"],
  model_not_found: ["The server runs another model now.", "resend"],
  method_not_allowed: ["The server does not do this.", "none"],
  request_timeout: ["The upload took too long.", "resend"],
  session_busy: ["The last question is still being answered.", "resend"],
  nothing_to_undo: ["There is nothing to take back.", "none"],
  sample_changed: ["Somebody else changed this sample.", "none"],
  session_expired: ["The server has forgotten this conversation.", "resend"],
  image_expired: ["The server has forgotten the picture.", "resend"],
  body_too_large: ["The file is too large.", "picture"],
  unsupported_media_type: ["The server does not take this kind of file.", "picture"],
  unsupported_format: ["This is not a kind of picture that the server knows.", "picture"],
  corrupt_image: ["The picture is damaged.", "picture"],
  truncated_image: ["The end of the picture is missing.", "picture"],
  image_too_large: ["The picture has too many pixels.", "picture"],
  extreme_aspect_ratio: ["The picture is too long and thin.", "picture"],
  prompt_empty: ["The question is empty.", "edit"],
  prompt_too_long: ["The question, or the conversation before it, is too long.", "edit"],
  too_many_turns: ["The conversation has reached its length.", "new-chat"],
  sample_refused: ["This cannot be saved yet.", "edit"],
  url_input_disabled: ["This server does not fetch pictures from the web.", "picture"],
  url_not_allowed: ["The server may not fetch from that address.", "picture"],
  url_fetch_failed: ["No picture came from that address.", "picture"],
  export_failed: ["The file could not be made.", "resend"],
  rate_limited: ["Too many questions in a short time.", "resend"],
  overloaded: ["The server has more questions than it can take.", "resend"],
  model_loading: ["The model is still being loaded.", "resend"],
  draining: ["The server is shutting down.", "resend"],
  engine_restarted: ["The model had to be restarted while it answered.", "resend"],
  out_of_memory: ["The server had too little memory for this.", "resend"],
  storage_full: ["The server has no room for more pictures.", "resend"],
  deadline_exceeded: ["There was no answer in time.", "resend"],
  internal: ["Something went wrong in the server.", "resend"],
  // ours: nothing came back at all
  offline: ["The server cannot be reached.", "resend"],
  interrupted: ["The connection was lost in the middle of the answer.", "resend"],
};

/** Codes after which the page itself asks again, a few times, as the server said when. */
export const PASSING = new Set(["overloaded", "model_loading", "draining", "engine_restarted", "rate_limited", "session_busy", "offline", "interrupted"]);

/** Codes that say that the server has lost the conversation, which the page can give back. */
export const FORGOTTEN = new Set(["session_expired", "image_expired", "not_found"]);

/** A failed request. */
export class ApiError extends Error {
  /**
   * @param {string} code
   * @param {string} message for people
   * @param {{status?: number, requestId?: string, retryAfter?: number, help?: string, body?: any}} [more] retryAfter: seconds; body: all that the server said
   */
  constructor(code, message, { status = 0, requestId = "", retryAfter = 0, help = "", body = null } = {}) {
    super(message);
    this.code = code;
    this.status = status;
    this.requestId = requestId;
    this.retryAfter = retryAfter;
    this.help = help;
    this.body = body;
  }
}

/**
 * For display.
 * @param {unknown} error
 * @returns {Problem}
 */
export function problemOf(error) {
  if (!(error instanceof ApiError)) {
    console.error(error);
    const message = "The page met a fault of its own. Reload it; the conversation is kept.";
    return { code: "page", title: "Something went wrong in the page.", message, remedy: "resend", requestId: "", help: "" };
  }
  const [title, remedy] = CATALOGUE[error.code] ?? CATALOGUE.internal;
  return { code: error.code, title, message: error.message, remedy, requestId: error.requestId, help: error.help };
}
