// The gate's conditions over recorded signals, as `easd.core.conditions` asks them.

export const CONDITIONS = ["draft_entropy", "target_entropy", "overlap"];
export const CONDITION_NAMES = {
  draft_entropy: "draft unsure",
  target_entropy: "target unsure",
  overlap: "they agree",
};

/** The least number of shared top tokens that meets tau_o; 4/5 > 0.8 fails in binary. */
export function requiredShared(tauO, topN) {
  return Math.ceil(Number((tauO * topN).toFixed(9)));
}

/** How many top tokens both models have at a row; null where the draft said nothing. */
export function sharedTop(row, topN) {
  return row.overlap === null ? null : Math.round(row.overlap * topN);
}

/** Which conditions a row of the tokens table meets, asked or not. */
export function conditionsMet(row, { tauH, leastShared, topN }) {
  const above = (entropy) => entropy !== null && Math.fround(entropy) > Math.fround(tauH);
  const shared = sharedTop(row, topN);
  return {
    draft_entropy: above(row.draft_entropy),
    target_entropy: above(row.target_entropy),
    overlap: shared !== null && shared >= leastShared,
  };
}

/** Whether the gate, asked of these conditions, would be open. */
export function isCaught(met, asked) {
  return asked.every((name) => met[name]);
}

/** Counts over examined rows: all, caught, and those that meet each condition. */
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
