// From rows of the tokens table to the tokens of a text.

const EXAMINED = new Set(["accepted", "rejected", "penalised"]);

/** One text as it was decoded; rows may come step by step. */
export class Text {
  /**
   * Tokens of the text: `row` was emitted, `refused` is the draft token it replaces, `dropped` are
   * draft tokens discarded after that, and `drafted` tells whether the block had draft tokens.
   */
  tokens = [];
  /** Examined rows. */
  examined = [];
  finished = false;
  #refused = null;
  #dropped = [];

  add(rows) {
    for (const row of rows) {
      if (EXAMINED.has(row.outcome)) this.examined.push(row);
      if (row.outcome === "rejected" || row.outcome === "penalised") {
        this.#refused = row;
      } else if (row.outcome === "discarded") {
        this.#dropped.push(row);
      } else {
        const drafted = this.examined.at(-1)?.step === row.step;
        this.tokens.push({ row, refused: this.#refused, dropped: this.#dropped, drafted });
        this.#refused = null;
        this.#dropped = [];
      }
    }
  }
}

/** The outcome at a token's position: accepted, replacement, penalised, bonus, or drawn without a draft. */
export function fate(token) {
  if (token.refused?.outcome === "penalised") return "penalised";
  return token.drafted ? token.row.outcome : "drawn";
}

/** The row whose signals the gate judged; a bonus token has none. */
export function examinedRow(token) {
  return token.refused ?? (token.row.outcome === "accepted" ? token.row : null);
}

/** Rows of a table that is stored by columns. */
export function rowsOf(columns) {
  const names = Object.keys(columns);
  return columns[names[0]].map((_, i) =>
    Object.fromEntries(names.map((name) => [name, columns[name][i]])),
  );
}

/** Index of the first different token; null if there is none so far. */
export function firstDifference(text, other) {
  const common = Math.min(text.tokens.length, other.tokens.length);
  for (let i = 0; i < common; i++) {
    if (text.tokens[i].row.token !== other.tokens[i].row.token) return i;
  }
  const ended = text.finished && other.finished;
  return ended && text.tokens.length !== other.tokens.length ? common : null;
}

/** The examined rows of a text. */
export function examinedRows(rows) {
  return rows.filter((row) => EXAMINED.has(row.outcome));
}
