"""Prometheus metrics: vLLM's names where they mean the same, and names beginning with `easd_`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from easd.engine.request import Counts

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120)


class Metrics:
    """The metrics of one server.

    Args:
        model: label of every metric.
        gamma: maximum number of draft tokens in a step.
    """

    def __init__(self, model: str, gamma: int) -> None:
        self._registry = CollectorRegistry()
        labels = {"labelnames": ["model_name"], "registry": self._registry}

        def counter(name: str, what: str) -> Counter:
            return Counter(name, what, **labels).labels(model)

        self._drafts = counter("vllm:spec_decode_num_drafts", "Steps of a text that had a draft.")
        self._drafted = counter("vllm:spec_decode_num_draft_tokens", "Draft tokens proposed.")
        self._accepted = counter(
            "vllm:spec_decode_num_accepted_tokens", "Draft tokens that are in a text."
        )
        positions = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Draft tokens that are in a text, by position in their draft.",
            ["model_name", "position"],
            registry=self._registry,
        )
        self._positions = [positions.labels(model, position) for position in range(gamma)]
        self._examined = counter(
            "easd_examined_tokens", "Draft tokens up to and including the first refusal."
        )
        self._penalised = counter("easd_penalised_tokens", "Draft tokens refused by the gate.")
        self._prompt_tokens = counter("easd_prompt_tokens", "Prompt tokens of ended texts.")
        self._new_tokens = counter("easd_generation_tokens", "Tokens decoded.")
        self._ended = Counter(
            "easd_texts",
            "Texts that ended, by reason.",
            ["model_name", "finish_reason"],
            registry=self._registry,
        )
        self._model = model
        self.refused = counter("easd_refused_requests", "Requests refused by a full queue.")
        self.running = Gauge("easd_texts_running", "Texts in a slot.", **labels).labels(model)
        self.waiting = Gauge("easd_texts_waiting", "Texts in the queue.", **labels).labels(model)
        self._first = Histogram(
            "easd_time_to_first_token_seconds",
            "From a request to a text's first token.",
            buckets=_SECONDS,
            **labels,
        ).labels(model)
        self._whole = Histogram(
            "easd_text_seconds", "From a request to a text's end.", buckets=_SECONDS, **labels
        ).labels(model)

    def add_step(self, tokens: int, step: Counts, *, seconds_to_first: float | None) -> None:
        """Counts one text's new tokens and draft tokens in a step."""
        self._new_tokens.inc(tokens)
        self._examined.inc(step.examined)
        self._penalised.inc(step.penalised)
        if step.proposed:
            self._drafts.inc()
            self._drafted.inc(step.proposed)
            self._accepted.inc(step.accepted)
            for position in self._positions[: step.accepted]:
                position.inc()
        if seconds_to_first is not None:
            self._first.observe(seconds_to_first)

    def add_text(self, finished: str, prompt_tokens: int, seconds: float) -> None:
        """Counts a finished text."""
        self._ended.labels(self._model, finished).inc()
        self._prompt_tokens.inc(prompt_tokens)
        self._whole.observe(seconds)

    def page(self) -> bytes:
        """Returns all metrics in Prometheus's text format."""
        return generate_latest(self._registry)
