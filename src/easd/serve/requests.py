"""Request bodies: OpenAI's fields by OpenAI's names, and fields of this engine.

Unknown fields are refused, so that nothing a client relies on is silently dropped. Fields that are
null or ask for nothing are ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    create_model,
    model_validator,
)

from easd.core.couplings import Coupling
from easd.engine.settings import Settings
from easd.fields import Described, bounds_of, described

MOST_TEXTS = 128  # In one request; OpenAI's limit.
MOST_MESSAGES = 2048
MOST_LOGPROBS = 20
_MOST_BIASES = 1024
_LARGEST = 2**31 - 1
_COLDEST = 0.01  # Logits divided by less would overflow.

# Unsupported fields are accepted with these values, which ask for nothing.
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


def _few_biases(given: Any) -> Any:
    """Checks the number before any entry is parsed."""
    if isinstance(given, dict) and len(given) > _MOST_BIASES:
        raise ValueError(f"{len(given)} entries are more than {_MOST_BIASES}")
    return given


def _zero_or_warm(value: float) -> float:
    if value and value < _COLDEST:
        raise ValueError(f"use 0 for greedy decoding, or at least {_COLDEST}")
    return value


def _one_of(use: str, **kinds: Any) -> Any:
    """Returns a union of types, by `_looks`, of which only the one a value resembles is checked.

    `use` is the error message for a value that resembles none of them.
    """
    names = {looks: f"<{looks}>" for looks in kinds}
    union: Any = None
    for looks, kind in kinds.items():
        tagged = Annotated[kind, Tag(names[looks])]
        union = tagged if union is None else union | tagged
    chosen = Discriminator(
        lambda value: names.get(_looks(value)),
        custom_error_type="wrong_type",
        custom_error_message=use,
    )
    return Annotated[union, chosen]


def _looks(value: Any) -> str:
    if not isinstance(value, list):
        return "text" if isinstance(value, str) else "other"
    first = value[0] if value else ""
    return {str: "texts", int: "ids", list: "id_lists", dict: "parts"}.get(type(first), "other")


Text = Annotated[str, AfterValidator(_encodable)]
Name = Annotated[str, Field(max_length=512)]
StopString = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_encodable)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, le=_LARGEST)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS, fail_fast=True)]
Temperature = Annotated[float, Field(ge=0, le=2), AfterValidator(_zero_or_warm)]
Strings = _one_of(
    "a text or a list of texts is needed",
    text=StopString,
    texts=Annotated[list[StopString], Field(max_length=16, fail_fast=True)],
)
Prompt: TypeAlias = _one_of(  # type: ignore[valid-type]
    "a text, token ids, or a list of either is needed",
    text=Text,
    texts=Texts,
    ids=TokenIds,
    id_lists=Annotated[list[TokenIds], Field(max_length=MOST_TEXTS, fail_fast=True)],
)

# Settings that all texts of an engine share, or that a request gives in another way.
_NOT_SAMPLING = ("rule", "gamma", "least_block_prob", "drafter", "batch_size", "n")
# Settings by the names that they have in a request.
SAMPLING = {
    name: {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}.get(name, name)
    for name in described(Settings)
    if name not in _NOT_SAMPLING
}
# Fields that a request takes in another form, or within narrower bounds, than the settings.
_OTHERWISE: dict[str, Any] = {
    "temperature": Temperature,
    "draft_temperature": Temperature,
    "top_k": Annotated[int, Field(ge=-1, le=_LARGEST), AfterValidator(lambda k: max(k, 0))],
    "repetition_penalty": Annotated[float, Field(ge=0.1, le=10)],
    "bad_words": Strings,
    "stop": Strings,
}
_SAID = {
    "seed": "repeats a text; without one, every request has another.",
    "stop": "texts that end the decoding and are not part of the answer.",
    "top_k": "keep the k most probable tokens; 0 and -1 keep all.",
}


def _sampling_fields() -> dict[str, Any]:
    """Returns a body's fields for the settings of a request, each None unless given."""
    hints, about = get_type_hints(Settings), described(Settings)
    found: dict[str, Any] = {}
    for setting, name in SAMPLING.items():
        said = _SAID.get(setting, about[setting].help)
        kind = _OTHERWISE.get(setting) or _bounded(hints[setting], about[setting])
        found[name] = (kind | None, Field(None, description=said[:1].upper() + said[1:]))
    return found


