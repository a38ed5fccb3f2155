// Figures as a person reads them. Never rounded up: 100 % is said of a complete job only.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(number) {
  return number === null || number === undefined ? "–" : whole.format(number);
}

/** `1 row`, `2 rows`. */
export function some(number, what) {
  return `${count(number)} ${what}${number === 1 ? "" : "s"}`;
}

export function percent(progress) {
  return `${(Math.floor(progress * 1000) / 10).toFixed(1)} %`;
}

/** 3725 as `1h 2m 5s`, with two parts at most. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  let left = Math.max(0, Math.floor(seconds));
  const parts = [];
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]]) {
    const of = Math.floor(left / size);
    left -= of * size;
    if (of > 0 || (unit === "s" && parts.length === 0)) parts.push(`${of}${unit}`);
  }
  return parts.slice(0, 2).join(" ");
}

export function time(text) {
  const at = new Date(text);
  const today = at.toDateString() === new Date().toDateString();
  const clock = at.toLocaleTimeString("en-GB");
  return today ? clock : `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock}`;
}

/** A reading in its unit: seconds as ms below one, bytes as MB. */
export function reading(value, unit) {
  if (value === null || value === undefined) return "–";
  switch (unit) {
    case "seconds":
      return Math.abs(value) < 1 ? `${short(value * 1000)} ms` : `${short(value)} s`;
    case "bytes":
      return bytes(value);
    case "rows/s":
      return `${short(value)} rows/s`;
    default:
      return short(value);
  }
}

export function key(values) {
  return values === null || values === undefined ? "–" : values.join(", ");
}

function bytes(value) {
  let [left, unit] = [value, "B"];
  for (const next of ["kB", "MB", "GB", "TB"]) {
    if (Math.abs(left) < 1000) break;
    [left, unit] = [left / 1000, next];
  }
  return `${short(left)} ${unit}`;
}

/** Three digits that count, and all before the point. */
function short(value) {
  if (value === 0) return "0";
  if (Math.abs(value) >= 100) return whole.format(value);
  return String(Number(value.toPrecision(3)));
}

function two(number) {
  return String(number).padStart(2, "0");
}
