/**
 * COCO run lengths, as the service sends masks: column by column over the whole picture, beginning with the length of a run of zeros.
 * The compressed string is pycocotools': five bits a character, the sixth says that more follow, and from the third run on the difference to the run
 * before the last. Nothing here touches the page, so that node can test it.
 */

/**
 * @typedef {{size: [number, number], counts: string | number[]}} Rle  size is [height, width]
 */

/**
 * The lengths of the runs; even places are zeros.
 * @param {string | number[]} counts
 * @returns {number[]}
 */
export function runLengths(counts) {
  if (typeof counts !== "string") return counts.slice();
  const runs = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0;
    let shift = 0;
    let more = true;
    while (more) {
      if (at >= counts.length) throw new RangeError("The run lengths end in the middle of a number.");
      const code = counts.charCodeAt(at++) - 48;
      if (code < 0 || code > 63) throw new RangeError("The run lengths hold a character that means nothing.");
      value += (code & 31) * 2 ** shift; // not <<: 32 bits are not enough for every picture
      shift += 5;
      more = (code & 32) !== 0;
      if (!more && code & 16) value -= 2 ** shift;
    }
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** A mask that can be asked. */
export class Mask {
  /** @param {Rle} rle */
  constructor(rle) {
    /** @type {number} */
    this.height = rle.size[0];
    /** @type {number} */
    this.width = rle.size[1];
    const runs = runLengths(rle.counts);
    /** Where each run ends, counted in pixels; pixels of odd runs are set. @type {Float64Array} */
    this.ends = new Float64Array(runs.length);
    let total = 0;
    runs.forEach((run, k) => {
      if (!(run >= 0)) throw new RangeError("A run has a negative length.");
      total += run;
      this.ends[k] = total;
    });
    if (total !== this.height * this.width) throw new RangeError(`The runs cover ${total} pixels, the picture has ${this.height * this.width}.`);
  }

  /** Number of set pixels. @returns {number} */
  get area() {
    let area = 0;
    for (let k = 1; k < this.ends.length; k += 2) area += this.ends[k] - this.ends[k - 1];
    return area;
  }

  /**
   * Whether the pixel in column x and row y is set; outside of the picture nothing is.
   * @param {number} x
   * @param {number} y
   */
  has(x, y) {
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return false;
    const place = Math.floor(x) * this.height + Math.floor(y);
    let low = 0;
    let high = this.ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] <= place) low = middle + 1;
      else high = middle;
    }
    return low % 2 === 1;
  }

  /**
   * The set pieces of each column, top to bottom: [top, bottom) in rows. Touching pieces of one column are one.
   * @yields {[number, number, number]} column, top, bottom
   * @returns {Generator<[number, number, number]>}
   */
  *pieces() {
    const { height, ends } = this;
    let held = null;
    for (let k = 1; k < ends.length; k += 2) {
      let from = ends[k - 1];
      const to = ends[k];
      while (from < to) {
        const x = Math.floor(from / height);
        const stop = Math.min(to, (x + 1) * height);
        const piece = /** @type {[number, number, number]} */ ([x, from - x * height, stop - x * height]);
        if (held && held[0] === x && held[2] === piece[1]) held[2] = piece[2];
        else {
          if (held) yield held;
          held = piece;
        }
        from = stop;
      }
    }
    if (held) yield held;
  }

  /** [left, top, right, bottom), or null if nothing is set. @returns {[number, number, number, number] | null} */
  box() {
    let [left, above, right, below] = [-1, this.height, 0, 0];
    for (const [x, top, bottom] of this.pieces()) {
      if (left < 0) left = x;
      above = Math.min(above, top);
      right = x + 1;
      below = Math.max(below, bottom);
    }
    return left < 0 ? null : [left, above, right, below];
  }

  /** Row by row, one byte a pixel, 0 or `value`. @returns {Uint8Array} */
  bytes(value = 1) {
    const out = new Uint8Array(this.width * this.height);
    for (const [x, top, bottom] of this.pieces()) {
      for (let place = top * this.width + x, y = top; y < bottom; y++, place += this.width) out[place] = value;
    }
    return out;
  }
}
