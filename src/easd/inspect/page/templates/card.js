// The card of one token: its outcome, probabilities, signals, and the top tokens of both models and
// of the rule.

import { make } from "./dom.js";
import { CONDITIONS, CONDITION_NAMES, conditionsMet, isCaught, sharedTop } from "./gate.js";
import { examinedRow, fate } from "./model.js";
import { named } from "./visible.js";
import { number, outcome, percent, probability } from "./words.js";

const HEADS = { draft: "draft", target: "target", law: "rule" };

/** The card's content for a token of a panel's text. */
export function card(panel, index, thresholds) {
  const token = panel.text.tokens[index];
  const seen = token.refused ?? token.row;
  return [
    make(
      "h2",
      {},
      make("span", { class: "word", text: named(token.row.text) }),
      " ",
      make("span", { class: `badge ${fate(token)}`, text: outcome(token) }),
    ),
    make("p", {
      class: "soft",
      text: `${panel.name}: token ${index + 1} of ${panel.text.tokens.length}, position ${token.row.position}, step ${token.row.step}`,
    }),
    make("p", { text: story(token) }),
    candidates(token),
    acceptance(token, panel.run.config.coupling),
    signals(seen, thresholds, panel.top),
    verdict(token, thresholds, panel.asked),
    topTokens(token, seen, panel.vocabulary),
  ].filter(Boolean);
}

/** One sentence on the outcome, also for screen readers. */
export function story(token) {
  const refused = token.refused && `‘${named(token.refused.text)}’`;
  const row = `‘${named(token.row.text)}’`;
  const dropped = token.dropped.length
    ? ` Drafted after it and discarded: ${token.dropped.map((one) => named(one.text)).join(" ")}`
    : "";
  switch (fate(token)) {
    case "accepted":
      return "Drafted, examined and kept.";
    case "replacement":
      return `The draft’s ${refused} failed the acceptance test; ${row} replaced it.${dropped}`;
    case "penalised":
      return `The gate refused the draft’s ${refused}; ${row} replaced it.${dropped}`;
    case "bonus":
      return "Drawn after a whole block was kept.";
    default:
      return "Drawn here; nothing was drafted.";
  }
}

/** The refused and the emitted token with the probabilities of both models, and of the rule's law. */
function candidates(token) {
  const lines = token.refused
    ? [
        ["removed", token.refused],
        ["instead", token.row],
      ]
    : [[token.row.outcome === "accepted" ? "drafted" : "drawn", token.row]];
  const sources = ["draft", "target"];
  if (lines.some(([, row]) => row.law_prob !== null)) sources.push("law");
  return make(
    "table",
    { class: "numbers" },
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        ...["", "token", ...sources.map((source) => HEADS[source])].map((text) =>
          make(text ? "th" : "td", { text, scope: text ? "col" : undefined }),
        ),
      ),
    ),
    make(
      "tbody",
      {},
      ...lines.map(([what, row]) =>
        make(
          "tr",
          {},
          make("th", { scope: "row", text: what }),
          make("td", { class: `word ${what}`, text: named(row.text) }),
          ...sources.map((source) => make("td", { text: probability(row[`${source}_prob`]) })),
        ),
      ),
    ),
  );
}

function acceptance(token, coupling) {
  const row = examinedRow(token);
  if (!row || row.accept_prob === null) return null;
  const meter = make("div", { class: "meter", "aria-hidden": "true" }, share(row.accept_prob));
  let test = `uniform ${number(row.uniform, 3)}`;
  if (coupling === "shared") test += "; noise is shared, so no test";
  else meter.append(tick(row.uniform));
  return make(
    "div",
    { class: "line" },
    make("span", { text: "accept probability" }),
    meter,
    make("strong", { text: probability(row.accept_prob) }),
    make("small", { text: test }),
  );
}

