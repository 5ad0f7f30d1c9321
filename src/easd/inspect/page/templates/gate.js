// The gate's conditions on recorded signals, the same as `easd.core.gate`.

export const CONDITIONS = ["draft_entropy", "target_entropy", "overlap"];
export const CONDITION_NAMES = {
  draft_entropy: "draft unsure",
  target_entropy: "target unsure",
  overlap: "they agree",
};

/** The smallest number of shared top tokens that meets tau_o, safe from rounding. */
export function requiredShared(tauO, topN) {
  return Math.ceil(Number((tauO * topN).toFixed(9)));
}

/** The number of shared top tokens at a row; null without a draft. */
export function sharedTop(row, topN) {
  return row.overlap === null ? null : Math.round(row.overlap * topN);
}

/** Whether a row of the tokens table meets each condition. */
export function conditionsMet(row, { tauH, leastShared, topN }) {
  const above = (entropy) => entropy !== null && Math.fround(entropy) > Math.fround(tauH);
  const shared = sharedTop(row, topN);
  return {
    draft_entropy: above(row.draft_entropy),
    target_entropy: above(row.target_entropy),
    overlap: shared !== null && shared >= leastShared,
  };
}

/** Whether a gate with the conditions `asked` is open. */
export function isCaught(met, asked) {
  return asked.every((name) => met[name]);
}

/** Numbers of examined rows: all, those where the gate is open, those that meet each condition. */
export function replay(rows, thresholds, asked) {
  const found = {
    examined: rows.length,
    caught: 0,
    met: Object.fromEntries(CONDITIONS.map((name) => [name, 0])),
  };
  for (const row of rows) {
    const met = conditionsMet(row, thresholds);
    for (const name of CONDITIONS) found.met[name] += met[name];
    found.caught += isCaught(met, asked);
  }
  return found;
}
