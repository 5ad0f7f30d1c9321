// A strip of the whole text: draft entropy upwards, target entropy downwards, outcomes below.

import { make } from "./dom.js";
import { fate } from "./model.js";

const HALF = 26;
const RIBBON = 6;
const GAP = 4;
const HEIGHT = 2 * HALF + GAP + RIBBON;

export class Overview {
  #canvas = make("canvas", { role: "img", class: "overview" });
  #cursor = make("div", { class: "cursor", hidden: true });
  #width = 0;
  #draw = () => {};

  /** `onPoint` gets the index of the token at the pointer, and whether it was pressed. */
  constructor(onPoint) {
    this.element = make("div", { class: "strip" }, this.#canvas, this.#cursor);
    new ResizeObserver(([entry]) => {
      this.#width = Math.floor(entry.contentRect.width);
      this.#draw();
    }).observe(this.element);
    const index = (event) =>
      Math.min(Math.floor((event.offsetX / this.#width) * this.count), this.count - 1);
    this.#canvas.addEventListener(
      "pointermove",
      (event) => this.count && onPoint(index(event), false),
    );
    this.#canvas.addEventListener("click", (event) => this.count && onPoint(index(event), true));
  }

  show(tokens, caught, { tauH, top }) {
    this.count = tokens.length;
    this.#canvas.setAttribute(
      "aria-label",
      `Entropies of draft, upwards, and target, downwards, over ${tokens.length} tokens; full height is ${top.toFixed(1)} nats, tau_h ${tauH.toFixed(2)}`,
    );
    this.#draw = () => this.#paint(tokens, caught, Math.min(tauH / top, 1), top);
    this.#draw();
  }

  point(index) {
    this.#cursor.hidden = index === null;
    if (index !== null)
      this.#cursor.style.transform = `translateX(${((index + 0.5) / this.count) * this.#width}px)`;
  }

  repaint() {
    this.#draw();
  }

  #paint(tokens, caught, tau, top) {
    if (!this.#width) return;
    const ratio = window.devicePixelRatio || 1;
    this.#canvas.width = this.#width * ratio;
    this.#canvas.height = HEIGHT * ratio;
    const pen = this.#canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(this.#canvas);
    const colour = Object.fromEntries(
      ["draft", "target", "penalty", "replacement", "bonus", "line", "soft"].map((name) => [
        name,
        style.getPropertyValue(`--${name}`),
      ]),
    );
    const ribbon = {
      accepted: colour.line,
      drawn: colour.line,
      replacement: colour.replacement,
      bonus: colour.bonus,
      penalised: colour.penalty,
    };
    const height = (entropy) => Math.min((entropy ?? 0) / top, 1) * HALF;
    // Draw the important outcomes last, so that a crowded strip does not hide them.
    const byFate = { accepted: [], drawn: [], bonus: [], replacement: [], penalised: [] };
    tokens.forEach((token, i) => byFate[fate(token)].push(i));
    for (const i of Object.values(byFate).flat()) {
      const token = tokens[i];
      const row = token.refused ?? token.row;
      const left = Math.floor((i * this.#width) / tokens.length);
      const wide = Math.max(
        Math.floor(((i + 1) * this.#width) / tokens.length) -
          left -
          (this.#width > 3 * tokens.length ? 1 : 0),
        1,
      );
      const up = height(row.draft_entropy);
      pen.fillStyle = caught[i] ? colour.penalty : colour.draft;
      pen.fillRect(left, HALF - up, wide, up);
      pen.fillStyle = caught[i] ? colour.penalty : colour.target;
      pen.fillRect(left, HALF, wide, height(row.target_entropy));
      pen.fillStyle = ribbon[fate(token)];
      pen.fillRect(left, 2 * HALF + GAP, wide, RIBBON);
    }
    pen.strokeStyle = colour.soft;
    pen.setLineDash([3, 3]);
    for (const y of [HALF - tau * HALF, HALF + tau * HALF]) {
      pen.beginPath();
      pen.moveTo(0, Math.round(y) + 0.5);
      pen.lineTo(this.#width, Math.round(y) + 0.5);
      pen.stroke();
    }
  }
}
