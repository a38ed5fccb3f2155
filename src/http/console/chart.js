// A chart of lines over the last hour, with their limits dashed. Drawn in SVG; told in words to whoever cannot see it.

import { element, each, text } from "./dom.js";
import { reading, time } from "./format.js";

const WIDTH = 600;
const HEIGHT = 140;
const HOUR_MS = 3600 * 1000;
/** Samples that lie farther apart are not joined: nothing was read between them. */
const GAP_MS = 30 * 1000;
const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** What is drawn: { title, unit, lines: [{ name, values, limits }] }, all beside the times `at` in milliseconds. */
export class Chart {
  constructor() {
    this.title = element("strong");
    this.now = element("span", { class: "quiet" });
    this.drawing = shape("svg", { role: "img", viewBox: `0 -2 ${WIDTH} ${HEIGHT + 4}`, preserveAspectRatio: "none" });
    this.plot = shape("g");
    this.cursor = shape("line", { class: "at", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.drawing.append(this.plot, this.cursor);
    this.legend = element("ul", { class: "legend" });
    this.scale = element("p", { class: "quiet scale" });
    this.root = element("figure", {}, element("figcaption", {}, this.title, this.now), this.drawing, this.scale, this.legend);
    this.pointed = null;
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => this.point(null));
  }

  draw(of, at) {
    this.of = of;
    this.at = at;
    const end = at.length > 0 ? at[at.length - 1] : Date.now();
    // As long as there is to see, up to an hour.
    this.span = Math.min(HOUR_MS, Math.max(60_000, end - (at[0] ?? end)));
    this.start = end - this.span;
    this.top = ceiling(of.lines);
    const paths = [];
    for (const y of [0, HEIGHT / 2, HEIGHT]) paths.push(shape("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }));
    // A limit that is far above is told, and not drawn where it is not; one that several lines have, once.
    const limits = of.lines.map((line) => this.path(line.limits.map((limit) => (limit > this.top ? null : limit))));
    for (const limit of new Set(limits)) paths.push(shape("path", { class: "limit", d: limit }));
    of.lines.forEach((line, index) => {
      paths.push(shape("path", { class: `series-${index % 4}`, d: this.path(line.values) }));
    });
    this.plot.replaceChildren(...paths);
    text(this.title, of.title);
    text(this.scale, `0 to ${reading(this.top, of.unit)}, ${time(this.start)} to ${time(end)}`);
    this.drawing.setAttribute("aria-label", this.words());
    this.tell();
  }

  x(at) {
    return ((at - this.start) / this.span) * WIDTH;
  }

  path(values) {
    let [drawn, pen] = ["", false];
    values.forEach((value, index) => {
      if (value === null) {
        pen = false;
        return;
      }
      if (index > 0 && this.at[index] - this.at[index - 1] > GAP_MS) pen = false;
      const y = HEIGHT * (1 - Math.min(1, value / this.top));
      drawn += `${pen ? "L" : "M"}${this.x(this.at[index]).toFixed(1)} ${y.toFixed(1)}`;
      // One sample between two gaps is seen too.
      if (!pen) drawn += "h.5";
      pen = true;
    });
    return drawn;
  }

  point(event) {
    if (event === null || this.at.length === 0) {
      this.pointed = null;
    } else {
      const box = this.drawing.getBoundingClientRect();
      const wanted = this.start + ((event.clientX - box.left) / box.width) * this.span;
      this.pointed = this.at[nearest(this.at, wanted)];
    }
    this.tell();
  }

  /** The sample that is pointed at, or the last. */
  index() {
    return this.pointed === null || this.at.length === 0 ? this.at.length - 1 : nearest(this.at, this.pointed);
  }

  /** The figures of the moment pointed at, or the last. */
  tell() {
    const index = this.index();
    const isPointed = this.pointed !== null && index >= 0;
    this.cursor.setAttribute("visibility", isPointed ? "visible" : "hidden");
    if (isPointed) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x(this.at[index]));
    text(this.now, isPointed ? time(this.at[index]) : "now");
    const entries = this.of.lines.map((line, series) => ({ of: String(series % 4), told: `${line.name}: ${reading(line.values[index], this.of.unit)}` }));
    const limits = this.of.lines.filter((line) => line.limits[index] !== null && line.limits[index] !== undefined);
    const differ = new Set(limits.map((line) => line.limits[index])).size > 1;
    for (const line of differ ? limits : limits.slice(0, 1)) {
      entries.push({ of: "limit", told: `limit${differ ? ` of ${line.name}` : ""}: ${reading(line.limits[index], this.of.unit)}${line.limits[index] > this.top ? ", above this chart" : ""}` });
    }
    each(this.legend, entries, (entry) => `${entry.of} ${entry.told.split(":")[0]}`, (entry) => element("li", { class: `of-${entry.of}` }), (item, entry) => text(item, entry.told));
  }

  words() {
    const told = this.of.lines.map((line) => {
      const known = line.values.filter((value) => value !== null);
      if (known.length === 0) return `${line.name}: nothing read`;
      const limit = line.limits[line.limits.length - 1];
      const held = limit === null || limit === undefined ? "" : `, limit ${reading(limit, this.of.unit)}`;
      return `${line.name}: now ${reading(line.values[line.values.length - 1], this.of.unit)}, highest ${reading(Math.max(...known), this.of.unit)}${held}`;
    });
    return `${this.of.title}, the last ${Math.round(this.span / 60000)} minutes. ${told.join(". ")}.`;
  }
}

/** A round figure above all that is drawn. A limit far above does not press the line to the ground. */
function ceiling(lines) {
  const values = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const highest = Math.max(...values, 0);
  const limits = lines.flatMap((line) => line.limits).filter((limit) => limit !== null && limit <= 4 * highest);
  const top = Math.max(highest, ...limits) * 1.05;
  if (top === 0) return 1;
  const power = 10 ** Math.floor(Math.log10(top));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= top);
}

function nearest(sorted, wanted) {
  let best = 0;
  for (let index = 1; index < sorted.length; index += 1) {
    if (Math.abs(sorted[index] - wanted) < Math.abs(sorted[best] - wanted)) best = index;
  }
  return best;
}
