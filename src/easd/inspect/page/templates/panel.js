// One system's text: its rule, its figures, its tokens.

import { make } from "./dom.js";
import { CONDITIONS, CONDITION_NAMES, conditionsMet, isCaught, replay } from "./gate.js";
import { Text, examinedRow, fate } from "./model.js";
import { Overview } from "./overview.js";
import { summaryOf } from "./summary.js";
import { named, visible } from "./visible.js";
import { outcome, percent, thresholdWords } from "./words.js";

export class Panel {
  text = new Text();
  /** The conditions that the rule's gate asks; all of them for a rule without. */
  asked = CONDITIONS;
  /** Examined rows of all texts of the run, where it has several. */
  examined = [];
  /** The highest entropy, in nats, and one that few tokens exceed. */
  highest = 0;
  usual = 0;
  /** Entropy that is drawn at full height; the page sets it. */
  top = 1;
  #elements = [];
  #caught = [];
  #current = 0;
  #marked = null;
  #line = null;
  #breaks = 0; // That end the line so far.
  #indent = ""; // Of the line to come.

  /** `onPoint(panel, index, how)` is told where the reader points; index null when nowhere. */
  constructor({ run, vocabulary }, onPoint) {
    this.run = run;
    this.vocabulary = vocabulary;
    this.name = run.config.rule.name;
    this.asked = run.config.rule.conditions ?? CONDITIONS;
    this.summary = make("div", { class: "summary" });
    this.state = make("p", { class: "state soft" });
    this.caught = make("p", { class: "caught-line" });
    this.difference = make("p", { class: "soft" });
    this.list = make("div", { class: "text", role: "listbox", "aria-label": `Text decoded by ${this.name}`, tabindex: "0" });
    this.overview = new Overview((index, pressed) => (pressed ? this.focus(index) : onPoint(this, index, "hover")));
    this.element = make(
      "section",
      { class: "panel", "aria-label": `Rule ${this.name}` },
      make("h2", {}, this.name, " ", make("small", { text: thresholdWords(run.config.rule) })),
      this.summary,
      this.overview.element,
      this.caught,
      this.difference,
      this.list,
      this.state,
    );
    this.#listen(onPoint);
  }

  showSummary(summary, texts) {
    this.summary.replaceChildren(...summaryOf(this.run, summary, texts));
  }

  /** Starts over with an empty text. */
  clear() {
    this.text = new Text();
    this.#elements = [];
    this.#caught = [];
    this.#current = 0;
    this.#marked = null;
    this.list.replaceChildren();
    this.list.tabIndex = 0;
    this.#line = null;
    this.#breaks = 0;
    this.#indent = "";
    this.overview.point(null);
  }

