// The console: asks the daemon every two seconds, and writes what it says into the page.

import { Refused, get } from "./api.js";
import { act, askToken } from "./actions.js";
import * as card from "./card.js";
import { Chart } from "./chart.js";
import { byId, each, hide, mark, rows, text } from "./dom.js";
import { count, key, reading, some, time } from "./format.js";

const EVERY_MS = 2000;
const EVENTS = 50;
const HOUR_MS = 3600 * 1000;

const page = {
  daemon: null,
  /** Of the last hour, as `/history` tells it: what comes in later is added. */
  history: { at: [], jobs: {}, signals: [] },
  since: null,
};
const charts = new Map();

/** The job that the address names, if any. */
function selected() {
  return location.hash.match(/^#\/jobs\/([a-z0-9_-]+)$/)?.[1] ?? null;
}

async function look() {
  const name = selected();
  const of = name === null ? "" : `/jobs/${encodeURIComponent(name)}`;
  const after = page.history.newest === undefined ? "" : `?after=${encodeURIComponent(page.history.newest)}`;
  const [daemon, jobs, throttles, history, events, job, slices, quarantine] = await Promise.all([
    get("/daemon"),
    get("/jobs"),
    get("/throttle"),
    get(`/history${after}`),
    get(`/events?limit=${EVENTS}${name === null ? "" : `&job=${encodeURIComponent(name)}`}`),
    name === null ? null : orNone(get(of)),
    name === null ? [] : orNone(get(`${of}/slices`)),
    name === null ? [] : orNone(get(`${of}/quarantine`)),
  ]);
  // The address may have changed meanwhile.
  if (name !== selected()) return;
  page.daemon = daemon;
  remember(history);
  const limits = new Map();
  for (const { throttle } of throttles) {
    for (const [of, told] of Object.entries(throttle.jobs)) limits.set(of, (limits.get(of) ?? 0) + told.rows_per_second);
  }
  showDaemon(daemon);
  showJobs(jobs, limits);
  if (name !== null) showJob(name, job, slices, quarantine, limits);
  showCharts(name);
  showSignals(throttles);
  showEvents(events);
}

/** None where there is no such job. */
async function orNone(asked) {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof Refused && error.status === 404) return null;
    throw error;
  }
}

function showDaemon(daemon) {
  text(byId("daemon"), `${daemon.name} ${daemon.version}, ${daemon.database}`);
  hide(byId("token-button"), !daemon.takes_changes);
}

const ORDER = ["running", "finishing", "paused", "pending", "failed", "cancelled", "complete"];

function showJobs(jobs, limits) {
  const sorted = [...jobs].sort((one, other) => ORDER.indexOf(one.state) - ORDER.indexOf(other.state));
  hide(byId("no-jobs"), jobs.length > 0);
  each(byId("jobs"), sorted, (job) => job.name, card.make(act), (node, job) => {
    card.update(node, job, limits.get(job.name), page.daemon.takes_changes);
  });
  const underWay = jobs.filter((job) => job.state === "running");
  document.title = underWay.length === 0 ? "backfilld" : `${Math.floor(100 * underWay[0].progress)} % ${underWay[0].name} – backfilld`;
}

function showJob(name, job, slices, quarantine, limits) {
  each(byId("job-card"), job === null ? [] : [job], (of) => of.name, card.make(act), (node, of) => {
    card.update(node, of, limits.get(of.name), page.daemon.takes_changes);
  });
  text(byId("job-heading"), job === null ? `There is no job ${name}` : name);
  if (job === null) return;
  const working = slices.filter((slice) => slice.owner !== null).length;
  text(byId("slices-told"), `${count(job.slices_done)} of ${count(job.slices_total)} done, ${count(working)} worked on now${job.sweep > 0 ? `; sweep ${job.sweep}` : ""}.`);
  rows(byId("slices"), slices.slice(0, 100), (slice) => `${slice.sweep}/${slice.number}`, (slice) => [
    String(slice.number), slice.partition ?? "", key(slice.first_key), slice.finished_at ? "done" : key(slice.cursor_key), key(slice.last_key),
    [count(slice.rows_scanned), "number"], [count(slice.rows_changed), "number"], [slice.owner ? count(slice.rows_per_second) : "", "number"], slice.owner ?? "",
  ]);
  text(byId("quarantine-told"), quarantine.length === 0 ? "No row is set aside." : `${some(job.rows_quarantined, "row")} could not be changed.`);
  hide(byId("quarantine-table"), quarantine.length === 0);
  rows(byId("quarantine"), quarantine.slice(0, 100), (row) => key(row.key), (row) => [key(row.key), row.sqlstate, [row.message, "text"], [time(row.at), "time"]]);
  text(byId("spec"), JSON.stringify(job.spec, null, 2));
}

