// One system's text: rule, figures and tokens.

import { make } from "./dom.js";
import { CONDITIONS, CONDITION_NAMES, conditionsMet, isCaught, replay } from "./gate.js";
import { Lines } from "./lines.js";
import { Text, examinedRow } from "./model.js";
import { moved } from "./moves.js";
import { Overview } from "./overview.js";
import { summaryOf } from "./summary.js";
import { percent, thresholdWords } from "./words.js";

export class Panel {
  text = new Text();
  /** Examined rows of all texts, if the run has several. */
  examined = [];
  /** The highest entropy and its 95 % quantile, in nats. */
  highest = 0;
  usual = 0;
  /** Entropy of full height in drawings; set by the page. */
  top = 1;
  #caught = [];
  #current = 0;
  #marked = null;
  #lines = new Lines();

  /** `onPoint(panel, index, how)` gets the token at the pointer or focus; index null for none. */
  constructor({ name, run, vocabulary }, onPoint) {
    this.name = name;
    this.run = run;
    this.vocabulary = vocabulary;
    /** The conditions of the rule's gate; all for a rule without a gate. */
    this.asked = run.config.rule.conditions ?? CONDITIONS;
    this.summary = make("div", { class: "summary" });
    this.state = make("p", { class: "state soft" });
    this.caught = make("p", { class: "caught-line" });
    this.difference = make("p", { class: "soft" });
    this.list = make("div", {
      class: "text",
      role: "listbox",
      "aria-label": `Text decoded by ${this.name}`,
      tabindex: "0",
    });
    this.overview = new Overview((index, pressed) =>
      pressed ? this.focus(index) : onPoint(this, index, "hover"),
    );
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

  /** Removes the text. */
  clear() {
    this.text = new Text();
    this.#caught = [];
    this.#current = 0;
    this.#marked = null;
    this.list.replaceChildren();
    this.list.tabIndex = 0;
    this.#lines = new Lines();
    this.overview.point(null);
  }

  add(rows) {
    this.text.add(rows);
    this.list.append(...this.#lines.add(this.text.tokens.slice(this.#lines.elements.length)));
    const entropies = sortedEntropies(this.text.tokens);
    this.highest = entropies.at(-1) ?? 0;
    this.usual = entropies[Math.floor(0.95 * entropies.length)] ?? 0;
    if (this.#lines.elements.length && this.list.tabIndex === 0) {
      this.list.tabIndex = -1;
      this.#lines.elements[0].tabIndex = 0;
    }
  }

  /** Marks tokens where the gate is open; updates only those for which that changed. */
  apply(thresholds) {
    this.list.style.setProperty("--top", this.top);
    for (const line of this.list.children)
      line.style.setProperty("--tau", Math.min(thresholds.tauH, this.top));
    this.text.tokens.forEach((token, i) => {
      const row = examinedRow(token);
      const caught = row !== null && isCaught(conditionsMet(row, thresholds), this.asked);
      if (caught !== (this.#caught[i] ?? false))
        this.#lines.elements[i].classList.toggle("caught", caught);
      this.#caught[i] = caught;
    });
    this.overview.show(this.text.tokens, this.#caught, { tauH: thresholds.tauH, top: this.top });
    const found = replay(this.text.examined, thresholds, this.asked);
    this.caught.textContent = this.#caughtWords(found, thresholds);
  }

  #caughtWords({ examined, caught, met }, thresholds) {
    if (!examined) return "this rule examines no draft tokens";
    const share = (found) =>
      `${found.caught} of ${found.examined} examined (${percent(found.caught / found.examined)})`;
    const alone = CONDITIONS.map((name) => `${CONDITION_NAMES[name]} ${met[name]}`).join(", ");
    const whole = this.examined.length
      ? `; in all texts ${share(replay(this.examined, thresholds, this.asked))}`
      : "";
    return `◆ catches ${share({ examined, caught })}${whole}. Met alone: ${alone}.`;
  }

  /** Marks the first difference from another panel's text; `index` is null without one. */
  markDifference(index, other) {
    const ended = this.text.finished && other.text.finished;
    const marked = `${index} ${other.name} ${ended}`;
    if (this.#marked === marked) return;
    this.#marked = marked;
    this.list.querySelector(".difference")?.remove();
    if (index === null) {
      this.difference.textContent = `no difference from ${other.name}${ended ? "" : " so far"}`;
      return;
    }
    const mark = make("span", { class: "difference", text: `▼ differs from ${other.name}` });
    const element = this.#lines.elements[index];
    if (element) element.before(mark);
    else this.list.lastElementChild?.append(mark);
    const jump = make("button", {
      type: "button",
      text: `First difference from ${other.name}: token ${index + 1}`,
    });
    jump.addEventListener("click", () => this.focus(index));
    this.difference.replaceChildren(jump);
    const shared = [this, other].every((panel) => panel.run.config.coupling === "shared");
    if (!shared) this.difference.append(" (noise is not shared, so this may be chance)");
  }

  focus(index) {
    this.#lines.elements[Math.min(Math.max(index, 0), this.#lines.elements.length - 1)]?.focus();
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
      const before = this.#lines.elements[this.#current];
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
      const to = moved(event.key, this.#current, this.text.tokens, this.#lines.elements);
      if (to === null) return;
      event.preventDefault();
      this.focus(to);
    });
  }
}

function sortedEntropies(tokens) {
  const rows = tokens.map(({ row, refused }) => refused ?? row);
  return rows
    .flatMap((row) => [row.draft_entropy ?? 0, row.target_entropy ?? 0])
    .sort((a, b) => a - b);
}
