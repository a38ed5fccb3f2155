// The console: asks the daemon every two seconds, and writes what it says into the page.

import { Refused, get } from "./api.js";
import { act, askToken, say } from "./actions.js";
import * as card from "./card.js";
import { Chart } from "./chart.js";
import { byId, each, hide, mark, rows, text } from "./dom.js";
import { count, key, reading, some, time } from "./format.js";

const EVERY_MS = 2000;
const EVENTS = 50;
const HOUR_MS = 3600 * 1000;
/** Rows of a table, and jobs that have ended, that are shown. */
const ROWS = 100;
const ENDED_JOBS = 12;
const LINES_OF_A_CHART = 4;
/** A throttle tells each second or two how it stands. */
const TOLD_NOW_SECONDS = 60;

const NO_HISTORY = { at: [], jobs: {}, signals: [] };

const page = {
  daemon: null,
  /** Of the last hour, as `/history` tells it: what comes in later is added. */
  history: NO_HISTORY,
  /** Of the daemon that served this page. */
  version: null,
  isOutdated: false,
  /** More than one daemon tells of now. */
  isOfSeveral: false,
  /** Since when something is not told that should be. */
  since: null,
  isLooking: false,
  lookAgain: false,
  isRouted: false,
};
const charts = new Map();

/** The job that the address names, if any. */
function selected() {
  return location.hash.match(/^#\/jobs\/([a-z0-9_-]+)$/)?.[1] ?? null;
}

/**
 * Why the jobs cannot be told, if they cannot: the daemon itself answers also while its database does not. Undefined: this look was overtaken by
 * another.
 */
async function look() {
  const name = selected();
  const [own, stored] = await Promise.all([askDaemon(), askDatabase(name).catch(refusal)]);
  // The address may have changed meanwhile.
  if (name !== selected()) return undefined;
  const was = page.daemon;
  if (was !== null && (was.name !== own.daemon.name || was.database !== own.daemon.database)) page.history = NO_HISTORY;
  else remember(own.history);
  page.daemon = own.daemon;
  showDaemon(own.daemon);
  if (stored instanceof Refused) {
    showCharts(name);
    return stored;
  }
  // One that is gone tells of before.
  const throttles = stored.throttles.filter((of) => of.age_seconds < TOLD_NOW_SECONDS);
  page.isOfSeveral = throttles.length > 1;
  showCharts(name);
  const limits = new Map();
  for (const [of, told] of throttles.flatMap(({ throttle }) => Object.entries(throttle.jobs))) {
    if (typeof told.rows_per_second === "number") limits.set(of, (limits.get(of) ?? 0) + told.rows_per_second);
  }
  showJobs(stored.jobs, limits);
  if (name !== null) showJob(name, stored.job, stored.slices, stored.quarantine, limits);
  showSignals(throttles);
  showEvents(stored.events);
  return null;
}

/** What the daemon has in memory. */
async function askDaemon() {
  const after = page.history.newest === undefined ? "" : `?after=${encodeURIComponent(page.history.newest)}`;
  const [daemon, history] = await Promise.all([get("/daemon"), get(`/history${after}`)]);
  return { daemon, history };
}

/** What it looks up. */
async function askDatabase(name) {
  const of = name === null ? "" : `/jobs/${encodeURIComponent(name)}`;
  const [jobs, throttles, events, job, slices, quarantine] = await Promise.all([
    get("/jobs"),
    get("/throttle"),
    get(`/events?limit=${EVENTS}${name === null ? "" : `&job=${encodeURIComponent(name)}`}`),
    name === null ? null : orNone(get(of)),
    name === null ? [] : orNone(get(`${of}/slices`)),
    name === null ? [] : orNone(get(`${of}/quarantine`)),
  ]);
  return { jobs, throttles, events, job, slices, quarantine };
}

function refusal(error) {
  if (error instanceof Refused) return error;
  throw error;
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
  page.version ??= daemon.version;
  if (page.version !== daemon.version && !page.isOutdated) {
    page.isOutdated = true;
    say(`The daemon is of version ${daemon.version} now, and this page of ${page.version}: reload it.`, "bad");
  }
}

const ORDER = ["running", "finishing", "paused", "pending", "failed"];

function showJobs(jobs, limits) {
  hide(byId("no-jobs"), jobs.length > 0);
  // Those that have ended well or were cancelled become many: the older ones are folded away.
  const isOver = (job) => ["cancelled", "complete"].includes(job.state);
  const endedAt = (job) => Date.parse(job.finished_at ?? job.submitted_at);
  const over = jobs.filter(isOver).sort((one, other) => endedAt(other) - endedAt(one));
  const others = jobs.filter((job) => !isOver(job)).sort((one, other) => ORDER.indexOf(one.state) - ORDER.indexOf(other.state));
  const [shown, folded] = [[...others, ...over.slice(0, ENDED_JOBS)], over.slice(ENDED_JOBS)];
  showCards(byId("jobs"), shown, limits);
  showCards(byId("ended-jobs"), folded, limits);
  hide(byId("ended"), folded.length === 0);
  text(byId("ended-told"), `${count(folded.length)} more that have ended`);
  const underWay = jobs.filter((job) => job.state === "running" && (selected() ?? job.name) === job.name);
  document.title = underWay.length === 0 ? "backfilld" : `${Math.floor(100 * underWay[0].progress)} % ${underWay[0].name} – backfilld`;
}

function showCards(parent, jobs, limits) {
  each(parent, jobs, (job) => job.name, card.make(actAndLook), (node, job) => {
    card.update(node, job, limits.get(job.name), page.daemon.takes_changes);
  });
}

/** What a button has changed is shown at once. */
async function actAndLook(action, name, button) {
  await act(action, name, button);
  await turn();
}

function showJob(name, job, slices, quarantine, limits) {
  showCards(byId("job-card"), job === null ? [] : [job], limits);
  text(byId("job-heading"), job === null ? `There is no job ${name}` : name);
  if (job === null) return;
  text(byId("slices-told"), `${count(job.slices_done)} of ${count(job.slices_total)} done, ${count(job.workers)} worked on now${job.sweep > 0 ? `; sweep ${job.sweep}` : ""}${only(slices)}.`);
  rows(byId("slices"), slices.slice(0, ROWS), (slice) => `${slice.sweep}/${slice.number}`, (slice) => [
    String(slice.number), slice.partition ?? "", key(slice.first_key), slice.finished_at ? "done" : key(slice.cursor_key), key(slice.last_key),
    [count(slice.rows_scanned), "number"], [count(slice.rows_changed), "number"], [slice.owner ? count(slice.rows_per_second) : "", "number"], slice.owner ?? "",
  ]);
  text(byId("quarantine-told"), quarantine.length === 0 ? "No row is set aside." : `${some(job.rows_quarantined, "row")} could not be changed${only(quarantine)}.`);
  hide(byId("quarantine-table"), quarantine.length === 0);
  rows(byId("quarantine"), quarantine.slice(0, ROWS), (row) => key(row.key), (row) => [key(row.key), row.sqlstate, [row.message, "text"], [time(row.at), "time"]]);
  text(byId("spec"), JSON.stringify(job.spec, null, 2));
}

function only(all) {
  return all.length > ROWS ? `; ${ROWS} are shown` : "";
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
  // A replica is read in seconds and in bytes.
  const same = (one) => (other) => one.signal === other.signal && one.subject === other.subject && one.unit === other.unit;
  const signals = old.signals.map((one) => ({ ...one, ...line(one, news.signals.find(same(one))) }));
  for (const one of news.signals) {
    if (!old.signals.some(same(one))) signals.push({ ...one, ...line(undefined, one) });
  }
  // What was not read within the hour is gone.
  const isRead = (of) => of.value.some((value) => value !== null);
  page.history = {
    at: at.slice(Math.max(0, from)),
    jobs: Object.fromEntries(Object.entries(jobs).filter(([, of]) => isRead(of))),
    signals: signals.filter(isRead),
    newest: news.at.at(-1) ?? old.newest,
  };
}

/**
 * One chart of the rates, then one for each signal and unit. The rate of a job is that of all daemons, its limit that of this one: beside others it
 * would say nothing.
 */
function drawn(name) {
  const { jobs, signals } = page.history;
  const rates = Object.entries(jobs).filter(([of]) => name === null || of === name);
  const fastest = rates.sort(([, one], [, other]) => last(other) - last(one)).slice(0, LINES_OF_A_CHART);
  // So that they keep their colours.
  const drawnRates = fastest.sort(([one], [other]) => (one < other ? -1 : 1));
  const title = name !== null ? "Rate" : rates.length === drawnRates.length ? "Rate of each job" : `Rate of the ${LINES_OF_A_CHART} fastest jobs`;
  const all = rates.length === 0 ? [] : [{ title, unit: "rows/s", lines: drawnRates.map(([of, line]) => ({ name: of, values: line.value, limits: page.isOfSeveral ? line.limit.map(() => null) : line.limit })) }];
  const groups = new Map();
  for (const signal of signals) {
    const title = `${signal.signal}${signal.unit === "bytes" ? ", bytes" : ""}`;
    if (!groups.has(title)) groups.set(title, { title: TITLES[title] ?? title.replaceAll("_", " "), unit: signal.unit, lines: [] });
    groups.get(title).lines.push({ name: signal.subject || "now", values: signal.value, limits: signal.limit });
  }
  return [...all, ...groups.values()];
}

function last(line) {
  return line.value.at(-1) ?? -1;
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
    [typeof of.utilisation === "number" ? `${Math.round(100 * of.utilisation)} %` : "–", "number"], of.verdict, [of.reason, "text"],
  ]);
}

