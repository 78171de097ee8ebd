/** Hands on the board: brush, eraser, polygon and move, with a pointer, with fingers, or with the keys alone. */

import { inside, wheel } from "../gestures.js";

/** @typedef {import("../raster.js").Point} Point */

const CLOSE = 12; // CSS pixels: a click so near to the first corner closes the polygon
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** See the head of the file. */
export class Tools {
  /**
   * @param {import("./board.js").Board} board
   * @param {import("./bench.js").Bench} bench
   * @param {(text: string) => void} say to screen readers
   */
  constructor(board, bench, say) {
    this.board = board;
    this.bench = bench;
    this.say = say;
    /** Fingers and buttons that are down, where. @type {Map<number, Point>} */
    this.down = new Map();
    this.moving = false; // the picture, not the tool
    this.space = false;
    wheel(board);
    this.pointer();
    this.keys();
  }

  /** @returns {import("./bench.js").State} */
  get state() {
    return this.bench.state;
  }

  pointer() {
    const { view } = this.board;
    view.addEventListener("pointerdown", (event) => this.press(event));
    view.addEventListener("pointermove", (event) => this.drag(event));
    for (const kind of ["pointerup", "pointercancel"]) view.addEventListener(kind, (event) => this.release(/** @type {PointerEvent} */ (event)));
    view.addEventListener("pointerleave", () => {
      if (this.down.size) return;
      this.board.hand = null;
      this.board.ask();
    });
    view.addEventListener("dblclick", (event) => {
      event.preventDefault();
      if (this.state.tool === "polygon") this.close();
      else if (this.state.tool === "move") this.board.fits ? this.board.zoom(2.5, ...inside(this.board, event)) : this.board.fit();
    });
  }

  /** @param {PointerEvent} event */
  press(event) {
    if (event.button > 1 || !this.state.draft || this.state.draft.problem) return;
    const { board } = this;
    board.view.setPointerCapture(event.pointerId);
    const here = inside(board, event);
    this.down.set(event.pointerId, here);
    board.byKeys = false;
    board.hand = board.toPicture(...here);
    if (this.down.size > 1) {
      board.line = []; // the first of two fingers did not mean to draw
      this.moving = true;
    } else {
      this.moving = event.button === 1 || this.space || this.state.tool === "move";
      if (!this.moving && this.state.tool !== "polygon") board.line = [board.hand];
    }
    board.ask();
  }

  /** @param {PointerEvent} event */
  drag(event) {
    const { board } = this;
    const here = inside(board, event);
    const before = this.down.get(event.pointerId);
    board.byKeys = false;
    board.hand = board.toPicture(...here);
    if (before) this.down.set(event.pointerId, here);
    if (before && this.moving) {
      if (this.down.size === 1) board.move(here[0] - before[0], here[1] - before[1]);
      else this.pinch(event.pointerId, here, before);
    } else if (before && board.line.length) {
      // all that happened since the last frame, so that fast strokes stay round
      const events = event.getCoalescedEvents?.() ?? [];
      for (const one of events.length ? events : [event]) board.line.push(board.toPicture(...inside(board, one)));
    }
    board.ask();
  }

  /** @param {number} id @param {Point} here @param {Point} before */
  pinch(id, here, before) {
    const other = [...this.down].find(([one]) => one !== id)?.[1] ?? here;
    const reach = (point) => Math.max(1, Math.hypot(point[0] - other[0], point[1] - other[1]));
    this.board.zoom(reach(here) / reach(before), ...other);
    this.board.move((here[0] - before[0]) / 2, (here[1] - before[1]) / 2);
  }

  /** @param {PointerEvent} event */
  release(event) {
    if (!this.down.delete(event.pointerId)) return;
    const { board } = this;
    const { line } = board;
    board.line = [];
    if (event.pointerType === "touch") board.hand = null;
    if (!this.moving && event.type === "pointerup") {
      if (this.state.tool === "polygon") this.corner(board.toPicture(...inside(board, event)));
      else if (line.length) this.stroke(line);
    }
    if (!this.down.size) this.moving = false;
    board.ask();
  }

