/** Colours of masks: Okabe and Ito's, in the order of lisaseg.drawing (a test holds the two together), so that page, files and notebooks agree. */

/** @typedef {[number, number, number]} Colour */

/** @type {Colour[]} */
export const PALETTE = [
  [213, 94, 0], // vermillion
  [0, 114, 178], // blue
  [0, 158, 115], // bluish green
  [204, 121, 167], // reddish purple
  [230, 159, 0], // orange
  [86, 180, 233], // sky blue
  [240, 228, 66], // yellow
];

/** Colour of the mask with this number, counted from 1; colours repeat after seven, numbers do not. @param {number} number @returns {Colour} */
export const colourOf = (number) => PALETTE[(number - 1) % PALETTE.length];

/** @param {Colour} colour */
export const css = (colour, alpha = 1) => `rgb(${colour.join(" ")} / ${alpha})`;

/** Black or white, whichever reads better on the colour. @param {Colour} colour */
export function inkOn(colour) {
  const [r, g, b] = colour.map((c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}
