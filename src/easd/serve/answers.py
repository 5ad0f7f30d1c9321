"""What answers look like: OpenAI's objects, and counts of drafting in `usage`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

Finish = Literal["stop", "length"]


class TokensDetails(BaseModel):
    """What became of draft tokens; `prediction` fields are OpenAI's, the others this engine's.

    Attributes:
        accepted_prediction_tokens: draft tokens in the texts.
        rejected_prediction_tokens: draft tokens that were proposed and are not in the texts.
        drafted_tokens, accepted_tokens: proposed, and kept.
        examined_tokens: up to and including the first refusal of each block.
        penalised_tokens: refused by the rule's gate.
        target_forwards: verification steps, counted for each text.
    """

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    drafted_tokens: int
    examined_tokens: int
    accepted_tokens: int
    penalised_tokens: int
    target_forwards: int


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: TokensDetails


class TopLogprob(BaseModel):
    """A token and its log-probability; `bytes` are null for a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the text, and the most probable ones at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenLogprob]


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a continuation's tokens, in the older endpoint's columns."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AnswerMessage(BaseModel):
    """The model's turn."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """What an answer gained; fields that say nothing are left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(BaseModel):
    """What one answer gained."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(BaseModel):
    """An event of a streamed conversation."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(BaseModel):
    """One continuation, or what it gained."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class Completion(BaseModel):
    """Continuations, or an event of their stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Model(BaseModel):
    """What can be asked for as `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["easd"] = "easd"
    max_model_len: int | None


class Models(BaseModel):
    """All there is to ask for."""

    object: Literal["list"] = "list"
    data: list[Model]