def _bounded(hint: Any, field: Described) -> Any:
    within = bounds_of(field)
    if within is None:
        return hint
    above, least = (within.least, None) if within.above else (None, within.least)
    return Annotated[field.kind, Field(gt=above, ge=least, le=within.most)]


class Body(BaseModel):
    """A JSON object that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nothings(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        known, unknown = {}, {}
        for name, value in values.items():
            if value is not None and (name not in _NOTHING or value != _NOTHING[name]):
                (known if name in cls.model_fields else unknown)[name] = value
        return known | dict(list(unknown.items())[:1])  # One error is enough.


class TextPart(Body):
    """A text part of a message."""

    type: Literal["text"]
    text: Text


Content: TypeAlias = _one_of(  # type: ignore[valid-type]
    "a text or a list of text parts is needed",
    text=Text,
    texts=Annotated[list[TextPart], Field(min_length=1, fail_fast=True)],
    parts=Annotated[list[TextPart], Field(max_length=MOST_MESSAGES, fail_fast=True)],
)


class Message(Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Name | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class _SamplingFields(Body):
    """Sampling fields; unless given, the settings that the server was started with hold."""

    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(_few_biases)] = Field(
        default_factory=dict, max_length=_MOST_BIASES, description="Added to logits, by token id."
    )
    user: str | None = Field(None, description="Accepted and unused.")
    speculative: dict[str, Any] = Field(
        default_factory=dict,
        description="`rule` and any of its fields, as GET /easd/rules lists them; without "
        "`rule`, fields of the server's rule.",
        examples=[{"rule": "easd", "tau_h": 1.5}],
    )

    def asked(self) -> dict[str, Any]:
        """Returns the settings that the body gives."""
        found = {setting: getattr(self, name) for setting, name in SAMPLING.items()}
        several = {setting for setting, field in described(Settings).items() if field.several}
        for setting in found.keys() & several:
            if isinstance(found[setting], str):
                found[setting] = (found[setting],)
        return {
            setting: tuple(value) if isinstance(value, list) else value
            for setting, value in found.items()
            if value is not None
        }

    @property
    def max_new_tokens(self) -> int | None:
        """Maximum number of new tokens, where the body gives one."""
        return getattr(self, SAMPLING["max_new_tokens"])


if TYPE_CHECKING:
    SamplingFields = _SamplingFields
else:
    SamplingFields = create_model("SamplingFields", __base__=_SamplingFields, **_sampling_fields())


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = False


class OpenAIRequest(SamplingFields):
    """Fields that both of OpenAI's endpoints share."""

    model: Name
    n: int = Field(1, ge=1, le=MOST_TEXTS)
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)


class ChatCompletionRequest(OpenAIRequest):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=_LARGEST, description="Takes precedence over max_tokens."
    )
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_LOGPROBS)

    @model_validator(mode="after")
    def _top_of_something(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs = true")
        return self


class CompletionRequest(OpenAIRequest):
    """Body of /v1/completions: one prompt or several, as text or as token ids."""

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)


# JSON Schema of a body with exactly one of the two, not empty.
_ONE_OF_BOTH: Any = {
    "oneOf": [
        {
            "required": ["prompt"],
            "properties": {"prompt": {"type": "string"}, "messages": {"maxItems": 0}},
        },
        {
            "required": ["messages"],
            "properties": {"prompt": {"type": "null"}, "messages": {"minItems": 1}},
        },
    ]
}


class DecodeRequest(SamplingFields):
    """Body of /easd/decode: one conversation or one prompt."""

    model_config = ConfigDict(json_schema_extra=_ONE_OF_BOTH)

    model: Name | None = None
    messages: list[Message] = Field(default_factory=list, max_length=MOST_MESSAGES, fail_fast=True)
    prompt: Text | None = None
    coupling: Coupling = "shared"

    @model_validator(mode="after")
    def _one_of_both(self) -> DecodeRequest:
        if bool(self.messages) == (self.prompt is not None):
            raise ValueError("give either messages or a prompt")
        return self
