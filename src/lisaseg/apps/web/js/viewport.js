/** A picture in a frame: fit, zoom, move. What is painted over it is up to who derives from it. Drawing never asks the server. */

export const SHARP = 3; // from so many screen pixels for a pixel of the picture on, its pixels are shown as squares
const MARGIN = 14; // around a picture that fits, in CSS pixels

/** @typedef {{width: number, height: number, bitmap: ImageBitmap | null}} Shown */

/** See the head of the file. */
export class Viewport {
  /**
   * @param {{view: HTMLElement, canvas: HTMLCanvasElement}} elements
   * @param {(zoom: number) => void} onZoom
   */
  constructor({ view, canvas }, onZoom) {
    this.view = view;
    this.canvas = canvas;
    this.onZoom = onZoom;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    this.fits = true;
    this.scale = 1; // CSS pixels for a pixel of the picture
    this.x = 0; // of the picture's left upper corner, CSS pixels
    this.y = 0;
    this.waiting = false;
    new ResizeObserver(() => this.resize()).observe(view);
  }

  /** What is shown. @returns {Shown | null} */
  get picture() {
    return null;
  }

  /** Paint over the picture, in its coordinates. @param {CanvasRenderingContext2D} _context @param {number} _now */
  paint(_context, _now) {}

  /** A point of the view in pixels of the picture. @param {number} x @param {number} y @returns {[number, number]} */
  toPicture(x, y) {
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  resize() {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const { clientWidth, clientHeight } = this.view;
    if (!clientWidth || !clientHeight) return;
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (this.fits) this.fit();
    else this.place();
    this.draw(performance.now()); // at once: a cleared canvas would flash
  }

  /** All of the picture. */
  fit() {
    const { picture } = this;
    const { clientWidth, clientHeight } = this.view;
    if (!picture?.width || !clientWidth) return;
    this.fits = true;
    this.scale = this.fitting();
    this.x = (clientWidth - picture.width * this.scale) / 2;
    this.y = (clientHeight - picture.height * this.scale) / 2;
    this.onZoom(this.scale);
    this.ask();
  }

  fitting() {
    const { width, height } = /** @type {Shown} */ (this.picture);
    const room = (length) => Math.max(1, length - 2 * MARGIN);
    return Math.min(room(this.view.clientWidth) / width, room(this.view.clientHeight) / height, 8);
  }

  /** Zoom by a factor around a point of the view. */
  zoom(factor, x = this.view.clientWidth / 2, y = this.view.clientHeight / 2) {
    if (!this.picture?.width) return;
    const least = Math.min(1, this.fitting());
    const scale = Math.min(40, Math.max(least, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.fits = false;
    this.place();
    this.onZoom(scale);
  }

  /** Move by CSS pixels. */
  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fits = false;
    this.place();
  }

  /** Keep a part of the picture in sight. */
  place() {
    const { picture } = this;
    if (!picture?.width) return;
    const keep = (at, length, room) => (length <= room ? (room - length) / 2 : Math.min(room / 2, Math.max(room / 2 - length, at)));
    this.x = keep(this.x, picture.width * this.scale, this.view.clientWidth);
    this.y = keep(this.y, picture.height * this.scale, this.view.clientHeight);
    this.ask();
  }

  /** Draw soon. */
  ask() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame((now) => {
      this.waiting = false;
      this.draw(now);
    });
  }

  /** @param {number} now */
  draw(now) {
    const { context, canvas, picture } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!picture?.width) return;
    const ratio = canvas.width / this.view.clientWidth;
    context.setTransform(this.scale * ratio, 0, 0, this.scale * ratio, this.x * ratio, this.y * ratio);
    context.fillStyle = picture.bitmap ? "#fff" : "#8a8f98"; // transparent parts count as white
    context.fillRect(0, 0, picture.width, picture.height);
    context.imageSmoothingEnabled = this.scale < SHARP;
    context.imageSmoothingQuality = "high";
    if (picture.bitmap) context.drawImage(picture.bitmap, 0, 0, picture.width, picture.height);
    this.paint(context, now);
  }
}
