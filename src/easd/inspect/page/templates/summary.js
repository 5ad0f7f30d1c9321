// The figures of a run: acceptance, speed, and wall time by part.

import { make } from "./dom.js";
import { count, number, percent, setting } from "./words.js";

/** Elements for a run's head; `summary` is that of `easd.runs.summary`. */
export function summaryOf(run, summary, texts) {
  return [settings(run.config, texts), ...(summary ? [figures(summary), time(summary)] : [])];
}

function figures(summary) {
  const total = Object.values(summary.seconds).reduce((sum, part) => sum + part, 0);
  const cells = [
    [
      "tokens a second",
      total ? number(summary.tokens / total, 1) : "none",
      `${count(summary.tokens, "token")} in ${number(total)} s`,
    ],
    [
      "acceptance rate",
      percent(summary.acceptance_rate),
      `${summary.accepted} of ${summary.examined} examined`,
    ],
    ["block efficiency", number(summary.block_efficiency), `${count(summary.blocks, "forward")}`],
    ["penalty rate", percent(summary.penalty_rate), `${summary.penalised} penalised`],
  ];
  return make(
    "dl",
    { class: "figures" },
    ...cells.map(([name, value, note]) =>
      make(
        "div",
        {},
        make("dt", { text: name }),
        make("dd", {}, make("strong", { text: value }), make("small", { text: note })),
      ),
    ),
  );
}

function time(summary) {
  const total = Object.values(summary.seconds).reduce((sum, part) => sum + part, 0);
  const parts = Object.entries(summary.seconds).filter(
    ([, seconds]) => total && seconds / total >= 0.0005,
  );
  const bar = make("div", { class: "time", "aria-hidden": "true" });
  for (const [name, seconds] of parts) {
    const piece = make("div", { class: name });
    piece.style.flexGrow = seconds / total;
    bar.append(piece);
  }
  const words = parts.map(([name, seconds]) =>
    make("span", { class: name, text: `${name} ${percent(seconds / total)}` }),
  );
  return make("div", { class: "times" }, bar, make("p", { class: "soft" }, ...words));
}

/** The most important settings, which unfold to all settings. */
function settings(config, texts) {
  const { rule, ...rest } = config;
  const { name, ...fields } = rule;
  const most = [
    count(texts, "text"),
    `gamma ${config.gamma}`,
    `temperature ${setting(config.temperature)}`,
    `seed ${config.seed}`,
    config.coupling ? `${config.coupling} coupling` : "the rule's own coupling",
  ];
  const lines = [["rule", name], ...Object.entries(fields), ...Object.entries(rest)];
  return make(
    "details",
    {},
    make("summary", { text: most.join(" · ") }),
    make(
      "dl",
      { class: "settings" },
      ...lines.flatMap(([key, value]) => [
        make("dt", { text: key }),
        make("dd", { text: setting(value) }),
      ]),
    ),
  );
}
