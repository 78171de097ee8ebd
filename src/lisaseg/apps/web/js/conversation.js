/**
 * The conversation with the server, without anything to be seen: open a picture, ask, stop, retry, undo, and come back after a reload. The browser holds
 * all of it too, so when the server has forgotten the picture or the session they are sent again, and nobody notices.
 */

import { ApiError, FORGOTTEN, PASSING, CATALOGUE, problemOf } from "./errors.js";
import { randomName } from "./api.js";
import { openPicture } from "./intake.js";
import * as local from "./local.js";
import { initial } from "./state.js";

/** @typedef {import("./types.js").Turn} Turn */
/** @typedef {import("./types.js").Mode} Mode */

const ATTEMPTS = 8;

/** See the head of the file. */
export class Conversation {
  /**
   * @param {import("./api.js").Api} api
   * @param {import("./state.js").Store} store
   * @param {{say: (text: string) => void, complain: (problem: import("./errors.js").Problem) => void}} tell say: to screen readers
   */
  constructor(api, store, tell) {
    this.api = api;
    this.store = store;
    this.tell = tell;
    /** What brings the picture to the server. @type {AbortController | null} */
    this.opening = null;
    /** The question under way. @type {AbortController | null} */
    this.asking = null;
    /** Resolves when the session exists. */
    this.ready = Promise.resolve();
    /** The session under whose name the browser keeps this conversation; it changes when the server had forgotten it. @type {string | null} */
    this.keptAs = null;
  }

  get state() {
    return this.store.state;
  }

  /**
   * Show a picture and bring it to the server.
   * @param {Blob} blob
   * @param {string} name
   * @param {Turn[]} [turns] answers that were made beforehand
   * @throws {ApiError} it is no picture, or one that the server would refuse
   */
  async open(blob, name, turns = []) {
    const picture = await openPicture(blob, name, this.state.limits);
    this.leave();
    this.keptAs = null;
    this.store.set({ picture, turns });
    this.#start(true);
  }

  /** Back to the beginning; the conversation stays where it is kept. */
  leave() {
    this.opening?.abort();
    this.asking?.abort();
    const { look, mode, limits, server } = this.state;
    this.store.set({ ...initial(), look, mode, limits, server });
  }

