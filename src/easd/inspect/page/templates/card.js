// The card of one token: its outcome, probabilities, signals, and both models' top tokens.

import { make } from "./dom.js";
import { CONDITIONS, CONDITION_NAMES, conditionsMet, isCaught, sharedTop } from "./gate.js";
import { examinedRow, fate } from "./model.js";
import { named } from "./visible.js";
import { number, outcome, probability } from "./words.js";

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

/** The refused and the emitted token with both models' probabilities. */
function candidates(token) {
  const lines = token.refused
    ? [
        ["removed", token.refused],
        ["instead", token.row],
      ]
    : [[token.row.outcome === "accepted" ? "drafted" : "drawn", token.row]];
  return make(
    "table",
    { class: "numbers" },
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        ...["", "token", "draft", "target"].map((text) =>
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
          make("td", { text: probability(row.draft_prob) }),
          make("td", { text: probability(row.target_prob) }),
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
  const table = (model) =>
    make(
      "table",
      { class: `top ${model}` },
      make("caption", { text: `${model}’s top tokens` }),
      make(
        "tbody",
        {},
        ...row[`${model}_top_tokens`].map((id, i) => topToken(id, row[`${model}_top_probs`][i])),
      ),
    );
  const topToken = (id, prob) => {
    const place = id === token.row.token ? "chosen" : id === token.refused?.token ? "removed" : "";
    const word = make(
      "th",
      { scope: "row", class: `word ${place}` },
      named(vocabulary.get(id) ?? `#${id}`),
    );
    if (shared.includes(id)) word.prepend(make("span", { class: "both", text: "● " }));
    const line = make("tr", {}, word, make("td", { text: probability(prob) }));
    line.style.backgroundSize = `${100 * prob}% 100%`;
    return line;
  };
  const models = ["draft", "target"].filter((model) => row[`${model}_top_tokens`].length);
  const legend = make(
    "p",
    { class: "soft" },
    make("span", { class: "both", text: "● " }),
    "top token of both models; underlined: in the text",
  );
  return make("div", { class: "tops" }, ...models.map(table), legend);
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
