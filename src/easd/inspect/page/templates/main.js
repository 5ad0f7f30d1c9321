// The page: panels, sliders, and the card of the token at the pointer or focus.

import { card, story } from "./card.js";
import { byId, make } from "./dom.js";
import { requiredShared } from "./gate.js";
import { Live } from "./live.js";
import { examinedRows, firstDifference, rowsOf } from "./model.js";
import { Panel } from "./panel.js";
import { named, visible } from "./visible.js";
import { count, number } from "./words.js";

const DEFAULTS = { tau_h: 1.5, tau_o: 0.8 };
const ANNOUNCE_AFTER = 400; // ms, so that quick steps through a text are not all read out

class Page {
  #runs = []; // recorded ones
  #panels = [];
  #recorded = { tauH: DEFAULTS.tau_h, leastShared: 4 };
  #thresholds = this.#recorded;
  #focused = null;
  #pointed = null;
  #frame = 0;
  #told = 0;

  constructor() {
    for (const [id, read] of [
      ["tau-h", (value) => ({ tauH: Number(value) })],
      ["tau-o", (value) => ({ leastShared: Number(value) })],
    ]) {
      byId(id).addEventListener("input", (event) => {
        this.#thresholds = { ...this.#thresholds, ...read(event.target.value) };
        this.refresh();
      });
      byId(id).addEventListener("change", () =>
        this.announce(
          this.#panels.map((panel) => `${panel.name}: ${panel.caught.textContent}`).join(" "),
        ),
      );
    }
    byId("recorded").addEventListener("click", () => {
      this.#thresholds = this.#recorded;
      this.#setSliders();
      this.refresh();
    });
    byId("texts").addEventListener("change", (event) => this.#showText(Number(event.target.value)));
    this.#themes();
  }

  /** Shows recorded runs; see `easd.inspect.page.data`. */
  open({ runs }) {
    this.#runs = runs;
    this.start();
    for (const one of runs) {
      const panel = this.panel(one.run, new Map(one.vocabulary));
      panel.showSummary(one.summary, one.texts_in_run);
      for (const text of one.texts) text.rows = rowsOf(text.tokens);
      if (one.texts.length > 1)
        panel.examined = one.texts.flatMap((text) => examinedRows(text.rows));
    }
    const { texts, texts_in_run: all } = runs[0];
    byId("choice").hidden = texts.length < 2;
    byId("texts").replaceChildren(
      ...texts.map((text, i) =>
        make("option", {
          value: String(i),
          text: `${text.sample}: ${named(text.text ?? "(cut off)").slice(0, 60)}`,
        }),
      ),
    );
    if (texts.length > 1 && all > texts.length)
      byId("choice").append(make("small", { text: ` the first ${texts.length} of ${all}` }));
    byId("title").textContent =
      `${visible(runs[0].run.models.pair)} · ${runs.map((one) => one.run.config.rule.name).join(", ")}`;
    this.#showText(0);
  }

  /** Removes all panels. */
  start() {
    this.#panels = [];
    this.#focused = this.#pointed = null;
    byId("panels").replaceChildren();
    byId("shown").hidden = false;
    byId("card").replaceChildren(
      make("p", { class: "soft", text: "Point at a token, or move to it with the arrow keys." }),
    );
  }

  /** A new panel for a run; the first rule with thresholds sets the sliders. */
  panel(run, vocabulary) {
    const rule = run.config.rule.name;
    const same = this.#panels.filter((one) => one.run.config.rule.name === rule).length;
    const name = same ? `${rule} ${same + 1}` : rule;
    const panel = new Panel({ name, run, vocabulary }, (...where) => this.#point(...where));
    this.#panels.push(panel);
    byId("panels").append(panel.element);
    const source = this.#panels.find((one) => "tau_h" in one.run.config.rule) ?? this.#panels[0];
    if (source !== panel) return panel;
    const { tau_h: tauH = DEFAULTS.tau_h, tau_o: tauO = DEFAULTS.tau_o } = source.run.config.rule;
    const topN = source.run.signals.top_n;
    this.#recorded = {
      tauH: tauH === "inf" ? Infinity : tauH,
      leastShared: requiredShared(tauO, topN),
    };
    this.#thresholds = this.#recorded;
    this.#setSliders();
    return panel;
  }

  showPrompt(prompt) {
    byId("prompt").hidden = !prompt;
    byId("prompt").querySelector("pre").textContent = visible(prompt ?? "");
  }

  announce(text) {
    byId("status").textContent = text;
  }

  /** Redraws, at most once per frame. */
  refresh() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#apply();
    });
  }

  #apply() {
    const recorded = Number.isFinite(this.#recorded.tauH) ? this.#recorded.tauH : 0;
    const top = Math.max(...this.#panels.map((panel) => panel.usual), 2 * recorded, 0.5);
    const highest = Math.max(...this.#panels.map((panel) => panel.highest), top);
    byId("tau-h").max = String(Math.ceil(100 * highest) / 100);
    const topN = Math.max(...this.#panels.map((panel) => panel.run.signals.top_n));
    this.#tell("tau-h", `tau_h ${number(this.#thresholds.tauH)} nats`);
    this.#tell("tau-o", `${this.#thresholds.leastShared} of ${topN}`);
    for (const panel of this.#panels) {
      panel.top = top;
      panel.apply(this.#of(panel));
    }
    this.#markDifferences();
    this.#showCard();
  }

  #tell(slider, value) {
    byId(`${slider}-value`).textContent = value;
    byId(slider).setAttribute("aria-valuetext", value);
  }

  #of(panel) {
    return { ...this.#thresholds, topN: panel.run.signals.top_n };
  }

  #setSliders() {
    const topN = Math.max(...this.#panels.map((panel) => panel.run.signals.top_n));
    byId("tau-o").max = topN;
    byId("tau-o").value = this.#thresholds.leastShared;
    byId("tau-h").max = Math.max(this.#thresholds.tauH, Number(byId("tau-h").max)) || 1;
    byId("tau-h").value = this.#thresholds.tauH;
  }

  #showText(index) {
    const { request, prompt } = this.#runs[0].texts[index];
    this.showPrompt(prompt);
    this.#focused = this.#pointed = null;
    this.#panels.forEach((panel, i) => {
      panel.clear();
      const text = this.#runs[i].texts.find((one) => one.request === request);
      if (text?.prompt !== prompt) {
        panel.state.textContent = text
          ? "This run had another prompt."
          : "This run has no such text.";
        return;
      }
      panel.add(text.rows);
      panel.state.textContent = `${count(panel.text.tokens.length, "token")}, ${ending(text)}`;
      panel.text.finished = text.finish_reason !== null;
    });
    this.#apply();
    this.#setSliders();
  }

  #markDifferences() {
    const [first, ...others] = this.#panels;
    if (!others.length) return;
    const found = others.map((panel) => firstDifference(first.text, panel.text));
    others.forEach((panel, i) => panel.markDifference(found[i], first));
    const earliest = found.reduce(
      (best, at, i) => (at !== null && at < (found[best] ?? Infinity) ? i : best),
      0,
    );
    first.markDifference(found[earliest], others[earliest]);
  }

  #point(panel, index, how) {
    const where = index === null ? null : { panel, index };
    if (how === "focus") {
      this.#focused = where;
      clearTimeout(this.#told);
      const told = story(panel.text.tokens[index]);
      this.#told = setTimeout(() => this.announce(told), ANNOUNCE_AFTER);
    }
    this.#pointed = where;
    this.#showCard();
  }

  #showCard() {
    const where = this.#pointed ?? this.#focused;
    for (const panel of this.#panels)
      panel.overview.point(where?.panel === panel ? where.index : null);
    if (where)
      byId("card").replaceChildren(...card(where.panel, where.index, this.#of(where.panel)));
  }

  #themes() {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const button = byId("theme");
    const show = (isDark) => {
      document.documentElement.dataset.theme = isDark ? "dark" : "light";
      button.setAttribute("aria-pressed", String(isDark));
      for (const panel of this.#panels) panel.overview.repaint();
    };
    button.addEventListener("click", () => show(button.getAttribute("aria-pressed") !== "true"));
    dark.addEventListener("change", (event) => show(event.matches));
    show(dark.matches);
  }
}

/** How a text ended, and whether its answer is right where that is known. */
function ending({ finish_reason: reason, correct, answer }) {
  const how =
    { eos: "ended by itself", stop: "ended at a stop", length: "cut at max_new_tokens" }[reason] ??
    "cut off before it ended";
  const grade =
    correct === null || correct === undefined
      ? ""
      : `; answer ${named(answer ?? "none")}: ${correct ? "right" : "wrong"}`;
  return how + grade;
}

const data = JSON.parse(byId("data").textContent);
byId("glossary").append(
  ...data.definitions.flatMap(([name, unit, definition]) => [
    make("dt", {}, `${name} `, make("small", { text: unit })),
    make("dd", { text: definition }),
  ]),
);
const page = new Page();
if (data.runs) page.open(data);
else new Live(page);
