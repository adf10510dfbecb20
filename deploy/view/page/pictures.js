// Pictures of a moment on canvases, made when they are first needed and drawn at their own size; CSS enlarges them.

import { element, named } from "/page/elements.js";

const CAPTIONS = { dream: "dream", truth: "truth", error: "difference", variance: "spread of the futures", real: "environment", belief: "belief", strip: "expected next steps" };

export class Pictures {
  constructor(place) {
    this.place = place;
    this.figures = new Map();
    this.drawn = 0;
    this.asked = 0;
  }

  // Resolves to whether they were drawn: not if later ones were ready earlier.
  async draw(header, blobs) {
    const number = ++this.asked;
    const bitmaps = await Promise.all(blobs.map((blob) => createImageBitmap(blob)));
    if (number < this.drawn) return false;
    this.drawn = number;
    const seen = new Set();
    header.images.forEach((image, at) => {
      const key = `${image.role} ${image.name}`, bitmap = bitmaps[at];
      seen.add(key);
      const tiles = header.images.filter((other) => other.role === image.role && other.name === image.name).length;
      const canvases = this.canvases(key, image, tiles);
      const canvas = canvases[image.future];
      if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) { canvas.width = bitmap.width; canvas.height = bitmap.height; }
      canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
    });
    for (const [key, { figure }] of this.figures) figure.hidden = !seen.has(key);
    return true;
  }

  canvases(key, image, tiles) {
    let held = this.figures.get(key);
    if (!held) {
      const size = image.role === "strip" ? "wide" : ["error", "variance"].includes(image.role) ? "small" : "large";
      const grid = element("div", { className: "tiles" });
      const figure = element("figure", { className: size }, element("figcaption", {}, named(CAPTIONS[image.role], image.name)), grid);
      figure.dataset.role = image.role;
      this.place.append(figure);
      held = { figure, grid, canvases: [] };
      this.figures.set(key, held);
    }
    if (held.canvases.length !== tiles) {
      held.canvases = Array.from({ length: tiles }, (_, at) => element("canvas", { role: "img", "aria-label": `${CAPTIONS[image.role]} ${at + 1}` }));
      held.grid.style.gridTemplateColumns = `repeat(${Math.round(Math.sqrt(tiles))}, minmax(0, 1fr))`;
      held.grid.replaceChildren(...held.canvases);
    }
    return held.canvases;
  }

  // All that is shown, side by side on one canvas: what a film is made of.
  compose(film) {
    const shown = [...this.figures.values()].filter(({ figure }) => !figure.hidden && figure.dataset.role !== "strip");
    const side = 256, pen = film.getContext("2d");
    if (film.width !== side * Math.max(1, shown.length)) film.width = side * Math.max(1, shown.length);
    film.height = film.height === side ? film.height : side;
    pen.imageSmoothingEnabled = false;
    shown.forEach(({ canvases }, at) => {
      const across = Math.round(Math.sqrt(canvases.length)), size = side / across;
      canvases.forEach((canvas, k) => pen.drawImage(canvas, at * side + (k % across) * size, Math.floor(k / across) * size, size, size));
    });
  }
}