  /** Bring the picture to the server and begin a session, in the background. @param {boolean} fresh not a conversation that went on before */
  #start(fresh) {
    this.opening = new AbortController();
    this.ready = this.#begin(this.opening.signal, fresh);
    this.ready.catch(() => {}); // shown by #begin; who needs the session hears it too
  }

  /** Once more, after a failure. */
  startAgain(fresh = false) {
    this.#start(fresh);
    return this.ready;
  }

  /** @param {AbortSignal} signal @param {boolean} fresh */
  async #begin(signal, fresh) {
    this.store.set({ pictureProblem: null });
    try {
      const wait = (notice) => this.store.set({ upload: { share: 0, notice } });
      const session = await this.#patiently(() => this.#sessionOnServer(signal), wait, signal);
      if (signal.aborted) throw new DOMException("stopped", "AbortError");
      if (this.keptAs && !fresh) await local.forget(this.keptAs);
      this.keptAs = session.id;
      this.store.set({ session: session.id });
      local.nameInAddress(session.id, fresh);
    } catch (error) {
      if (!signal.aborted) this.store.set({ pictureProblem: problemOf(error) });
      throw error;
    } finally {
      if (!signal.aborted) this.store.set({ upload: null });
    }
  }

  /** A new session that knows the turns so far; uploads the picture if the server does not have it. @param {AbortSignal} signal */
  async #sessionOnServer(signal) {
    const history = this.state.turns.filter((turn) => turn.answer).slice(-20);
    const turns = history.map((turn) => ({ prompt: turn.prompt, mode: turn.mode, raw_text: /** @type {any} */ (turn.answer).raw_text }));
    return this.withPicture((id) => this.api.call("POST", "/v1/sessions", { image_id: id, history: turns }, { signal }), signal);
  }

  /**
   * Do work that names the picture by its id; if the server does not have it, it is sent first.
   * @template T
   * @param {(id: string) => Promise<T>} work
   * @param {AbortSignal} [signal]
   * @returns {Promise<T>}
   */
  async withPicture(work, signal = new AbortController().signal) {
    const known = this.state.picture?.id;
    if (known) {
      try {
        return await work(known);
      } catch (error) {
        if (!(error instanceof ApiError && FORGOTTEN.has(error.code))) throw error;
      }
    }
    return work(await this.#upload(signal));
  }

  /** @param {AbortSignal} signal @returns {Promise<string>} id of the picture */
  async #upload(signal) {
    const picture = /** @type {import("./types.js").Picture} */ (this.state.picture);
    this.store.set({ upload: { share: 0 } });
    const image = await this.api.upload(picture.blob, picture.name, (share) => !signal.aborted && this.store.set({ upload: { share } }), signal);
    const notes = image.warnings.map((warning) => warning.message);
    this.store.set({ picture: { ...picture, id: image.id, width: image.width, height: image.height, notes }, upload: null });
    return image.id;
  }

  /**
   * Ask the next question.
   * @param {string} prompt
   * @param {Mode} mode
   * @param {number} [tokens] length limit, if not the server's
   */
  async ask(prompt, mode, tokens) {
    if (this.asking) return;
    const turn = emptyTurn(prompt, mode);
    this.store.set({ turns: [...this.state.turns, turn], pinned: null, lit: null });
    await this.#run(turn.key, () => `/v1/sessions/${this.state.session}/messages`, { prompt, mode, ...(tokens && { max_new_tokens: tokens }) });
  }

  /** Ask the last question again. @param {{mode?: Mode, tokens?: number}} [change] */
  async retry({ mode, tokens } = {}) {
    const turn = this.state.turns.at(-1);
    if (!turn || this.asking) return;
    const body = { mode: mode ?? turn.mode, ...(tokens && { max_new_tokens: tokens }) };
    const touched = Object.fromEntries(Object.entries(this.state.touched).filter(([id]) => !id.startsWith(`${turn.key}.`)));
    this.store.set({ turns: [...this.state.turns.slice(0, -1), { ...emptyTurn(turn.prompt, body.mode), key: turn.key }], pinned: null, lit: null });
    if (!turn.answer) {
      await this.#run(turn.key, () => `/v1/sessions/${this.state.session}/messages`, { ...body, prompt: turn.prompt });
      return;
    }
    await this.#run(turn.key, () => `/v1/sessions/${this.state.session}/retry`, body, turn);
    if (this.state.turns.at(-1)?.answer !== turn.answer) this.store.set({ touched });
  }

  /** End the answer under way; the conversation on the server is as it was before the question. */
  stop() {
    this.asking?.abort();
  }

  /** Take back the last turn. @returns {Promise<string>} its question */
  async undo() {
    const turn = this.state.turns.at(-1);
    if (!turn || this.asking) return "";
    if (turn.answer && this.state.session) {
      const once = randomName();
      const take = () => this.api.call("POST", `/v1/sessions/${this.state.session}/undo`, null, { once });
      try {
        await this.#patiently(take, () => {}, new AbortController().signal, 3);
      } catch (error) {
        if (!(error instanceof ApiError && FORGOTTEN.has(error.code))) throw error;
        this.store.set({ session: null }); // the next question brings what is left
      }
    }
    this.store.set({ turns: this.state.turns.filter((other) => other.key !== turn.key), pinned: null, lit: null });
    this.tell.say("The last question was taken back.");
    return turn.prompt;
  }

  /** Forget the turns, keep the picture. */
  async newChat() {
    this.opening?.abort();
    this.asking?.abort();
    this.store.set({ turns: [], session: null, touched: {}, pinned: null, lit: null });
    this.tell.say("New conversation about the same picture.");
    await this.startAgain(true);
  }

  /** Delete the conversation here and on the server. */
  async forget() {
    const { session, picture } = this.state;
    if (this.keptAs) await local.forget(this.keptAs);
    if (session) {
      await this.api.call("DELETE", `/v1/sessions/${session}`).catch(quiet);
      if (picture?.id) await this.api.call("DELETE", `/v1/images/${picture.id}`).catch(quiet);
    }
    this.leave();
    local.nameInAddress(null);
  }

  /**
   * Come back to a conversation: what the browser kept is shown at once, what the server has counts.
   * @param {string} id of the session
   * @returns {Promise<boolean>} false if neither has it
   */
  async restore(id) {
    const kept = await local.recall(id);
    if (kept) await this.#show(id, kept, kept.turns.map(turnOf));
    try {
      const session = await this.#patiently(() => this.api.call("GET", `/v1/sessions/${id}`), () => {}, new AbortController().signal, kept ? 1 : ATTEMPTS);
      if (!kept) {
        const content = await this.api.call("GET", `/v1/images/${session.image.id}/content`, null, { raw: true });
        const record = { name: "picture", blob: await content.blob(), ...session.image, imageId: session.image.id, touched: {} };
        await this.#show(id, record, session.turns.map(turnOf));
      } else if (this.state.session === id && !this.asking) this.store.set({ turns: merge(session.turns, this.state.turns) });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (kept) {
        if (FORGOTTEN.has(error.code)) this.store.set({ session: null }); // the next question brings it back
        return true;
      }
      if (!FORGOTTEN.has(error.code)) this.tell.complain(problemOf(error));
      return false;
    }
    return true;
  }

  /** @param {string} id @param {any} record @param {Turn[]} turns */
  async #show(id, record, turns) {
    const picture = await openPicture(record.blob, record.name, null);
    this.leave();
    this.keptAs = id;
    const { width, height, imageId } = record;
    this.store.set({ picture: { ...picture, width, height, id: imageId }, session: id, turns, touched: record.touched });
    this.ready = Promise.resolve();
  }

  /**
   * Put a question to the server and follow its answer.
   * @param {string} key of the turn
   * @param {() => string} path
   * @param {object} body
   * @param {Turn | null} [before] what to go back to if there is no answer
   */
  async #run(key, path, body, before = null) {
    const asking = new AbortController();
    this.asking = asking;
    const { signal } = asking;
    const once = randomName();
    const wait = (notice) => this.store.setTurn(key, { state: "waiting", text: "", segments: [], notice });
    try {
      await this.#patiently(() => this.#remembered(() => this.#listen(key, path(), body, signal, once), signal), wait, signal);
      const turn = this.state.turns.find((one) => one.key === key);
      if (turn?.answer) this.tell.say(spoken(turn.answer));
    } catch (error) {
      const problem = signal.aborted ? null : problemOf(error);
      if (before) {
        this.store.setTurn(key, before);
        if (problem) this.tell.complain(problem);
      } else {
        this.store.setTurn(key, { state: problem ? "failed" : "stopped", problem, notice: "" });
        this.tell.say(problem ? `${problem.title} ${problem.message}` : "Stopped.");
      }
    } finally {
      if (this.asking === asking) this.asking = null;
      this.store.set({}); // for those who look whether a question is under way
    }
  }

  /** Do work that needs the session; if the server has forgotten it, tell it again. @param {() => Promise<void>} work @param {AbortSignal} signal */
  async #remembered(work, signal) {
    await this.ready.catch(() => {});
    if (!this.state.session) await this.startAgain();
    if (signal.aborted) throw new DOMException("stopped", "AbortError");
    try {
      await work();
    } catch (error) {
      if (!(error instanceof ApiError && FORGOTTEN.has(error.code))) throw error;
      await this.startAgain();
      await work();
    }
  }

  /** @param {string} key @param {string} path @param {object} body @param {AbortSignal} signal @param {string} once */
  async #listen(key, path, body, signal, once) {
    let text = "";
    let segments = [];
    for await (const { event, data } of this.api.stream(path, body, { signal, once })) {
      if (event === "start") {
        const notice = data.queue_position > 1 ? `Number ${data.queue_position} in the queue.` : "";
        this.store.setTurn(key, { state: "waiting", text: "", segments: [], notice });
      } else if (event === "delta" || event === "replace") {
        text = event === "delta" ? text + data.text : data.text;
        this.store.setTurn(key, { state: "streaming", text, notice: "" });
      } else if (event === "segment") {
        segments = [...segments, data];
        this.store.setTurn(key, { segments });
      } else if (event === "done") {
        this.store.setTurn(key, { state: "done", text: data.text, segments: data.segments, answer: data, notice: "", problem: null });
      }
    }
  }

  /**
   * Repeat what fails for a passing reason, when the server said, and tell of it meanwhile.
   * @template T
   * @param {() => Promise<T>} work
   * @param {(notice: string) => void} tell
   * @param {AbortSignal} signal
   * @param {number} [attempts]
   * @returns {Promise<T>}
   */
  async #patiently(work, tell, signal, attempts = ATTEMPTS) {
    for (let attempt = 1; ; attempt++) {
      try {
        return await work();
      } catch (error) {
        if (signal.aborted || attempt >= attempts || !(error instanceof ApiError && PASSING.has(error.code))) throw error;
        if (error.code === "model_loading") attempt--; // that ends; how long it takes depends on the model
        const seconds = Math.ceil(error.retryAfter || Math.min(10, 2 ** (attempt - 1)));
        for (let left = seconds; left > 0; left--) {
          tell(`${CATALOGUE[error.code][0]} Trying again in ${left} s.`);
          await pause(1000 + (left === 1 ? 300 * Math.random() : 0), signal); // not all pages at the same moment
        }
        tell("Trying again.");
      }
    }
  }
}