function showEvents(events) {
  rows(byId("events"), [...events].reverse(), (event) => String(event.id), (event) => [
    [time(event.at), "time"], event.job ?? "", event.kind, [event.reason, "text"], event.actor,
  ]);
}

/** `trouble`: what is not told, and why; null when all is. `isAway`: nothing is. */
function connected(trouble, isAway) {
  const is = trouble === null ? "live" : isAway ? "away" : "in part";
  if (trouble === null) page.since = null;
  else page.since ??= new Date();
  mark(byId("connection"), is);
  text(byId("connection"), is);
  document.body.dataset.is = is;
  hide(byId("away"), trouble === null);
  if (isAway) document.title = "away – backfilld";
  if (trouble !== null) text(byId("away"), `${trouble} (since ${time(page.since)}). What is shown is of before; trying again.`);
}

/** One look at a time; one that is wanted meanwhile comes right after it. */
async function turn() {
  clearTimeout(page.next);
  page.lookAgain = page.isLooking;
  if (page.isLooking) return;
  page.isLooking = true;
  try {
    // Nobody looks at a page that is hidden.
    if (document.visibilityState === "visible") {
      const refused = await look();
      if (refused !== undefined) connected(refused && `The daemon is here, but cannot tell how its jobs stand: ${refused.message}`, false);
    } else {
      document.title = "backfilld";
    }
  } catch (error) {
    const what = error instanceof Refused && error.status === 0 ? "The daemon does not answer" : `The daemon's answer cannot be shown: ${error.message}`;
    connected(what, true);
    if (!(error instanceof Refused)) throw error;
  } finally {
    page.isLooking = false;
    page.next = setTimeout(turn, page.lookAgain ? 0 : EVERY_MS);
  }
}

/** Another job, or all of them: shown at once with what is known, then asked for. */
function route() {
  const name = selected();
  hide(byId("overview"), name !== null);
  hide(byId("job"), name === null);
  byId("events").replaceChildren();
  if (name !== null) {
    text(byId("job-heading"), name);
    for (const id of ["slices", "quarantine", "job-card"]) byId(id).replaceChildren();
    for (const id of ["slices-told", "quarantine-told", "spec"]) text(byId(id), "");
    hide(byId("quarantine-table"), true);
    byId("job-heading").focus();
  } else if (page.isRouted) {
    byId("jobs-heading").focus();
  }
  page.isRouted = true;
  turn();
}

// Its address is one of a job to nobody: the page stays where it is.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("content").focus();
});
byId("token-button").addEventListener("click", async () => {
  if ((await askToken("Changes need the daemon's token.")) !== null) say("The token is kept for this tab; the first change shows whether it is the right one.");
});
window.addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") turn();
});
route();
