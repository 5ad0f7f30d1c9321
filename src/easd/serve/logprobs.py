"""Log-probabilities of a text's tokens, under the target.

They are taken at temperature 1 without truncation, with penalties and biases applied. After
temperature and truncation, every token of a greedy text would have log-probability 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from easd.engine.engine import StepRecord
from easd.runs.texts import TokenTexts
from easd.serve.detokenizer import Detokenizer
from easd.serve.responses import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob

_LEAST = -9999.0  # JSON has no infinity.


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token, its log-probability, and the most probable tokens at its position with theirs."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def read_logprobs(record: StepRecord, place: int, *, top: int) -> list[Logprob]:
    """Returns a `Logprob` for each token that row `place` gained, with the `top` best tokens."""
    tokens = record.committed[place]
    assert record.step.raw_target_probs is not None, "the request wants raw probabilities"
    logs = record.step.raw_target_probs[place, : len(tokens)].log().clamp_min(_LEAST)
    own = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
    values, best = logs.topk(top)
    tops = [
        list(zip(*pair, strict=True)) for pair in zip(best.tolist(), values.tolist(), strict=True)
    ]
    return [Logprob(*found) for found in zip(tokens, own, tops, strict=True)]


class LogprobFormatter:
    """Formats a text's log-probabilities, only for tokens whose text has been released."""

    def __init__(self, detokenizer: Detokenizer, texts: TokenTexts) -> None:
        self._detokenizer = detokenizer
        self._texts = texts
        self._found: list[Logprob] = []
        self._reported = 0

    def add(self, found: list[Logprob]) -> None:
        self._found += found

    def chat(self) -> ChatLogprobs:
        """Returns new log-probabilities in the layout of a chat completion."""
        return ChatLogprobs(
            content=[
                TokenLogprob(
                    **self._entry(entry.token, entry.logprob).model_dump(),
                    top_logprobs=[self._entry(*top) for top in entry.top],
                )
                for _, entry in self._new()
            ]
        )

    def completion(self) -> CompletionLogprobs:
        """Returns new log-probabilities in the layout of a completion.

        Its `top_logprobs` always include the token itself.
        """
        new = self._new()
        return CompletionLogprobs(
            tokens=[self._text(entry.token) for _, entry in new],
            token_logprobs=[entry.logprob for _, entry in new],
            top_logprobs=[
                {
                    self._text(token): logprob
                    for token, logprob in [(entry.token, entry.logprob), *entry.top]
                }
                for _, entry in new
            ],
            text_offset=[self._detokenizer.offset(index) for index, _ in new],
        )

    def _new(self) -> list[tuple[int, Logprob]]:
        first, self._reported = self._reported, self._detokenizer.num_released
        return list(enumerate(self._found))[first : self._reported]

    def _text(self, token: int) -> str:
        return self._texts.texts([token])[token]

    def _entry(self, token: int, logprob: float) -> TopLogprob:
        text = self._text(token)
        encoded = None if "\ufffd" in text else list(text.encode())
        return TopLogprob(token=text, logprob=logprob, bytes=encoded)
