"""Seconds of forwards and steps, from bytes and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from easd.speed.plan.hardware import Hardware
from easd.speed.plan.shapes import Shape

_FLOAT32 = 4
_USABLE = 0.9  # of the memory, as vLLM takes unless told otherwise.


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A target and its draft on some hardware; without a draft the target alone."""

    hardware: Hardware
    target: Shape
    draft: Shape | None = None

    def forward_seconds(self, shape: Shape, texts: int, tokens: int, context: int) -> float:
        """One forward of `tokens` new tokens for each of `texts` texts of `context` tokens."""
        on = self.hardware
        rows = texts * tokens
        products = on.product_seconds(shape.matrices or (shape.products,), shape.width, rows)
        attention = max(
            on.cache_seconds(texts * context * shape.cached, shape.width),
            on.compute_seconds(rows * context * shape.attended),
        )
        layers = shape.layers * on.layer_seconds(rows * shape.hidden)
        return products + attention + layers + on.forward_us * 1e-6

    def draft_seconds(self, texts: int, context: int) -> float:
        """One draft token for each text: the draft's forward, and drawing from it."""
        assert self.draft is not None
        on = self.hardware
        drawing = on.vocabulary_seconds(texts * self.draft.vocab_size, on.draw_ns)
        return self.forward_seconds(self.draft, texts, 1, context) + drawing + on.draw_us * 1e-6

    def step_seconds(self, texts: int, gamma: int, context: int) -> float:
        """One step: `gamma` draft forwards, one of the target, and the verification."""
        on, entries = self.hardware, texts * self.target.vocab_size
        seconds = self.forward_seconds(self.target, texts, gamma + 1, context)
        seconds += (on.step_us + on.text_us * texts * (gamma + 1)) * 1e-6
        if not gamma:
            return seconds + on.vocabulary_seconds(entries, on.draw_ns)
        seconds += gamma * self.draft_seconds(texts, context) + on.verify_us * 1e-6
        return seconds + on.vocabulary_seconds((gamma + 1) * entries, on.verify_ns)

    def texts_that_fit(self, gamma: int, context: int) -> int:
        """How many texts of `context` tokens the memory holds beside the weights."""
        models = [self.target, *([self.draft] if self.draft and gamma else [])]
        room = self.hardware.memory_gb * 1e9 * self.hardware.devices * _USABLE
        room -= sum(shape.weight_bytes for shape in models)
        per_text = sum(context * shape.cached * shape.width for shape in models)
        # The distributions of a step are whole on every device.
        step = 2 * (gamma + 1) * self.target.vocab_size * _FLOAT32 * self.hardware.devices
        return max(0, int(room // (per_text + step)))
