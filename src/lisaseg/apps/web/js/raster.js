/**
 * A mask that can be drawn on, and its way back to COCO run lengths. A pixel belongs to a shape if its centre lies in it. Nothing here touches the page,
 * so that node can test it.
 */

import { Mask } from "./rle.js";

/** @typedef {import("./rle.js").Rle} Rle */
/** @typedef {[number, number]} Point  x and y in pixels of the picture; the centre of its first pixel is (0.5, 0.5) */

/**
 * Runs as pycocotools' compressed string; see rle.js for the way back.
 * @param {number[]} runs
 */
export function compress(runs) {
  const codes = [];
  runs.forEach((run, k) => {
    let value = k > 2 ? run - runs[k - 2] : run;
    let more = true;
    while (more) {
      const five = value & 31;
      value >>= 5;
      more = five & 16 ? value !== -1 : value !== 0;
      codes.push(String.fromCharCode((more ? five | 32 : five) + 48));
    }
  });
  return codes.join("");
}

/** See the head of the file. */
export class Raster {
  /** An empty one. @param {number} width @param {number} height */
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.cells = new Uint8Array(width * height); // column by column, as run lengths go
  }

  /** @param {Rle} rle */
  static of(rle) {
    const mask = new Mask(rle);
    const raster = new Raster(mask.width, mask.height);
    for (let k = 1; k < mask.ends.length; k += 2) raster.cells.fill(1, mask.ends[k - 1], mask.ends[k]);
    return raster;
  }

  /** @returns {Rle} */
  rle() {
    const { cells } = this;
    const runs = [];
    let now = 0;
    let from = 0;
    while (from < cells.length) {
      let to = cells.indexOf(now ? 0 : 1, from);
      if (to < 0) to = cells.length;
      runs.push(to - from);
      from = to;
      now ^= 1;
    }
    return { size: [this.height, this.width], counts: compress(runs) };
  }

  /** The pixels of a column whose centres lie between two heights. */
  column(x, low, high, value) {
    if (x < 0 || x >= this.width) return;
    const from = Math.max(0, Math.ceil(low - 0.5));
    const to = Math.min(this.height, Math.floor(high - 0.5) + 1);
    if (to > from) this.cells.fill(value, x * this.height + from, x * this.height + to);
  }

  /**
   * A line of round ends, and the pixels under its points however thin it is.
   * @param {Point[]} points
   * @param {number} radius
   * @param {0 | 1} value
   */
  stroke(points, radius, value) {
    points.forEach((point, k) => {
      this.capsule(points[Math.max(0, k - 1)], point, radius, value);
      const [x, y] = point.map(Math.floor);
      if (y >= 0 && y < this.height) this.column(x, y, y + 1, value);
    });
  }

  /** All pixels within `radius` of the line from a to b: in each column one piece, because the shape is convex. */
  capsule(a, b, radius, value) {
    const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
    const length = Math.hypot(dx, dy) || 1;
    const [nx, ny] = [(-dy / length) * radius, (dx / length) * radius];
    const corners = [[a[0] + nx, a[1] + ny], [b[0] + nx, b[1] + ny], [b[0] - nx, b[1] - ny], [a[0] - nx, a[1] - ny]];
    const first = Math.max(0, Math.floor(Math.min(a[0], b[0]) - radius));
    const last = Math.min(this.width - 1, Math.ceil(Math.max(a[0], b[0]) + radius));
    for (let x = first; x <= last; x++) {
      const heights = crossings(corners, x + 0.5);
      for (const [cx, cy] of [a, b]) {
        const half = radius * radius - (x + 0.5 - cx) ** 2;
        if (half >= 0) heights.push(cy - Math.sqrt(half), cy + Math.sqrt(half));
      }
      if (heights.length) this.column(x, Math.min(...heights), Math.max(...heights), value);
    }
  }

  /**
   * The inside of a closed line; where it crosses itself, what is enclosed an odd number of times.
   * @param {Point[]} points
   * @param {0 | 1} value
   */
  polygon(points, value) {
    const xs = points.map(([x]) => x);
    for (let x = Math.max(0, Math.floor(Math.min(...xs))); x <= Math.min(this.width - 1, Math.ceil(Math.max(...xs))); x++) {
      const heights = crossings(points, x + 0.5).sort((a, b) => a - b);
      for (let k = 1; k < heights.length; k += 2) this.column(x, heights[k - 1], heights[k], value);
    }
  }
}

/** Where the edges of a closed line cross a vertical one. @param {number[][]} points @param {number} at @returns {number[]} */
function crossings(points, at) {
  const heights = [];
  points.forEach(([x1, y1], k) => {
    const [x0, y0] = points[(k || points.length) - 1];
    if (x0 <= at !== x1 <= at) heights.push(y0 + ((at - x0) * (y1 - y0)) / (x1 - x0));
  });
  return heights;
}
