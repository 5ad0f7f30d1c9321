"""Request bodies: OpenAI's fields by OpenAI's names, and this engine's own.

Unknown fields are refused, so that nothing a client relies on is silently dropped. Fields that are
null, or that ask for what happens anyway, are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_TEXTS = 128  # In one request; OpenAI's limit.
MOST_LOGPROBS = 20
_COLDEST = 0.01  # Logits divided by less would overflow.

# Unsupported fields that are accepted with these values, which ask for nothing.
_NOTHING: dict[str, Any] = {
    "annotations": [],
    "best_of": 1,
    "echo": False,
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "suffix": "",
    "tool_choice": "none",
    "tools": [],
}


def _encodable(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("half of a surrogate pair is no character")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
StopString = Annotated[Text, Field(min_length=1, max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0)]


class Body(BaseModel):
    """A JSON object that may have no other fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nothings(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            name: value
            for name, value in values.items()
            if value is not None and (name not in _NOTHING or value != _NOTHING[name])
        }


class TextPart(Body):
    """A text part of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class SamplingFields(Body):
    """How to decode; the defaults are the settings the server was started with."""

    seed: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**63,
        description="Repeats a text; without one, every request has another.",
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = Field(
        None, description="Texts that end the decoding and are not part of the answer."
    )
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="0 decodes greedily.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 and -1 keep all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[str, Bias] = Field(
        default_factory=dict, max_length=1024, description="Added to logits, by token id."
    )
    user: str | None = Field(None, description="Taken, and used for nothing.")
    speculative: dict[str, Any] = Field(
        default_factory=dict,
        description="`rule` and any of its fields, as GET /easd/rules lists them; without "
        "`rule`, fields of the server's own.",
        examples=[{"rule": "easd", "tau_h": 1.5}],
    )

    @field_validator("temperature")
    @classmethod
    def _zero_or_warm(cls, value: float | None) -> float | None:
        if value and value < _COLDEST:
            raise ValueError(f"use 0 for greedy decoding, or at least {_COLDEST}")
        return value

    @property
    def stop_strings(self) -> tuple[str, ...] | None:
        """The stop strings as a tuple, or None."""
        if self.stop is None:
            return None
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = False


class OpenAIRequest(SamplingFields):
    """Fields that both of OpenAI's endpoints share."""

    model: str
    n: int = Field(1, ge=1, le=MOST_TEXTS)
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)


class ChatCompletionRequest(OpenAIRequest):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="Goes before max_tokens.")
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_LOGPROBS)

    @model_validator(mode="after")
    def _top_of_something(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs = true")
        return self


class CompletionRequest(OpenAIRequest):
    """Body of /v1/completions: one prompt or several, as text or as token ids."""

    prompt: Text | list[Text] | list[TokenId] | list[list[TokenId]]
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)


class DecodeRequest(SamplingFields):
    """Body of /easd/decode: one conversation or one prompt."""

    model: str | None = None
    messages: list[Message] = Field(default_factory=list)
    prompt: Text | None = None
    coupling: Literal["shared", "maximal", "published"] = "shared"

    @model_validator(mode="after")
    def _one_of_both(self) -> DecodeRequest:
        if bool(self.messages) == (self.prompt is not None):
            raise ValueError("give either messages or a prompt")
        return self
