// Numbers and settings in words.

import { fate } from "./model.js";
import { visible } from "./visible.js";

export const number = (value, digits = 2) =>
  value === null || value === undefined ? "none" : value.toFixed(digits);

/** A probability with three digits, or "<0.001". */
export function probability(value) {
  if (value === null) return "none";
  return value > 0 && value < 0.0005 ? "<0.001" : value.toFixed(3);
}

export const percent = (share) =>
  share === null || share === undefined ? "none" : `${(100 * share).toFixed(1)} %`;

export const count = (found, what) => `${found} ${what}${found === 1 ? "" : "s"}`;

/** A setting's value, lists and infinities included. */
export function setting(value) {
  if (Array.isArray(value)) return value.map(setting).join(" + ") || "none";
  if (value === null) return "by default";
  return typeof value === "number" && !Number.isInteger(value)
    ? String(Number(value.toPrecision(4)))
    : visible(String(value));
}

const THRESHOLDS = ["tau_h", "tau_o", "top_n", "rate"];

/** A rule's thresholds in one line, without its name. */
export function thresholdWords(rule) {
  return THRESHOLDS.filter((name) => name in rule)
    .map((name) => `${name} ${setting(rule[name])}${name === "tau_h" ? " nats" : ""}`)
    .join(", ");
}

/** The outcome at a token's position, in words. */
export function outcome(token) {
  return fate(token) === "penalised" ? "penalised, replaced" : fate(token);
}
