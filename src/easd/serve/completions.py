"""Builders of OpenAI's chat completions and completions, whole or as a stream of chunks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, TypeVar
from uuid import uuid4

from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from easd.engine.request import Counts
from easd.runs.texts import TokenTexts
from easd.serve.detokenizer import Detokenizer
from easd.serve.errors import Refusal
from easd.serve.logprobs import LogprobFormatter
from easd.serve.responses import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChunkChoice,
    Completion,
    CompletionChoice,
    Delta,
    Finish,
    TokensDetails,
    Usage,
)
from easd.serve.scheduler import Job, Update, updates
from easd.serve.streaming import event

Whole = TypeVar("Whole", bound=BaseModel)


class ChoiceBuilder:
    """Text, counts and, where asked for, log-probabilities of one choice."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, job: Job, texts: TokenTexts) -> None:
        self.detokenizer = Detokenizer(tokenizer, job.settings.stop)
        self.logprobs = LogprobFormatter(self.detokenizer, texts) if job.observe else None
        self.counts = Counts()
        self.num_tokens = 0

    def add(self, update: Update) -> str:
        """Adds an update; returns the text that can no longer change."""
        if self.logprobs is not None:
            self.logprobs.add(update.seen)
        self.counts = update.counts
        self.num_tokens += len(update.tokens)
        return self.detokenizer.add(update.tokens, update.finished)

    @property
    def finish(self) -> Finish:
        """The reason why the text ended, as OpenAI calls it."""
        return "length" if self.detokenizer.finished == "length" else "stop"


class Builder(ABC, Generic[Whole]):
    """Builds the response to one job, under the model's name.

    With `include_usage` a stream ends with a chunk of usage.
    """

    prefix: str
    chunk_type: str

    def __init__(
        self,
        job: Job,
        *,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        texts: TokenTexts,
        include_usage: bool,
    ) -> None:
        self.head = {
            "id": f"{self.prefix}-{uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self.job = job
        self.choices = [ChoiceBuilder(tokenizer, job, texts) for _ in job.requests]
        self._include_usage = include_usage

    async def whole(self) -> Whole:
        """Returns the response in one piece.

        Raises:
            Refusal: The job failed or was ended.
        """
        async for update in updates(self.job):
            self.choices[update.index].add(update)
        return self._whole()

    async def events(self) -> AsyncIterator[bytes]:
        """Yields the response as server-sent events; an error is the last one."""
        try:
            for choice in self._openings():
                yield self._chunk(choice)
            async for update in updates(self.job):
                choice = self.choices[update.index]
                piece = choice.add(update)
                if piece or update.finished:
                    finish = choice.finish if update.finished else None
                    yield self._chunk(self._gained(update.index, piece, choice, finish))
            if self._include_usage:
                yield self._chunk(usage=self._usage().model_dump())
            yield b"data: [DONE]\n\n"
        except Refusal as refusal:
            yield event(refusal.body.model_dump())

    def _chunk(self, *choices: BaseModel, **more: Any) -> bytes:
        dumped = [choice.model_dump(exclude_unset=True) for choice in choices]
        return event({**self.head, "object": self.chunk_type, "choices": dumped, **more})

    def _usage(self) -> Usage:
        requests = self.job.requests
        read = sum(len(r.prompt) for r in requests[:: self.job.settings.n])
        written = sum(text.num_tokens for text in self.choices)
        counts = sum((text.counts for text in self.choices), Counts())
        return Usage(
            prompt_tokens=read,
            completion_tokens=written,
            total_tokens=read + written,
            completion_tokens_details=TokensDetails(
                accepted_prediction_tokens=counts.accepted,
                rejected_prediction_tokens=counts.proposed - counts.accepted,
                drafted_tokens=counts.proposed,
                examined_tokens=counts.examined,
                accepted_tokens=counts.accepted,
                penalised_tokens=counts.penalised,
                target_forwards=counts.blocks,
            ),
        )

    @abstractmethod
    def _whole(self) -> Whole: ...

    @abstractmethod
    def _gained(
        self, index: int, piece: str, choice: ChoiceBuilder, finish: Finish | None
    ) -> BaseModel:
        """Returns a stream's choice with the new text `piece`."""

    def _openings(self) -> Sequence[BaseModel]:
        """Returns choices that a stream begins with, one chunk for each."""
        return []


class ChatCompletionBuilder(Builder[ChatCompletion]):
    """Builds chat completions."""

    prefix, chunk_type = "chatcmpl", "chat.completion.chunk"

    def _whole(self) -> ChatCompletion:
        choices = [
            ChatChoice(
                index=index,
                message=AssistantMessage(content=choice.detokenizer.text),
                logprobs=choice.logprobs and choice.logprobs.chat(),
                finish_reason=choice.finish,
            )
            for index, choice in enumerate(self.choices)
        ]
        return ChatCompletion(**self.head, choices=choices, usage=self._usage())

    def _openings(self) -> list[ChunkChoice]:
        delta = Delta(role="assistant", content="")
        return [
            ChunkChoice(index=index, delta=delta, finish_reason=None)
            for index in range(len(self.choices))
        ]

    def _gained(
        self, index: int, piece: str, choice: ChoiceBuilder, finish: Finish | None
    ) -> ChunkChoice:
        return ChunkChoice(
            index=index,
            delta=Delta(content=piece) if piece else Delta(),
            logprobs=choice.logprobs and choice.logprobs.chat(),
            finish_reason=finish,
        )


class CompletionBuilder(Builder[Completion]):
    """Builds completions of one prompt or several."""

    prefix, chunk_type = "cmpl", "text_completion"

    def _whole(self) -> Completion:
        choices = [
            self._gained(index, choice.detokenizer.text, choice, choice.finish)
            for index, choice in enumerate(self.choices)
        ]
        return Completion(**self.head, choices=choices, usage=self._usage())

    def _gained(
        self, index: int, piece: str, choice: ChoiceBuilder, finish: Finish | None
    ) -> CompletionChoice:
        return CompletionChoice(
            index=index,
            text=piece,
            logprobs=choice.logprobs and choice.logprobs.completion(),
            finish_reason=finish,
        )
