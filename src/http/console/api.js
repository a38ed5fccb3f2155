// Asks the daemon that served this page.

/** No answer at all within this: it is away. */
const PATIENCE_MS = 8000;
/** A change waits for the batch in flight. */
const PATIENCE_OF_CHANGES_MS = 60000;

/** What the daemon says against a request, or that it does not answer (status 0). */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function get(path) {
  return ask(path, {}, PATIENCE_MS);
}

export function change(path, token, body) {
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body ?? {}) }, PATIENCE_OF_CHANGES_MS);
}

async function ask(path, options, patience) {
  let response;
  try {
    response = await fetch(`/api/v1${path}`, { ...options, signal: AbortSignal.timeout(patience) });
  } catch (error) {
    throw new Refused(0, error.name === "TimeoutError" ? `no answer within ${patience / 1000} s` : "the daemon does not answer");
  }
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new Refused(response.status, `an answer that is no JSON (status ${response.status})`);
  }
  if (!response.ok) throw new Refused(response.status, answer.error ?? `status ${response.status}`);
  return answer;
}
