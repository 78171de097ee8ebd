/** Pointer, wheel and keys on the stage. */

import { layersOf } from "./state.js";

/**
 * @param {import("./canvas.js").Stage} stage
 * @param {import("./state.js").Store} store
 */
export function gestures(stage, store) {
  pointer(stage, store);
  keys(stage, store);
  wheel(stage);
  stage.view.addEventListener("dblclick", (event) => {
    if (stage.fits) stage.zoom(2.5, ...inside(stage, event));
    else stage.fit();
  });
}

/** Zoom with the wheel. @param {import("./viewport.js").Viewport} stage */
export function wheel(stage) {
  stage.view.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const [x, y] = inside(stage, event);
      const step = event.deltaMode === 1 ? 20 : 1; // lines or pixels
      stage.zoom(Math.exp((-event.deltaY * step) / (event.ctrlKey ? 120 : 420)), x, y);
    },
    { passive: false },
  );
}

/** Where an event is in the view, CSS pixels. @returns {[number, number]} */
export function inside(stage, event) {
  const box = stage.view.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function pointer(stage, store) {
  const { view } = stage;
  /** @type {Map<number, [number, number]>} */
  const down = new Map();
  let moved = false;
  view.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    view.setPointerCapture(event.pointerId);
    down.set(event.pointerId, inside(stage, event));
    if (down.size === 1) moved = false;
  });
  view.addEventListener("pointermove", (event) => {
    const here = inside(stage, event);
    const before = down.get(event.pointerId);
    if (!before) {
      if (event.pointerType === "mouse") stage.point(...here);
      return;
    }
    const [dx, dy] = [here[0] - before[0], here[1] - before[1]];
    if (!moved && Math.hypot(dx, dy) < 4) return;
    moved = true;
    down.set(event.pointerId, here);
    if (down.size === 1) stage.move(dx, dy);
    else if (down.size === 2) {
      const other = [...down].find(([id]) => id !== event.pointerId)?.[1] ?? here;
      const stretch = Math.hypot(here[0] - other[0], here[1] - other[1]) / Math.max(1, Math.hypot(before[0] - other[0], before[1] - other[1]));
      stage.zoom(stretch, ...other);
    }
  });
  const up = (event) => {
    const tapped = down.delete(event.pointerId) && !moved && event.type === "pointerup";
    if (!tapped) return;
    const layer = stage.at(...inside(stage, event));
    store.set({ pinned: layer && layer.id !== store.state.pinned ? layer.id : null });
  };
  view.addEventListener("pointerup", up);
  view.addEventListener("pointercancel", up);
  view.addEventListener("pointerleave", () => stage.point(null, null));
}

const STEPS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };

function keys(stage, store) {
  const toggle = (number) => {
    const layer = layersOf(store.state)[number - 1];
    if (layer) store.set({ touched: { ...store.state.touched, [layer.id]: { ...store.state.touched[layer.id], hidden: !layer.hidden } } });
  };
  stage.view.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (STEPS[event.key]) stage.move(...STEPS[event.key]);
    else if (key === "+" || key === "=") stage.zoom(1.25);
    else if (key === "-") stage.zoom(0.8);
    else if (key === "0") stage.fit();
    else if (/^[1-9]$/.test(key)) toggle(Number(key));
    else if (key === "o") store.set({ look: { ...store.state.look, outline: !store.state.look.outline } });
    else if (key === "c") store.set({ compare: true });
    else return;
    event.preventDefault();
  });
  const release = () => store.state.compare && store.set({ compare: false });
  stage.view.addEventListener("keyup", (event) => event.key.toLowerCase() === "c" && release());
  stage.view.addEventListener("blur", release);
}