/** @param {string} prompt @param {Mode} mode @returns {Turn} */
function emptyTurn(prompt, mode) {
  return { key: randomName(), prompt, mode, state: "waiting", text: "", segments: [], answer: null, notice: "", problem: null };
}

/** @param {import("./types.js").ServerTurn & {key?: string, recorded?: boolean}} turn @returns {Turn} */
export function turnOf({ prompt, mode, raw_text, answer, key, recorded }) {
  const text = answer?.text ?? raw_text.replaceAll("[SEG]", "").replace(/ +([.,])/g, "$1");
  return { ...emptyTurn(prompt, mode), state: "done", text, answer, segments: answer?.segments ?? [], recorded, key: key ?? answer?.id ?? randomName() };
}

/**
 * The server's turns; answers that it does not hold any more (it was given them as history) are taken from here.
 * @param {import("./types.js").ServerTurn[]} theirs
 * @param {Turn[]} ours
 */
function merge(theirs, ours) {
  const done = ours.filter((turn) => turn.answer);
  return theirs.map((turn, at) => {
    const same = done[at]?.prompt === turn.prompt && done[at].answer?.raw_text === turn.raw_text;
    return same ? done[at] : turnOf(turn);
  });
}

/** @param {import("./types.js").Answer} answer */
function spoken({ text, segments, image }) {
  const places = segments.map((segment, k) => `mask ${k + 1} covers ${Math.round((100 * segment.area) / (image.width * image.height))} percent`);
  return `Answer: ${text.replace(/[[\]]/g, "")} ${places.join(", ")}`;
}

/** @param {number} ms @param {AbortSignal} signal @returns {Promise<void>} */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}

/** A failure that changes nothing for the reader. @param {unknown} error */
function quiet(error) {
  console.info(error);
}
