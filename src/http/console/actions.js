// Changes: each needs the token, and those that cannot be taken back a second word.

import { Refused, change, get } from "./api.js";
import { byId, element, mark, text } from "./dom.js";

const KEPT = "backfilld.token";
const TOLD_FOR_MS = 30 * 1000;
/** What is tuned most, where it stands in the spec, and what may be written. */
const FIELDS = [
  ["workers", "walk", "workers", "a whole number"],
  ["rows_per_second", "limits", "rows_per_second", "0: only the throttle decides"],
  ["batch.target_duration", "batch", "target_duration", "such as 50ms"],
  ["batch.max_rows", "batch", "max_rows", "a whole number"],
  ["limits.lock_timeout", "limits", "lock_timeout", "such as 500ms"],
  ["limits.max_retries", "limits", "max_retries", "a whole number"],
];

/** Shows a dialog until it is closed; whether it was agreed to. Browsers give the focus back themselves. */
function shown(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    const closed = () => {
      // Told late, when it is open again: what closed it is no answer to what it asks now.
      if (dialog.open) return;
      dialog.removeEventListener("close", closed);
      done(dialog.returnValue === "ok");
    };
    dialog.addEventListener("close", closed);
  });
}

/** Tells what came of a change. What went well need not stay. */
export function say(told, grave = "") {
  const line = byId("said");
  mark(line, grave);
  text(line, told);
  clearTimeout(going);
  if (grave === "") going = setTimeout(() => text(line, ""), TOLD_FOR_MS);
}
let going;

export async function askToken(reason) {
  text(byId("token-why"), reason);
  byId("token").value = "";
  if (!(await shown(byId("token-dialog")))) return null;
  const token = byId("token").value.trim();
  byId("token").value = "";
  if (token === "") return null;
  sessionStorage.setItem(KEPT, token);
  return token;
}

/** Which change was asked for last. */
let latest = 0;

/** Carries out a change, asking for the token where it is not known or not right. Whether it was done. */
async function carryOut(path, body) {
  const mine = (latest += 1);
  let token = sessionStorage.getItem(KEPT) ?? (await askToken("Changes need the daemon's token."));
  while (token !== null) {
    try {
      // No header can have others.
      if (/[^\x21-\x7e]/.test(token)) throw new Refused(401, "it has characters that no token can have");
      const answer = await change(path, token, body);
      // A pause that waited for its batch is old news once the job was resumed.
      if (mine === latest) say(answer.told);
      return true;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.status !== 401) throw error;
      sessionStorage.removeItem(KEPT);
      token = await askToken(`Not accepted: ${error.message}.`);
    }
  }
  say("Nothing was changed.");
  return false;
}

/** What the buttons do. */
export async function act(action, name, button) {
  // Pressed twice.
  if (button.getAttribute("aria-busy") === "true") return;
  button.setAttribute("aria-busy", "true");
  try {
    if (action === "tune") {
      await tune(name);
    } else if (action !== "cancel" || (await sure(name))) {
      say(action === "pause" || action === "cancel" ? `${name}: waiting for the batch in flight …` : "");
      await carryOut(`/jobs/${encodeURIComponent(name)}/${action}`);
    }
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    // A change may be made, and only its answer be lost.
    const isKnown = error.status >= 400 && error.status < 500;
    say(`${isKnown ? `${name} was not changed` : `It is not known whether ${name} was changed`}: ${error.message}`, "bad");
  } finally {
    button.removeAttribute("aria-busy");
  }
}

function sure(name) {
  text(byId("sure-heading"), `Cancel ${name}?`);
  text(byId("sure-told"), "What it has changed stays changed; its trigger, if it has one, goes. A retry goes on from its cursor.");
  text(byId("sure-button"), `Cancel ${name}`);
  return shown(byId("sure-dialog"));
}

async function tune(name) {
  let spec;
  try {
    ({ spec } = await get(`/jobs/${encodeURIComponent(name)}`));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    say(`${name} was not changed: ${error.message}`, "bad");
    return;
  }
  const before = FIELDS.map(([, section, key]) => String(spec[section]?.[key] ?? ""));
  const inputs = FIELDS.map(([key, , , told], index) => {
    const input = element("input", { name: key, value: before[index], placeholder: told, autocomplete: "off" });
    return [element("label", {}, key, input), input];
  });
  byId("tune-fields").replaceChildren(...inputs.map(([label]) => label));
  text(byId("tune-heading"), `Tune ${name}`);
  text(byId("tune-error"), "");
  for (;;) {
    if (!(await shown(byId("tune-dialog")))) return;
    const changes = {};
    FIELDS.forEach(([key], index) => {
      const value = inputs[index][1].value.trim();
      if (value !== before[index]) changes[key] = value === "" ? null : number(value);
    });
    if (Object.keys(changes).length === 0) {
      say("Nothing was changed.");
      return;
    }
    try {
      await carryOut(`/jobs/${encodeURIComponent(name)}/tune`, changes);
      return;
    } catch (error) {
      // What was written stays there to be corrected.
      if (!(error instanceof Refused)) throw error;
      text(byId("tune-error"), error.message);
    }
  }
}

function number(value) {
  return /^-?\d+(\.\d+)?$/.test(value) ? Number(value) : value;
}
