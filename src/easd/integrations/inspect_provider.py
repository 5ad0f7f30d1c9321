"""Model provider for inspect-ai, which decodes concurrent samples in one batch."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import fields, replace
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

from inspect_ai.log._samples import sample_active
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageTool,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from easd.engine.chat import encode_turns
from easd.engine.engine import Engine
from easd.engine.generate import make_engine, make_requests
from easd.engine.request import Counts, Request, Row
from easd.engine.settings import Settings
from easd.errors import ConfigError, InputError
from easd.integrations.arguments import before_stop, run_config
from easd.integrations.async_engine import AsyncEngine
from easd.pairs.from_config import load
from easd.pairs.lab import ALIASES
from easd.pairs.loading import PAIRS

# inspect's names -> names in `Settings`.
_HONOURED = {
    "max_tokens": "max_new_tokens",
    "num_choices": "n",
    "seed": "seed",
    "stop_seqs": "stop",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
}
# Handled by inspect itself, or meaningful only with tools.
_IGNORED = {
    *("adaptive_connections", "attempt_timeout", "cache", "cache_prompt", "fail_on_refusal"),
    *("internal_tools", "max_connections", "max_retries", "max_tool_output"),
    *("parallel_tool_calls", "reasoning_history", "stream_idle_timeout", "system_message"),
    "timeout",
}
# Settings in which all rows of an engine must agree.
_SHARED = ("temperature", "top_k", "top_p")


class EasdAPI(ModelAPI):
    """A pair of models as an inspect-ai model.

    Args:
        model_name: an embedded pair, or the hub id or folder of a target.
        base_url: refused, since the models run in this process.
        api_key: not needed.
        config: inspect's settings; those of a request override the `-M` arguments.
        **model_args: what `easd generate` takes, such as `draft`, `rule`, `tau_h`, `batch_size`.

    Raises:
        EasdError: An argument is unknown or does not fit.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if base_url is not None:
            raise ConfigError(
                f"base_url = {base_url!r} is not used, as the models run here; drop it"
            )
        for name in ("pair", "target"):
            if name in model_args:
                raise ConfigError(f"{name!r} is named by the model; write --model easd/NAME")
        is_pair = model_name in PAIRS or model_name in ALIASES
        self.run = run_config({**model_args, "pair" if is_pair else "target": model_name})
        self.pair = load(self.run)
        self._limit = self.pair.context_window
        self._async_engine = AsyncEngine(self._engine)
        self._asked: WeakKeyDictionary[Any, Counter[bytes]] = WeakKeyDictionary()

    def max_connections(self) -> int:
        """Returns the number of samples that the engine decodes at once."""
        return self.run.settings.batch_size

    def connection_key(self) -> str:
        """Returns the model's name: each pair has engines of its own."""
        return self.model_name

    def collapse_user_messages(self) -> bool:
        """Returns True: most chat templates require user and assistant to alternate."""
        return True

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Decodes one or more answers to a conversation.

        Raises:
            ConfigError: The request asks for something unsupported.
            InputError: The conversation fills the context window.
        """
        if tools:
            raise ConfigError(
                f"tools cannot be honoured ({len(tools)} given); use a task without tools"
            )
        settings = self._settings(config)
        requests = self._requests(self._encode(input), settings)
        begin = perf_counter()
        rows = await self._async_engine.decode(requests, self._shared(settings))
        return self._output(rows, settings, perf_counter() - begin)

    def _settings(self, config: GenerateConfig) -> Settings:
        for name in GenerateConfig.model_fields:
            if getattr(config, name) and name not in _IGNORED and name not in _HONOURED:
                raise ConfigError(
                    f"{name} = {getattr(config, name)!r} cannot be honoured; use "
                    + ", ".join(_HONOURED)
                )
        asked = {ours: getattr(config, theirs) for theirs, ours in _HONOURED.items()}
        asked = {name: value for name, value in asked.items() if value is not None}
        if "stop" in asked:
            asked["stop"] = tuple(asked["stop"])
        return replace(self.run.settings, **asked)

    def _shared(self, settings: Settings) -> Settings:
        return replace(self.run.settings, **{name: getattr(settings, name) for name in _SHARED})

    def _engine(self, settings: Settings) -> Engine:
        return make_engine(self.pair, settings, num_rows=settings.batch_size)

    def _encode(self, messages: list[ChatMessage]) -> list[int]:
        turns = [{"role": message.role, "content": _text(message)} for message in messages]
        return encode_turns(turns, self.pair.tokenizer, chat=self.run.chat)

    def _requests(self, ids: list[int], settings: Settings) -> list[Request]:
        room = None if self._limit is None else self._limit - len(ids)
        if not ids or (room is not None and room < 1):
            raise InputError(
                f"the conversation has {len(ids)} tokens and the context window {self._limit}; "
                "give at least one and leave room for one"
            )
        first = self._number(ids, settings.n)
        requests = make_requests(self.pair, [ids], settings, numbers=[first])
        if room is None:
            return requests
        return [replace(each, max_new_tokens=min(each.max_new_tokens, room)) for each in requests]

    def _number(self, ids: list[int], copies: int) -> int:
        """Returns the number of a request's first text, which keys its noise.

        Samples arrive in any order, so the number depends only on the sample, its epoch, the
        prompt, and how often the sample has sent this prompt before.
        """
        sample = sample_active()
        owner: Any = self if sample is None else sample
        where = "" if sample is None else f"{sample.sample.id}/{sample.epoch}"
        counts = self._asked.setdefault(owner, Counter())
        key = hashlib.blake2b(f"{where}/{ids}".encode(), digest_size=8).digest()
        before = counts[key]
        counts[key] += copies
        return (int.from_bytes(key, "little") << 32) + before

    def _output(self, rows: list[Row], settings: Settings, seconds: float) -> ModelOutput:
        read, written = len(rows[0].request.prompt), sum(len(row.new_ids) for row in rows)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(row, settings) for row in rows],
            usage=ModelUsage(input_tokens=read, output_tokens=written, total_tokens=read + written),
            time=seconds,
            metadata={
                field.name: sum(getattr(row.counts, field.name) for row in rows)
                for field in fields(Counts)
            },
        )

    def _choice(self, row: Row, settings: Settings) -> ChatCompletionChoice:
        text = str(self.pair.tokenizer.decode(row.new_ids, skip_special_tokens=True))
        reason: StopReason = "stop"
        if row.finished == "length":
            reason = "model_length" if len(row.ids) == self._limit else "max_tokens"
        return ChatCompletionChoice(
            message=ChatMessageAssistant(
                content=before_stop(text, settings.stop), model=self.model_name, source="generate"
            ),
            stop_reason=reason,
        )


def _text(message: ChatMessage) -> str:
    """Returns a message's text, and refuses anything else.

    Raises:
        ConfigError: The message contains something other than text.
    """
    if isinstance(message, ChatMessageTool) or getattr(message, "tool_calls", None):
        raise ConfigError("a message with tool calls cannot be honoured; use a task without tools")
    if not isinstance(message.content, str):
        for part in message.content:
            if part.type not in ("text", "reasoning"):
                raise ConfigError(
                    f"a message holds {part.type}, which cannot be honoured; give text alone"
                )
    return message.text
