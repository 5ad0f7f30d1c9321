"""OpenAI's response objects, with counts of drafting in `usage`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

Finish = Literal["stop", "length"]


class TokensDetails(BaseModel):
    """Counts of draft tokens; `prediction` fields are OpenAI's, the others this engine's.

    Attributes:
        accepted_prediction_tokens: draft tokens in the texts.
        rejected_prediction_tokens: proposed draft tokens that are not in the texts.
        examined_tokens: draft tokens up to and including the first refusal of each block.
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
    """Token counts of prompts and completions."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: TokensDetails


class TopLogprob(BaseModel):
    """A token and its log-probability; `bytes` is null for part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of the text and the most probable tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of the tokens of a chat completion."""

    content: list[TokenLogprob]


class CompletionLogprobs(BaseModel):
    """Log-probabilities of the tokens of a completion, in OpenAI's older layout."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AssistantMessage(BaseModel):
    """The model's turn of a conversation."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(BaseModel):
    """One choice of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class Delta(BaseModel):
    """New text of a choice; unset fields are left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """New text of one choice of a streamed chat completion."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class CompletionChoice(BaseModel):
    """One choice of a completion, or in a stream its new text."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class _Response(BaseModel):
    id: str
    created: int
    model: str


class ChatCompletion(_Response):
    """A chat completion."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage


class Completion(_Response):
    """A completion of one prompt or several."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage


class Model(BaseModel):
    """The served model."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["easd"] = "easd"
    max_model_len: int | None


class Models(BaseModel):
    """The list of served models."""

    object: Literal["list"] = "list"
    data: list[Model]
