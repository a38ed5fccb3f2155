// Why a job goes no faster right now, in one sentence, and how grave that is: "", "slow" or "bad".

import { reading, some, time } from "./format.js";

/** A job that was just resumed is taken up within seconds, and soon has its first batch. */
const GRACE_MS = 10 * 1000;
const still = new Map();

/** For how long `what` has been so of a job, in milliseconds; null: it is not so. */
function stillFor(name, what) {
  if (what === null) still.delete(name);
  else if (still.get(name)?.what !== what) still.set(name, { what, since: performance.now() });
  return what === null ? 0 : performance.now() - still.get(name).since;
}

export function why(job, limit) {
  const { zone, reason } = job.throttle;
  const sweep = job.sweep > 0 ? ` (sweep ${job.sweep}, for rows that appeared behind the walk)` : "";
  if (job.state !== "running") still.delete(job.name);
  switch (job.state) {
    case "pending":
      return zone === "paused" ? [`It waits: ${reason}.`, "slow"] : ["It waits for a daemon to take it up.", ""];
    case "paused":
      if (zone === "paused") return [`Paused: ${reason}.`, "slow"];
      return [job.resume_at ? `Paused until ${time(job.resume_at)}; then it goes on by itself.` : "Paused until somebody resumes it.", "slow"];
    case "running":
      return running(job, limit, sweep);
    case "finishing":
      return zone === "paused" && reason ? [`All rows are done; the finish waits: ${reason}.`, "slow"] : ["All rows are done; the finishing steps are under way.", ""];
    case "complete":
      return job.rows_quarantined > 0 ? [`Complete, but ${some(job.rows_quarantined, "row")} could not be changed.`, "bad"] : ["", ""];
    case "failed":
      return [`Failed: ${job.error ?? "no reason was written down"}`, "bad"];
    default:
      return [job.error ?? "", ""];
  }
}

function running(job, limit, sweep) {
  const { zone, reason } = job.throttle;
  const idle = stillFor(job.name, zone === "paused" ? null : job.workers === 0 ? "no worker" : job.rows_per_second === 0 ? "no batch" : null);
  if (zone === "paused") return [`Stands still: ${reason}${sweep}.`, "bad"];
  if (job.workers === 0) return idle < GRACE_MS ? ["It waits for a daemon to take it up.", ""] : ["No daemon works on it now.", "bad"];
  // A daemon of before this key sends none.
  if (job.retrying) {
    // Of several slices the others may go on.
    if (job.workers === 1 || job.rows_per_second === 0) return [`It makes no headway: ${job.retrying}${sweep}.`, "bad"];
    const [told, grave] = pace(zone, reason, limit, sweep);
    return [`${told} In one of its slices ${job.retrying}.`, grave || "slow"];
  }
  // The pace is that of the last 30 seconds.
  if (job.rows_per_second === 0 && idle >= GRACE_MS && ["open", "capped"].includes(zone)) {
    return ["No batch was committed in the last 30 seconds: one is slow, waits for a lock, or could not begin. The daemon's log tells which.", "bad"];
  }
  return pace(zone, reason, limit, sweep);
}

/** How fast it may go, and why. */
function pace(zone, reason, limit, sweep) {
  const held = limit === undefined ? "" : `, at most ${reading(limit, "rows/s")} for now`;
  switch (zone) {
    case "cut":
      return [`Slowed down: ${reason}${held}${sweep}.`, "bad"];
    case "ease":
    case "hold":
      return [`Held${zone === "ease" ? " back" : " as it is"}: ${reason}${held}${sweep}.`, "slow"];
    case "capped":
      return [`As fast as it may: ${reason}${sweep}.`, ""];
    default:
      return [`Nothing holds it back${limit === undefined ? "" : `; the throttle lets it have ${reading(limit, "rows/s")} and more as it goes`}${sweep}.`, ""];
  }
}
