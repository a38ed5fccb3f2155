// Why a job goes no faster right now, in one sentence, and how grave that is: "", "slow" or "bad".

import { reading, some } from "./format.js";

export function why(job, limit) {
  const { zone, reason } = job.throttle;
  const sweep = job.sweep > 0 ? ` (sweep ${job.sweep}, for rows that appeared behind the walk)` : "";
  switch (job.state) {
    case "pending":
      return zone === "paused" ? [`It waits: ${reason}.`, "slow"] : ["It waits for a daemon to take it up.", ""];
    case "paused":
      return [reason ? `Paused: ${reason}.` : "Paused until somebody resumes it.", "slow"];
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
  if (zone === "paused") return [`Stands still: ${reason}${sweep}.`, "bad"];
  if (job.workers === 0) return ["No daemon works on it now.", "bad"];
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