/** Adds what is new to what is known, and drops what is older than an hour. */
function remember(news) {
  const old = page.history;
  const at = [...old.at, ...news.at.map((text) => Date.parse(text))];
  const from = at.findIndex((moment) => moment > at[at.length - 1] - HOUR_MS);
  const join = (before, after) => {
    const none = (length) => Array(length).fill(null);
    return (of) => [...(before?.[of] ?? none(old.at.length)), ...(after?.[of] ?? none(news.at.length))].slice(from);
  };
  const line = (before, after) => {
    const joined = join(before, after);
    return { unit: after?.unit ?? before?.unit, value: joined("value"), limit: joined("limit") };
  };
  const jobs = {};
  for (const name of new Set([...Object.keys(old.jobs), ...Object.keys(news.jobs)])) jobs[name] = line(old.jobs[name], news.jobs[name]);
  const same = (one) => (other) => one.signal === other.signal && one.subject === other.subject;
  const signals = old.signals.map((one) => ({ ...one, ...line(one, news.signals.find(same(one))) }));
  for (const one of news.signals) {
    if (!old.signals.some(same(one))) signals.push({ ...one, ...line(undefined, one) });
  }
  page.history = { at: at.slice(Math.max(0, from)), jobs, signals, newest: news.at.at(-1) ?? old.newest };
}

/** One chart of the rates, then one for each signal and unit. */
function drawn(name) {
  const { jobs, signals } = page.history;
  const rates = Object.entries(jobs).filter(([of, line]) => (name === null || of === name) && line.value.some((value) => value !== null));
  const all = rates.length === 0 ? [] : [{ title: name === null ? "Rate of each job" : "Rate", unit: "rows/s", lines: rates.slice(0, 4).map(([of, line]) => ({ name: of, values: line.value, limits: line.limit })) }];
  const groups = new Map();
  for (const signal of signals.filter((one) => one.value.some((value) => value !== null))) {
    const title = `${signal.signal}${signal.unit === "bytes" ? ", bytes" : ""}`;
    if (!groups.has(title)) groups.set(title, { title: TITLES[title] ?? title.replaceAll("_", " "), unit: signal.unit, lines: [] });
    groups.get(title).lines.push({ name: signal.subject || "now", values: signal.value, limits: signal.limit });
  }
  return [...all, ...groups.values()];
}

const TITLES = { query_latency: "p99 of queries", replication_lag: "Replication lag", "replication_lag, bytes": "Replication lag in bytes" };

function showCharts(name) {
  const all = drawn(name);
  text(byId("charts-told"), all.length === 0 ? "Nothing has been read yet; a sample is taken every few seconds." : "");
  for (const gone of [...charts.keys()].filter((title) => !all.some((of) => of.title === title))) charts.delete(gone);
  each(byId("charts"), all, (of) => of.title, (of) => {
    const chart = new Chart();
    charts.set(of.title, chart);
    return chart.root;
  }, (_, of) => charts.get(of.title).draw(of, page.history.at));
}

function showSignals(throttles) {
  const several = throttles.length > 1;
  const signals = throttles.flatMap(({ daemon, age_seconds: age, throttle }) => throttle.signals.map((of) => ({ daemon, age, ...of })));
  rows(byId("signals"), signals, (of) => `${of.daemon} ${of.signal} ${of.subject} ${of.unit}`, (of) => [
    `${of.signal.replaceAll("_", " ")}${of.subject ? `, ${of.subject}` : ""}${several ? ` (${of.daemon})` : ""}`,
    [reading(of.reading, of.unit), "number"], [reading(of.limit, of.unit), "number"],
    [of.utilisation === null ? "–" : `${Math.round(100 * of.utilisation)} %`, "number"], of.verdict, [of.reason, "text"],
  ]);
}

function showEvents(events) {
  rows(byId("events"), [...events].reverse(), (event) => String(event.id), (event) => [
    [time(event.at), "time"], event.job ?? "", event.kind, [event.reason, "text"], event.actor,
  ]);
}

function connected(error) {
  const away = error !== null;
  if (!away) page.since = null;
  else page.since ??= new Date();
  mark(byId("connection"), away ? "away" : "live");
  text(byId("connection"), away ? "away" : "live");
  document.body.dataset.is = away ? "away" : "live";
  hide(byId("away"), !away);
  if (away) {
    const what = error.status === 0 ? "The daemon does not answer" : `The daemon answers, but cannot tell: ${error.message}`;
    text(byId("away"), `${what} (since ${time(page.since)}). What is shown is of before; trying again.`);
  }
}

async function turn() {
  // Nobody looks at a page that is hidden.
  if (document.visibilityState === "visible") {
    try {
      await look();
      connected(null);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      connected(error);
    } finally {
      clearTimeout(page.next);
      page.next = setTimeout(turn, EVERY_MS);
    }
  } else {
    page.next = setTimeout(turn, EVERY_MS);
  }
}

/** Another job, or all of them: shown at once with what is known, then asked for. */
function route() {
  const name = selected();
  hide(byId("overview"), name !== null);
  hide(byId("job"), name === null);
  if (name !== null) {
    text(byId("job-heading"), name);
    for (const id of ["slices", "quarantine", "job-card"]) byId(id).replaceChildren();
    byId("job-heading").focus();
  }
  clearTimeout(page.next);
  turn();
}

byId("token-button").addEventListener("click", () => askToken("Changes need the daemon's token."));
window.addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") {
    clearTimeout(page.next);
    turn();
  }
});
route();
