// A job, as a card: how it stands, and what may be done with it.

import { element, hide, mark, text } from "./dom.js";
import { count, duration, percent } from "./format.js";
import { why } from "./why.js";

const ENDED = ["complete", "failed", "cancelled"];

/** Which buttons a job has, in which states. */
const BUTTONS = [
  ["approve", "Approve", (job) => job.throttle.signal === "hold_before"],
  ["pause", "Pause", (job) => ["pending", "running", "finishing"].includes(job.state)],
  ["resume", "Resume", (job) => job.state === "paused"],
  ["retry", "Retry", (job) => ["failed", "cancelled"].includes(job.state)],
  ["tune", "Tune…", (job) => !ENDED.includes(job.state)],
  ["cancel", "Cancel…", (job) => !ENDED.includes(job.state)],
];

export function make(act) {
  return (job) => {
    const card = element("article", { class: "card" });
    const heading = element("h2", {}, element("a", { href: `#/jobs/${encodeURIComponent(job.name)}` }, job.name));
    card.setAttribute("aria-label", job.name);
    const figure = (name) => element("div", {}, element("dt", {}, name), element("dd"));
    card.append(
      element("div", { class: "title" }, heading, element("span", { class: "state" })),
      element("p", { class: "quiet table" }),
      element("progress", { max: "1", value: "0", "aria-label": `progress of ${job.name}` }),
      element("dl", {}, ...["Progress", "Changed", "Scanned", "Rate", "Time left", "Workers"].map(figure)),
      element("p", { class: "why" }),
    );
    const buttons = element("div", { class: "buttons" });
    for (const [action, label] of BUTTONS) {
      const button = element("button", { type: "button", "data-action": action, "aria-label": `${label.replace("…", "")} ${job.name}` }, label);
      button.addEventListener("click", () => act(action, job.name, button));
      buttons.append(button);
    }
    card.append(buttons);
    return card;
  };
}

/** `limit`: the rate that the throttle allows; `mayChange`: whether this daemon takes changes at all. */
export function update(card, job, limit, mayChange) {
  const one = (selector) => card.querySelector(selector);
  text(one(".state"), job.state);
  mark(one(".state"), job.state);
  text(one(".table"), job.table);
  const bar = one("progress");
  if (bar.value !== job.progress) bar.value = job.progress;
  const ended = ENDED.includes(job.state);
  const figures = [
    percent(job.progress),
    count(job.rows_changed),
    ended ? count(job.rows_scanned) : `${count(job.rows_scanned)} of ~${count(job.estimated_rows)}`,
    `${count(job.rows_per_second)} rows/s`,
    ended ? "–" : duration(job.eta_seconds),
    count(job.workers),
  ];
  card.querySelectorAll("dd").forEach((node, index) => text(node, figures[index]));
  const [told, grave] = why(job, limit);
  text(one(".why"), told);
  mark(one(".why"), grave);
  hide(one(".why"), told === "");
  const focused = document.activeElement;
  for (const [action, , applies] of BUTTONS) {
    const button = one(`[data-action=${action}]`);
    hide(button, !applies(job));
    button.disabled = !mayChange;
    button.title = mayChange ? "" : "nothing can be changed over HTTP: the daemon has no http.token_file";
  }
  // A button that goes hands its focus on: to the one that takes its place, if any does.
  if (card.contains(focused) && focused.hidden) (one("button:not([hidden]):enabled") ?? one("a")).focus({ preventScroll: true });
}