function signals(row, thresholds, top) {
  const entropy = (model) => {
    const value = row[`${model}_entropy`];
    const meter = make(
      "div",
      { class: `meter ${model}`, "aria-hidden": "true" },
      share(value / top),
      tick(thresholds.tauH / top),
    );
    return make(
      "div",
      { class: "line" },
      make("span", { text: `${model} entropy` }),
      meter,
      make("strong", { text: value === null ? "no draft" : `${number(value)} nats` }),
    );
  };
  const shared = sharedTop(row, thresholds.topN);
  const dots = Array.from({ length: thresholds.topN }, (_, i) =>
    make("i", { class: i < (shared ?? 0) ? "on" : "" }),
  );
  return make(
    "div",
    { class: "lines" },
    entropy("draft"),
    entropy("target"),
    make(
      "div",
      { class: "line" },
      make("span", { text: "overlap" }),
      make("div", { class: "dots", "aria-hidden": "true" }, ...dots),
      make("strong", {
        text: shared === null ? "no draft" : `${shared} of ${thresholds.topN} shared`,
      }),
    ),
  );
}

/** Whether the gate is open at the thresholds of the sliders. */
function verdict(token, thresholds, asked) {
  const row = examinedRow(token);
  if (!row)
    return make("p", {
      class: "verdict",
      text: "Not examined: gates judge draft tokens only.",
    });
  const met = conditionsMet(row, thresholds);
  const caught = isCaught(met, asked);
  const line = make(
    "p",
    { class: caught ? "verdict caught" : "verdict" },
    make("strong", { text: caught ? "◆ gate open " : "◇ gate closed " }),
  );
  for (const name of CONDITIONS) {
    line.append(
      make("span", {
        class: "condition",
        text: `${met[name] ? "✓" : "✗"} ${CONDITION_NAMES[name]}${asked.includes(name) ? "" : " (not used)"}`,
      }),
      " ",
    );
  }
  return line;
}

function topTokens(token, row, vocabulary) {
  const shared = row.draft_top_tokens.filter((id) => row.target_top_tokens.includes(id));
  const table = (source) =>
    make(
      "table",
      { class: `top ${source}` },
      make("caption", { text: `${HEADS[source]}’s top tokens` }),
      make(
        "tbody",
        {},
        ...row[`${source}_top_tokens`].map((id, i) =>
          topToken(id, row[`${source}_top_probs`][i]),
        ),
      ),
    );
  const word = (id) => named(vocabulary.get(id) ?? `#${id}`);
  const topToken = (id, prob) => {
    const place = id === token.row.token ? "chosen" : id === token.refused?.token ? "removed" : "";
    const head = make("th", { scope: "row", class: `word ${place}` }, word(id));
    if (shared.includes(id)) head.prepend(make("span", { class: "both", text: "● " }));
    const line = make("tr", {}, head, make("td", { text: probability(prob) }));
    line.style.backgroundSize = `${100 * prob}% 100%`;
    return line;
  };
  const sources = Object.keys(HEADS).filter((source) => row[`${source}_top_tokens`].length);
  const legend = make(
    "p",
    { class: "soft" },
    make("span", { class: "both", text: "● " }),
    "top token of both models; underlined: in the text",
  );
  const tables = sources.map(table);
  const parts = [legend, origins(row, word)].filter(Boolean);
  return make("div", { class: `tops of-${tables.length}` }, ...tables, ...parts);
}

/** The draft's own tokens that its top tokens came from, if its vocabulary is not the target's. */
function origins(row, word) {
  if (!row.draft_top_origins?.length) return null;
  const lines = row.draft_top_origins.map((texts, i) => {
    const shares = row.draft_top_origin_shares[i];
    const own = texts.map((text, j) => `${named(text)} ${percent(shares[j])}`).join(", ");
    return make(
      "tr",
      {},
      make("th", { scope: "row", class: "word", text: word(row.draft_top_tokens[i]) }),
      make("td", { class: "word", text: own }),
    );
  });
  return make(
    "table",
    { class: "origins" },
    make("caption", { text: "draft’s own tokens that these came from" }),
    make("tbody", {}, ...lines),
  );
}

function share(value) {
  const bar = make("div", { class: "share" });
  bar.style.width = `${100 * Math.min(Math.max(value, 0), 1)}%`;
  return bar;
}

function tick(value) {
  const mark = make("div", { class: "tick" });
  mark.style.left = `${100 * Math.min(Math.max(value, 0), 1)}%`;
  return mark;
}