  /** @param {Point[]} line */
  stroke(line) {
    const { tool, size } = this.state;
    this.bench.draw((raster) => raster.stroke(line, size / 2, tool === "eraser" ? 0 : 1));
  }

  /** Of the polygon that is begun. @param {Point[]} corners */
  set corners(corners) {
    this.bench.store.set({ corners });
  }

  /** @param {Point} point */
  corner(point) {
    const { scale } = this.board;
    const { corners } = this.state;
    const first = corners[0];
    if (corners.length > 2 && Math.hypot(first[0] - point[0], first[1] - point[1]) * scale < CLOSE) return this.close();
    const last = corners[corners.length - 1];
    if (last && Math.hypot(last[0] - point[0], last[1] - point[1]) * scale < 2) return; // second half of a double click
    this.corners = [...corners, point];
  }

  /** Fill the polygon, or cut it out. @param {boolean} [cut] */
  close(cut = false) {
    const { corners } = this.state;
    if (corners.length < 3) return;
    this.corners = [];
    this.bench.draw((raster) => raster.polygon(corners, cut ? 0 : 1));
  }

  /** The last corner, or the last step, is taken back. */
  undo() {
    if (this.state.corners.length) this.corners = this.state.corners.slice(0, -1);
    else if (!this.bench.undo()) this.say("Nothing to undo.");
  }

  /** A polygon that was begun is given up. */
  giveUp() {
    this.corners = [];
    this.board.line = [];
  }

  keys() {
    const { view } = this.board;
    view.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const step = STEPS[event.key];
      if (step) this.step(step, event.shiftKey);
      else if (event.key === " ") this.act(event.repeat);
      else if (event.key === "Enter") this.close(event.shiftKey);
      else if (event.key === "Backspace") this.undo();
      else return;
      event.preventDefault();
    });
    view.addEventListener("keyup", (event) => event.key === " " && (this.space = false));
    view.addEventListener("blur", () => {
      this.space = false;
      if (!this.board.byKeys) return;
      this.board.hand = null;
      this.board.ask();
    });
  }

  /** Space: with the tool under the keys it acts; under the pointer it lets the pointer move the picture. @param {boolean} repeat */
  act(repeat) {
    const { board } = this;
    if (!board.byKeys || !board.hand) {
      this.space = true;
      return;
    }
    if (this.state.tool === "polygon") !repeat && this.corner(board.hand);
    else if (this.state.tool !== "move") this.stroke([board.hand]);
  }

  /** Move the tool (or, with the hand, the picture). @param {number[]} direction @param {boolean} far */
  step([dx, dy], far) {
    const { board } = this;
    const { picture, tool } = this.state;
    if (!picture) return;
    if (tool === "move") return board.move(-60 * dx, -60 * dy);
    const length = Math.max(1, Math.round((far ? 40 : 8) / board.scale));
    const [x, y] = board.byKeys && board.hand ? board.hand : [Math.floor(picture.width / 2) + 0.5, Math.floor(picture.height / 2) + 0.5];
    const within = (at, most) => Math.min(most - 0.5, Math.max(0.5, at));
    board.byKeys = true;
    board.hand = [within(x + dx * length, picture.width), within(y + dy * length, picture.height)];
    this.follow(board.hand);
    this.say(`${Math.floor(board.hand[0])}, ${Math.floor(board.hand[1])}`);
    board.ask();
  }

  /** Keep a point in sight. @param {Point} point */
  follow([x, y]) {
    const { board } = this;
    const lack = (at, room) => (at < 30 ? 30 - at : at > room - 30 ? room - 30 - at : 0);
    const [dx, dy] = [lack(x * board.scale + board.x, board.view.clientWidth), lack(y * board.scale + board.y, board.view.clientHeight)];
    if (!board.fits && (dx || dy)) board.move(dx, dy);
  }
}
