"""From a job's updates to OpenAI's answers, whole or as a stream of events."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from typing import Generic, TypeVar
from uuid import uuid4

from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from easd.engine.request import Counts
from easd.runs.texts import TokenTexts
from easd.serve.answers import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    Delta,
    Finish,
    TokensDetails,
    Usage,
)
from easd.serve.errors import Refusal, to_json
from easd.serve.logprobs import LogprobWriter
from easd.serve.scheduler import Job, Update
from easd.serve.writing import Writing

Whole = TypeVar("Whole", bound=BaseModel)


async def updates(job: Job) -> AsyncIterator[Update]:
    """A job's updates to its end.

    Raises:
        Refusal: The job was ended.
    """
    left = len(job.requests)
    while left:
        update = await job.updates.get()
        if isinstance(update, Refusal):
            raise update
        left -= update.finished is not None
        yield update


class Written:
    """One text of an answer: its words, its log-probabilities where wanted, and its counts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, job: Job, texts: TokenTexts) -> None:
        self.writing = Writing(tokenizer, job.settings.stop)
        self.logprobs = LogprobWriter(self.writing, texts) if job.observe else None
        self.counts = Counts()
        self.num_tokens = 0

    def add(self, update: Update) -> str:
        """Takes in an update; returns the text that has become certain."""
        if self.logprobs is not None:
            self.logprobs.add(update.seen)
        self.counts = update.counts
        self.num_tokens += len(update.tokens)
        return self.writing.add(update.tokens, update.finished)

    @property
    def finish(self) -> Finish:
        """OpenAI's word for why the text ended."""
        return "length" if self.writing.finished == "length" else "stop"


class Answer(ABC, Generic[Whole]):
    """What one job answers.

    Args:
        job: what is decoded.
        model: its name.
        tokenizer: of the target.
        texts: what tokens read like.
        include_usage: whether a stream ends with the usage.
    """

    prefix: str

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
        self.written = [Written(tokenizer, job, texts) for _ in job.requests]
        self._include_usage = include_usage

    async def whole(self) -> Whole:
        """Everything at once.

        Raises:
            Refusal: The job was ended.
        """
        async for update in updates(self.job):
            self.written[update.index].add(update)
        return self._whole()

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events; an error that comes in the middle is the last one."""
        try:
            for chunk in self._openings():
                yield event(chunk.model_dump(exclude_unset=True))
            async for update in updates(self.job):
                written = self.written[update.index]
                piece = written.add(update)
                if piece or update.finished:
                    finish = written.finish if update.finished else None
                    chunk = self._chunk(update.index, piece, written, finish)
                    yield event(chunk.model_dump(exclude_unset=True))
            if self._include_usage:
                last = {**self._empty().model_dump(exclude_unset=True), "choices": []}
                yield event({**last, "usage": self.usage().model_dump()})
            yield b"data: [DONE]\n\n"
        except Refusal as refusal:
            yield event(refusal.body.model_dump())

    def usage(self) -> Usage:
        """Tokens read and written."""
        requests = self.job.requests
        read = sum(len(r.prompt) for r in requests[:: self.job.settings.n])
        written = sum(text.num_tokens for text in self.written)
        counts = _sum([text.counts for text in self.written])
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
    def _openings(self) -> Sequence[BaseModel]:
        """What a stream begins with."""

    @abstractmethod
    def _chunk(
        self, index: int, piece: str, written: Written, finish: Finish | None
    ) -> BaseModel: ...

    @abstractmethod
    def _empty(self) -> BaseModel:
        """A chunk without choices."""


class ChatAnswer(Answer[ChatCompletion]):
    """Answers to a conversation."""

    prefix = "chatcmpl"

    def _whole(self) -> ChatCompletion:
        choices = [
            ChatChoice(
                index=index,
                message=AnswerMessage(content=text.writing.text),
                logprobs=text.logprobs and text.logprobs.chat(),
                finish_reason=text.finish,
            )
            for index, text in enumerate(self.written)
        ]
        return ChatCompletion(**self.head, choices=choices, usage=self.usage())

    def _openings(self) -> list[ChatChunk]:
        delta = Delta(role="assistant", content="")
        return [
            self._made(ChatChunkChoice(index=index, delta=delta, finish_reason=None))
            for index in range(len(self.written))
        ]

    def _chunk(self, index: int, piece: str, written: Written, finish: Finish | None) -> ChatChunk:
        return self._made(
            ChatChunkChoice(
                index=index,
                delta=Delta(content=piece) if piece else Delta(),
                logprobs=written.logprobs and written.logprobs.chat(),
                finish_reason=finish,
            )
        )

    def _empty(self) -> ChatChunk:
        return ChatChunk(**self.head, object="chat.completion.chunk", choices=[])

    def _made(self, choice: ChatChunkChoice) -> ChatChunk:
        return ChatChunk(**self.head, object="chat.completion.chunk", choices=[choice])


class CompletionAnswer(Answer[Completion]):
    """Continuations of one prompt or several."""

    prefix = "cmpl"

    def _whole(self) -> Completion:
        choices = [
            self._choice(index, text.writing.text, text, text.finish)
            for index, text in enumerate(self.written)
        ]
        return Completion(
            **self.head, object="text_completion", choices=choices, usage=self.usage()
        )

    def _openings(self) -> list[Completion]:
        return []

    def _chunk(self, index: int, piece: str, written: Written, finish: Finish | None) -> Completion:
        choice = self._choice(index, piece, written, finish)
        return Completion(**self.head, object="text_completion", choices=[choice])

    def _empty(self) -> Completion:
        return Completion(**self.head, object="text_completion", choices=[])

    @staticmethod
    def _choice(index: int, text: str, written: Written, finish: Finish | None) -> CompletionChoice:
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=written.logprobs and written.logprobs.completion(),
            finish_reason=finish,
        )


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


def _sum(counts: Sequence[Counts]) -> Counts:
    return Counts(**{f.name: sum(getattr(c, f.name) for c in counts) for f in fields(Counts)})
