/**
 * From a mask to what a canvas can draw at any zoom: its border as closed lines along the edges of the pixels, and the place for its number.
 */

/** @typedef {import("./rle.js").Mask} Mask */

const MAX_EDGES = 400_000; // a mask with more is noise; its pixels are drawn without a border

/**
 * The border of a mask: closed polygons whose corners are corners of pixels, [x0, y0, x1, y1, ...], inside on the right hand. With the non-zero or the
 * even-odd rule they fill exactly the mask. Null if there are too many edges to be of use.
 * @param {Mask} mask
 * @returns {number[][] | null}
 */
export function outline(mask) {
  const stride = mask.height + 1;
  /** Corner -> the one or two corners that a border leads to. @type {Map<number, number[]>} */
  const next = new Map();
  const edge = (x0, y0, x1, y1) => {
    const from = x0 * stride + y0;
    const known = next.get(from);
    if (known) known.push(x1 * stride + y1);
    else next.set(from, [x1 * stride + y1]);
  };
  const border = (x, left, right) => walls(left, right, (a, b) => edge(x, b, x, a), (a, b) => edge(x, a, x, b));
  /** @type {{x: number, pieces: [number, number][]}} */
  let last = { x: -2, pieces: [] };
  for (const column of columns(mask)) {
    const touching = column.x === last.x + 1;
    if (!touching) border(last.x + 1, last.pieces, []);
    border(column.x, touching ? last.pieces : [], column.pieces);
    for (const [top, bottom] of column.pieces) {
      edge(column.x, top, column.x + 1, top);
      edge(column.x + 1, bottom, column.x, bottom);
    }
    if (next.size > MAX_EDGES) return null;
    last = column;
  }
  border(last.x + 1, last.pieces, []);
  return loops(next, stride);
}

/**
 * The columns that hold something, left to right, with their pieces.
 * @param {Mask} mask
 * @returns {Generator<{x: number, pieces: [number, number][]}>}
 */
function* columns(mask) {
  let column = null;
  for (const [x, top, bottom] of mask.pieces()) {
    if (column && column.x === x) column.pieces.push([top, bottom]);
    else {
      if (column) yield column;
      column = { x, pieces: [/** @type {[number, number]} */ ([top, bottom])] };
    }
  }
  if (column) yield column;
}

/**
 * The vertical edges between two columns.
 * @param {[number, number][]} left pieces of the left column
 * @param {[number, number][]} right pieces of the right column
 * @param {(top: number, bottom: number) => void} opens only the right one is set
 * @param {(top: number, bottom: number) => void} closes only the left one is set
 */
function walls(left, right, opens, closes) {
  const cuts = [...left.flat().map((y) => [y, 0]), ...right.flat().map((y) => [y, 1])].sort((a, b) => a[0] - b[0]);
  const inside = [false, false];
  let from = 0;
  for (const [y, side] of cuts) {
    if (y > from && inside[0] !== inside[1]) (inside[1] ? opens : closes)(from, y);
    inside[side] = !inside[side];
    from = y;
  }
}

/**
 * @param {Map<number, number[]>} next
 * @param {number} stride
 * @returns {number[][]}
 */
function loops(next, stride) {
  const found = [];
  for (const [start, targets] of next) {
    while (targets.length) {
      const line = [];
      let here = start;
      let going = -1; // 0 along a row, 1 along a column
      do {
        const choices = /** @type {number[]} */ (next.get(here));
        const there = /** @type {number} */ (choices.pop());
        const way = Math.floor(there / stride) === Math.floor(here / stride) ? 1 : 0;
        if (way !== going) line.push(Math.floor(here / stride), here % stride);
        going = way;
        here = there;
      } while (here !== start);
      found.push(line);
    }
  }
  return found;
}

/**
 * The same line with each corner cut, by half a pixel at most: steps of one pixel become slopes, straight edges stay.
 * @param {number[]} line
 * @returns {number[]}
 */
export function cutCorners(line) {
  const cut = [];
  const count = line.length;
  for (let k = 0; k < count; k += 2) {
    const [x, y] = [line[k], line[k + 1]];
    for (const other of [(k + count - 2) % count, (k + 2) % count]) {
      const [dx, dy] = [line[other] - x, line[other + 1] - y];
      const share = Math.min(0.5, 0.5 / Math.max(1, Math.abs(dx) + Math.abs(dy)));
      cut.push(x + dx * share, y + dy * share);
    }
  }
  return cut;
}

/**
 * The pixel for the number of a mask: where it is thickest, on a grid of at most 96 cells a side.
 * @param {Mask} mask
 * @param {[number, number, number, number] | null} box of the mask
 * @returns {{x: number, y: number, depth: number} | null} depth: distance to the border, about, in pixels
 */
export function deepest(mask, box) {
  if (!box) return null;
  const [x0, y0, x1, y1] = box;
  const step = Math.max(1, Math.ceil(Math.max(x1 - x0, y1 - y0) / 96));
  const columns = Math.ceil((x1 - x0) / step) + 2;
  const rows = Math.ceil((y1 - y0) / step) + 2;
  const depth = new Float64Array(columns * rows); // a rim of zeros around
  /** @returns {[number, number]} */
  const spot = (i, j) => [Math.min(x1 - 1, x0 + (i - 1) * step + (step >> 1)), Math.min(y1 - 1, y0 + (j - 1) * step + (step >> 1))];
  for (let j = 1; j < rows - 1; j++) for (let i = 1; i < columns - 1; i++) if (mask.has(...spot(i, j))) depth[j * columns + i] = Infinity;
  const relax = (at, offsets) => {
    for (const [offset, cost] of offsets) depth[at] = Math.min(depth[at], depth[at + offset] + cost);
  };
  const ahead = [[-1, 1], [-columns, 1], [-columns - 1, Math.SQRT2], [-columns + 1, Math.SQRT2]];
  const back = ahead.map(([offset, cost]) => [-offset, cost]);
  for (let at = columns + 1; at < depth.length - columns - 1; at++) if (depth[at]) relax(at, ahead);
  for (let at = depth.length - columns - 2; at > columns; at--) if (depth[at]) relax(at, back);
  let best = -1;
  let most = 0;
  for (let at = 0; at < depth.length; at++) {
    if (depth[at] > most) {
      most = depth[at];
      best = at;
    }
  }
  if (best < 0) {
    const [x, top, bottom] = mask.pieces().next().value;
    return { x, y: (top + bottom) >> 1, depth: 0.5 };
  }
  const [x, y] = spot(best % columns, Math.floor(best / columns));
  return { x, y, depth: most * step };
}
