// Tokens as elements, in lines that break where the text does.

import { make } from "./dom.js";
import { fate } from "./model.js";
import { named, visible } from "./visible.js";
import { outcome } from "./words.js";

export class Lines {
  /** One element per token. */
  elements = [];
  #line = null;
  #breaks = 0; // line breaks at the end of the current line
  #indent = ""; // of the next line

  /** Appends tokens; returns the new lines. */
  add(tokens) {
    const begun = [];
    for (const token of tokens) this.#append(token, begun);
    return begun;
  }

  #append(token, begun) {
    const [, space, word, breaks = "", indent] = token.row.text.match(/^( *)(.*?)(\n+)?([ \t]*)$/s);
    // Consecutive line breaks end the same line.
    if (!this.#line || (this.#breaks && (word || !breaks))) {
      const kind = this.#breaks > 1 ? "row apart" : "row";
      this.#line = make("div", { class: kind }, this.#indent);
      this.#breaks = 0;
      begun.push(this.#line);
    }
    const shown = visible(word).replaceAll("\n", "⏎") + "⏎".repeat(breaks.length);
    const element = elementOf(token, this.elements.length, shown || space);
    this.#line.append(shown ? space : "", element);
    this.elements.push(element);
    this.#breaks += breaks.length;
    if (breaks) this.#indent = indent;
    else this.#line.append(indent);
  }
}

function elementOf(token, index, shown) {
  const kind = fate(token);
  const quiet = kind === "accepted" || kind === "drawn";
  const element = make("span", {
    class: `t ${kind}`,
    role: "option",
    tabindex: "-1",
    "data-i": index,
    "aria-label": quiet ? undefined : `${named(token.row.text)}, ${outcome(token)}`,
  });
  if (kind === "penalised") {
    element.append(make("s", { text: named(token.refused.text) }), make("i", { text: "→" }));
  }
  // Only spaces: shown as they are if accepted, else by name.
  element.append(shown.trim() || (shown && quiet) ? shown : named(token.row.text));
  const row = token.refused ?? token.row;
  element.style.setProperty("--d", row.draft_entropy ?? 0);
  element.style.setProperty("--t", row.target_entropy ?? 0);
  return element;
}
