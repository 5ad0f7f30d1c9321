// Live decoding: the form, and the server's stream of events.

import { byId, make } from "./dom.js";
import { count, percent } from "./words.js";

const RULES_PATH = "/easd/rules";
const DECODE_PATH = "/easd/decode";

export class Live {
  #page;
  #form = byId("ask");
  #rules = {};
  #running = null;

  constructor(page) {
    this.#page = page;
    this.#form.hidden = false;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#decode();
    });
    this.#form.elements.rule.addEventListener("change", () => this.#showFields());
    this.#form.elements.key.addEventListener("change", () => this.#load());
    byId("stop").addEventListener("click", () => this.#running?.abort());
    this.#load();
  }

  async #load() {
    byId("problem").textContent = "";
    try {
      const { rules, pair, defaults, example } = await (await this.#fetch(RULES_PATH)).json();
      this.#rules = rules;
      Object.assign(rules[defaults.rule.name].fields, defaults.rule);
      const fields = this.#form.elements;
      fields.rule.replaceChildren(
        ...Object.keys(rules).map((name) => make("option", { value: name, text: name })),
      );
      fields.rule.value = defaults.rule.name;
      for (const name of ["temperature", "seed"]) fields[name].value = defaults[name];
      fields.max_tokens.value = Math.min(defaults.max_new_tokens ?? 128, example.room ?? Infinity);
      const { value, defaultValue } = fields.prompt;
      if (example.prompt !== null && value === defaultValue) fields.prompt.value = example.prompt;
      fields.chat.checked = example.chat;
      for (const box of fields.compare) box.disabled = !(box.value in rules);
      byId("title").textContent = pair;
      this.#showFields();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Shows inputs for the numeric fields of the chosen rule. */
  #showFields() {
    const { fields, summary, lossless } = this.#rules[this.#form.elements.rule.value];
    const numbers = Object.entries(fields).filter(([, value]) => typeof value === "number");
    const inputs = numbers.map(([name, value]) =>
      make(
        "label",
        { text: name === "tau_h" ? "tau_h, nats" : name },
        make("input", { name, type: "number", step: "any", value }),
      ),
    );
    byId("rule-fields").replaceChildren(...inputs);
    byId("rule-summary").textContent =
      `${summary} ${lossless ? "Lossless: the text follows the target’s distribution." : "Changes the target’s distribution."}`;
  }

  async #decode() {
    this.#running?.abort();
    const running = (this.#running = new AbortController());
    byId("problem").textContent = "";
    byId("stop").disabled = false;
    let begun = false;
    // The current texts stay until the server has accepted the request.
    const begin = () => {
      if (!begun) this.#page.start();
      begun = true;
    };
    const elements = this.#form.elements;
    const others = [...elements.compare].filter(
      (box) => box.checked && box.value !== elements.rule.value,
    );
    try {
      // One after the other, so that speeds are comparable.
      for (const rule of [elements.rule.value, ...others.map((box) => box.value)])
        await this.#one(rule, running.signal, begin);
    } catch (error) {
      if (this.#running !== running) return; // another decoding has begun
      if (error.name === "AbortError") this.#page.announce("stopped");
      else this.#fail(error);
    }
    byId("stop").disabled = true;
  }

  async #one(rule, signal, begin) {
    this.#page.announce(`decoding with ${rule}`);
    const response = await this.#fetch(DECODE_PATH, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(this.#body(rule)),
      signal,
    });
    const vocabulary = new Map();
    let panel = null;
    const began = performance.now();
    for await (const event of events(response)) {
      if (event.type === "run") {
        begin();
        panel = this.#page.panel(event.run, vocabulary);
        panel.showSummary(null, 1);
      } else if (event.type === "rows") {
        for (const [id, text] of Object.entries(event.vocabulary)) vocabulary.set(Number(id), text);
        panel.add(event.tokens);
        panel.state.textContent = `${count(panel.text.tokens.length, "token")} in ${((performance.now() - began) / 1000).toFixed(1)} s`;
      } else if (event.type === "end") {
        panel.text.finished = true;
        panel.showSummary(event.summary, 1);
        this.#page.showPrompt(event.sample.prompt);
        this.#page.announce(
          `${rule}: ${count(event.summary.tokens, "token")}, acceptance rate ${percent(event.summary.acceptance_rate)}`,
        );
      } else {
        throw new Error(event.error.message);
      }
      this.#page.refresh();
    }
  }

  #body(rule) {
    const elements = this.#form.elements;
    const speculative = { rule };
    if (rule === elements.rule.value) {
      for (const { name, valueAsNumber } of byId("rule-fields").querySelectorAll("input")) {
        if (Number.isFinite(valueAsNumber)) speculative[name] = valueAsNumber;
      }
    }
    const prompt = elements.prompt.value;
    const most = elements.max_tokens.valueAsNumber;
    return {
      ...(elements.chat.checked ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
      temperature: elements.temperature.valueAsNumber,
      ...(Number.isFinite(most) && { max_tokens: most }),
      seed: elements.seed.valueAsNumber,
      coupling: "shared",
      speculative,
    };
  }

  /** A successful response, or an error with the server's message. */
  async #fetch(path, options = {}) {
    const key = this.#form.elements.key.value;
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status === 401) byId("key").hidden = false;
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `the server answered ${response.status}`);
  }

  #fail(error) {
    byId("problem").textContent = error.message;
  }
}

/** The JSON events of a stream of server-sent events. */
async function* events(response) {
  let rest = "";
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
    rest = lines.pop();
    for (const line of lines)
      if (line.startsWith("data: {")) yield JSON.parse(line.slice("data: ".length));
  }
}