  add(rows) {
    this.text.add(rows);
    const lines = [];
    for (let i = this.#elements.length; i < this.text.tokens.length; i++) this.#append(this.text.tokens[i], i, lines);
    this.list.append(...lines);
    const entropies = sortedEntropies(this.text.tokens);
    this.highest = entropies.at(-1) ?? 0;
    this.usual = entropies[Math.floor(0.95 * entropies.length)] ?? 0;
    if (this.#elements.length && this.list.tabIndex === 0) {
      this.list.tabIndex = -1;
      this.#elements[0].tabIndex = 0;
    }
  }

  /** Marks what the gate would catch; touches only tokens for which that changes. */
  apply(thresholds) {
    this.list.style.setProperty("--top", this.top);
    for (const line of this.list.children) line.style.setProperty("--tau", Math.min(thresholds.tauH, this.top));
    this.text.tokens.forEach((token, i) => {
      const row = examinedRow(token);
      const caught = row !== null && isCaught(conditionsMet(row, thresholds), this.asked);
      if (caught !== (this.#caught[i] ?? false)) this.#elements[i].classList.toggle("caught", caught);
      this.#caught[i] = caught;
    });
    this.overview.show(this.text.tokens, this.#caught, { tauH: thresholds.tauH, top: this.top });
    const found = replay(this.text.examined, thresholds, this.asked);
    this.caught.textContent = this.#caughtWords(found, thresholds);
  }

  #caughtWords({ examined, caught, met }, thresholds) {
    if (!examined) return "this rule examines no draft tokens";
    const share = (found) => `${found.caught} of ${found.examined} examined (${percent(found.caught / found.examined)})`;
    const alone = CONDITIONS.map((name) => `${CONDITION_NAMES[name]} ${met[name]}`).join(", ");
    const whole = this.examined.length ? `; in the whole run ${share(replay(this.examined, thresholds, this.asked))}` : "";
    return `◆ catches ${share({ examined, caught })}${whole}. Met alone: ${alone}.`;
  }

  /** Shows where this text leaves another panel's; `index` null where it does not. */
  markDifference(index, { name: other, run }) {
    if (this.#marked === `${index} ${other}`) return;
    this.#marked = `${index} ${other}`;
    this.list.querySelector(".difference")?.remove();
    if (index === null) {
      this.difference.textContent = `no difference from ${other}`;
      return;
    }
    const mark = make("span", { class: "difference", text: `▼ differs from ${other}` });
    const element = this.#elements[index];
    if (element) element.before(mark);
    else this.list.lastElementChild?.append(mark);
    const jump = make("button", { type: "button", text: `First difference from ${other}: token ${index + 1}` });
    jump.addEventListener("click", () => this.focus(index));
    this.difference.replaceChildren(jump);
    const shared = run.config.noise === "shared" && this.run.config.noise === "shared";
    if (!shared) this.difference.append(" by chance, too: noise is not shared");
  }

  focus(index) {
    this.#elements[Math.min(Math.max(index, 0), this.#elements.length - 1)]?.focus();
  }

  #append(token, index, lines) {
    const [, space, word, breaks = "", indent] = token.row.text.match(/^( *)(.*?)(\n+)?([ \t]*)$/s);
    // A line break that follows another stays in the line that they end.
    if (!this.#line || (this.#breaks && (word || !breaks))) {
      lines.push((this.#line = make("div", { class: this.#breaks > 1 ? "row apart" : "row" }, this.#indent)));
      this.#breaks = 0;
    }
    const shown = visible(word).replaceAll("\n", "⏎") + "⏎".repeat(breaks.length);
    const element = this.#element(token, index, shown || space);
    this.#line.append(shown ? space : "", element);
    this.#elements.push(element);
    this.#breaks += breaks.length;
    if (breaks) this.#indent = indent;
    else this.#line.append(indent);
  }

  #element(token, index, shown) {
    const kind = fate(token);
    const quiet = kind === "accepted" || kind === "drawn";
    const element = make("span", { class: `t ${kind}`, role: "option", tabindex: "-1", "data-i": index });
    if (!quiet) element.setAttribute("aria-label", `${named(token.row.text)}, ${outcome(token)}`);
    if (kind === "penalised") element.append(make("s", { text: named(token.refused.text) }), make("i", { text: "→" }));
    // Spaces alone keep their width where nothing happened, and are named where something did.
    element.append(shown.trim() || (shown && quiet) ? shown : named(token.row.text));
    const row = token.refused ?? token.row;
    element.style.setProperty("--d", row.draft_entropy ?? 0);
    element.style.setProperty("--t", row.target_entropy ?? 0);
    return element;
  }

  #listen(onPoint) {
    const indexOf = (event) => {
      const element = event.target.closest(".t");
      return element ? Number(element.dataset.i) : null;
    };
    this.list.addEventListener("pointerover", (event) => {
      const index = indexOf(event);
      if (index !== null) onPoint(this, index, "hover");
    });
    this.list.addEventListener("pointerleave", () => onPoint(this, null, "hover"));
    this.overview.element.addEventListener("pointerleave", () => onPoint(this, null, "hover"));
    this.list.addEventListener("focusin", (event) => {
      const index = indexOf(event);
      if (index === null) return;
      const before = this.#elements[this.#current];
      before.tabIndex = -1;
      before.removeAttribute("aria-selected");
      this.#current = index;
      event.target.tabIndex = 0;
      event.target.setAttribute("aria-selected", "true");
      onPoint(this, index, "focus");
    });
    this.list.addEventListener("click", (event) => {
      const index = indexOf(event);
      if (index !== null) this.focus(index);
    });
    this.list.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const to = this.#target(event.key);
      if (to === null) return;
      event.preventDefault();
      this.focus(to);
    });
  }

  #target(key) {
    const at = this.#current;
    switch (key) {
      case "ArrowRight":
        return at + 1;
      case "ArrowLeft":
        return at - 1;
      case "ArrowDown":
        return this.#beside(at, 1);
      case "ArrowUp":
        return this.#beside(at, -1);
      case "Home":
        return 0;
      case "End":
        return this.#elements.length - 1;
      case "n":
        return this.#nextRefusal(at, 1);
      case "p":
        return this.#nextRefusal(at, -1);
      default:
        return null;
    }
  }

  #nextRefusal(at, step) {
    for (let i = at + step; i >= 0 && i < this.text.tokens.length; i += step) {
      if (this.text.tokens[i].refused) return i;
    }
    return at;
  }

  /** The token nearest below or above in the next line. */
  #beside(at, step) {
    const from = this.#elements[at].getBoundingClientRect();
    let best = at;
    let distance = Infinity;
    let line = null;
    for (let i = at + step; i >= 0 && i < this.#elements.length; i += step) {
      const box = this.#elements[i].getBoundingClientRect();
      if (Math.abs(box.top - from.top) < 4) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) >= 4) break;
      const away = Math.abs(box.left - from.left);
      if (away < distance) [best, distance] = [i, away];
    }
    return best;
  }
}

function sortedEntropies(tokens) {
  const rows = tokens.map(({ row, refused }) => refused ?? row);
  return rows.flatMap((row) => [row.draft_entropy ?? 0, row.target_entropy ?? 0]).sort((a, b) => a - b);
}
