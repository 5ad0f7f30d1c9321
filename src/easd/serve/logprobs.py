"""Log-probabilities of a text's tokens.

They are the target's at temperature 1 and before truncation, with penalties and biases: what the
model says of a token, however it was drawn. After temperature and truncation every token of a
greedy text would have log-probability 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from easd.engine.engine import StepRecord
from easd.runs.texts import TokenTexts
from easd.serve.answers import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from easd.serve.writing import Writing

_LEAST = -9999.0  # JSON has no infinity.


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token, its log-probability, and those of the most probable tokens at its place."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


class LogprobReader:
    """Reads log-probabilities off steps.

    Args:
        top: how many of the most probable tokens are wanted beside each token.
    """

    def __init__(self, top: int) -> None:
        self._top = top

    def __call__(self, record: StepRecord, place: int) -> list[Logprob]:
        """Of the tokens that the text at `place` gained."""
        tokens = record.committed[place]
        assert record.step.raw_target_probs is not None, "the request wants raw probabilities"
        logs = record.step.raw_target_probs[place, : len(tokens)].log().clamp_min(_LEAST)
        own = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
        values, best = logs.topk(self._top)
        tops = [
            list(zip(*pair, strict=True))
            for pair in zip(best.tolist(), values.tolist(), strict=True)
        ]
        return [Logprob(*found) for found in zip(tokens, own, tops, strict=True)]


class LogprobWriter:
    """One text's log-probabilities, in step with its text: none is told of tokens held back.

    Args:
        writing: the text.
        texts: what tokens read like.
    """

    def __init__(self, writing: Writing, texts: TokenTexts) -> None:
        self._writing = writing
        self._texts = texts
        self._found: list[Logprob] = []
        self._told = 0

    def add(self, found: list[Logprob]) -> None:
        """Takes in a step's tokens."""
        self._found += found

    def chat(self) -> ChatLogprobs:
        """What is new, for a chat."""
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
        """What is new, for a completion; the token itself is always among the top ones."""
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
            text_offset=[self._writing.offset(index) for index, _ in new],
        )

    def _new(self) -> list[tuple[int, Logprob]]:
        first, self._told = self._told, self._writing.num_released
        return list(enumerate(self._found))[first : self._told]

    def _text(self, token: int) -> str:
        return self._texts.texts([token])[token]

    def _entry(self, token: int, logprob: float) -> TopLogprob:
        text = self._text(token)
        spelt = None if "\ufffd" in text else list(text.encode())
        return TopLogprob(token=text, logprob=logprob, bytes=spelt)
