/** What a page knows, in one place. Values are replaced, never changed in place. */

/**
 * Holds a state and tells of changes, once a task however many there were.
 * @template {Record<string, any>} State
 */
export class Observed {
  /** @param {State} state to begin with */
  constructor(state) {
    this.state = state;
    /** @type {((state: State, before: State) => void)[]} */
    this.listeners = [];
    this.told = this.state;
    this.pending = false;
  }

  /** @param {Partial<State>} patch */
  set(patch) {
    this.state = { ...this.state, ...patch };
    if (this.pending) return;
    this.pending = true;
    queueMicrotask(() => {
      this.pending = false;
      const before = this.told;
      this.told = this.state;
      for (const listener of this.listeners) listener(this.told, before);
    });
  }

  /** @param {(state: State, before: State) => void} listener */
  subscribe(listener) {
    this.listeners.push(listener);
  }
}
