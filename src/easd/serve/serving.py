"""A server's configuration, and how request bodies become engine requests."""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from easd.config import RunConfig, parse_rule, rule_to_dict
from easd.core.rules import Rule, make_rule, rule_name, rule_names
from easd.engine.chat import encode, encode_turns
from easd.engine.generate import make_requests
from easd.engine.pair import Pair
from easd.engine.processing import Processing
from easd.engine.request import Request
from easd.engine.settings import Settings
from easd.errors import ConfigError, EasdError, InputError, RuleError, shown
from easd.pairs.loading import PAIRS
from easd.serve.errors import Refusal
from easd.serve.requests import MOST_TEXTS, Message, SamplingFields

_IS_ID = re.compile("[0-9]{1,10}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A server's models, defaults and limits.

    Attributes:
        config: the models, and the settings that hold unless a request gives others.
        lossless_only: refuse rules that change the target's output distribution.
        served_model_name: the model's name for clients; the pair's unless given.
        hosts: names that clients may use for the server, beside those of loopback; None admits any.
        api_key: required of clients, if any.
        max_queue: maximum number of texts that wait for a slot.
        prefill_tokens: maximum number of prompt tokens cached between two steps of running texts.
        max_body: maximum size of a request body in bytes.
        max_model_len: maximum length of a prompt and its text in tokens; the models' context
            window unless given.
    """

    config: RunConfig
    lossless_only: bool = False
    served_model_name: str | None = None
    hosts: tuple[str, ...] | None = ()
    api_key: str | None = None
    max_queue: int = 256
    prefill_tokens: int = 256
    max_body: int = 2**20
    max_model_len: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_queue", "prefill_tokens", "max_body"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} lets nothing in; use 1 or more")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError(
                f"max_model_len = {self.max_model_len} has no room for a prompt and a token; "
                "use 2 or more"
            )
        for name, value in (("API key", self.api_key), ("model's name", self.served_model_name)):
            if value == "":
                raise ConfigError(f"the {name} is empty; leave it out, or give one")
        self.check_lossless(self.config.settings.rule)

    @property
    def num_rows(self) -> int:
        """Maximum number of texts decoded at once."""
        return self.config.settings.batch_size

    def check_lossless(self, rule: Rule) -> None:
        """Refuses a lossy rule on a server that is lossless only.

        Raises:
            ConfigError: The rule may change the target's output distribution.
        """
        if self.lossless_only and not rule.lossless:
            names = " or ".join(name for name in rule_names() if make_rule(name).lossless)
            raise ConfigError(
                f"rule {rule_name(rule)!r} changes what the target would write and this server is "
                f"lossless only; use {names}"
            )


class Reader:
    """Parses request bodies into settings and engine requests.

    Raises:
        ConfigError: The server's own settings do not fit the pair.
    """

    def __init__(self, pair: Pair, serving: Serving) -> None:
        self._serving = serving
        self._pair = pair
        self._vocab_size = pair.vocab_size
        limits = [pair.context_window, serving.max_model_len]
        self.limit = min((limit for limit in limits if limit), default=None)
        self._check_models(serving.config.settings)

    def example(self) -> dict[str, Any]:
        """Returns a prompt to try, whether it is sent as a chat, and the room for new tokens."""
        info = PAIRS.get(self._pair.name)
        chat = self._serving.config.chat
        chat = bool(self._pair.tokenizer.chat_template) if chat is None else chat
        prompt = None if info is None else info.example
        if prompt is None or self.limit is None:
            return {"prompt": prompt, "chat": chat, "room": self.limit}
        ids = encode(prompt, self._pair.tokenizer, chat=chat)
        return {"prompt": prompt, "chat": chat, "room": max(self.limit - len(ids), 1)}

    def settings(self, body: SamplingFields, **more: Any) -> Settings:
        """Returns the settings that a body asks for.

        Raises:
            EasdError: The settings or the rule do not fit.
        """
        base = self._serving.config.settings
        asked = {"seed": secrets.randbits(63)} | body.asked() | more
        asked.pop("max_new_tokens", None)  # What fits depends on the prompt.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Warnings are for a terminal.
            settings = replace(base, **asked, rule=self._rule(body.speculative))
        self._check_models(settings)
        return settings

    def requests(
        self,
        body: SamplingFields,
        prompts: Sequence[Sequence[int]],
        settings: Settings,
        *,
        max_new_tokens: int | None,
        wants_raw: bool = False,
    ) -> list[Request]:
        """Returns the engine's requests, `settings.n` for each prompt.

        Raises:
            Refusal: There are too many texts, or a prompt does not fit.
        """
        if len(prompts) * settings.n > MOST_TEXTS:
            raise Refusal(
                400,
                f"{len(prompts)} prompts with n = {settings.n} are more than {MOST_TEXTS} texts; "
                "ask for fewer at a time",
                param="n",
            )
        found = make_requests(self._pair.seen_by(settings.rule), prompts, settings)
        return [
            replace(
                request,
                rule=settings.rule,
                coupling=settings.coupling,
                processing=self._processing(body, request),
                max_new_tokens=self._room(request, max_new_tokens),
                wants_raw=wants_raw,
            )
            for request in found
        ]

    def conversation(self, messages: Sequence[Message]) -> list[int]:
        """Returns token ids of a conversation, up to the beginning of the answer."""
        turns = [
            {"role": "system" if m.role == "developer" else m.role, "content": m.text}
            for m in messages
        ]
        return encode_turns(turns, self._pair.tokenizer, chat=self._serving.config.chat)

    def prompts(self, given: str | Sequence[Any]) -> list[list[int]]:
        """Returns token ids of one prompt or several.

        Raises:
            Refusal: A prompt of ids is longer than the context window; no text is tokenized then.
        """
        several = isinstance(given, list) and not isinstance(given[0], int)
        prompts = given if several else [given]
        for prompt in prompts:
            if isinstance(prompt, list) and self.limit is not None and len(prompt) > self.limit:
                raise self._too_long(len(prompt), None, param="prompt")
        return [
            self._pair.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
            for prompt in prompts
        ]

    def _rule(self, asked: Mapping[str, Any]) -> Rule:
        own = rule_to_dict(self._serving.config.settings.rule)
        name = asked.get("rule", own["name"])
        fields = {field: value for field, value in asked.items() if field != "rule"}
        try:
            if "name" in fields:
                raise RuleError("a rule has no field 'name'; name the rule by 'rule'")
            rule = parse_rule({**(own if name == own["name"] else {}), **fields, "name": name})
            self._serving.check_lossless(rule)
        except EasdError as error:
            raise Refusal(400, str(error), param="speculative") from None
        return rule

    def _check_models(self, settings: Settings) -> None:
        if self._pair.draft is not None or settings.rule.models == "target":
            return
        if settings.rule.models == "draft" or settings.drafter == "model":
            raise ConfigError(
                f"rule {rule_name(settings.rule)!r} needs a draft model and the server has none; "
                "use rule target, or start it with --draft or --drafter prompt-lookup"
            )

    def _processing(self, body: SamplingFields, request: Request) -> Processing:
        found = []
        if body.logit_bias:
            found.append(LogitBias(self._biases(body.logit_bias)))
        if body.presence_penalty or body.frequency_penalty:
            found.append(
                OccurrencePenalty(
                    len(request.prompt),
                    presence=body.presence_penalty,
                    frequency=body.frequency_penalty,
                )
            )
        return replace(request.processing, processors=(*found, *request.processing.processors))

    def _biases(self, asked: Mapping[str, float]) -> dict[int, float]:
        for token in asked:
            if not (_IS_ID.fullmatch(token) and int(token) < self._vocab_size):
                raise Refusal(
                    400,
                    f"logit_bias names {shown(token)}, which is no token; use ids from 0 to "
                    f"{self._vocab_size - 1}",
                    param="logit_bias",
                )
        return {int(token): bias for token, bias in asked.items()}

    def _room(self, request: Request, asked: int | None) -> int:
        length = len(request.prompt)
        if not length:
            raise InputError("the prompt is empty; give at least one token to go on from")
        if max(request.prompt) >= self._vocab_size:
            raise InputError(
                f"the prompt has token id {max(request.prompt)} and the vocabulary "
                f"{self._vocab_size} tokens; use the model's tokenizer"
            )
        if self.limit is None:
            return asked or request.max_new_tokens
        room = self.limit - length
        if room < (asked or 1):
            raise self._too_long(length, asked, param="messages" if asked is None else "max_tokens")
        return asked or min(request.max_new_tokens, room)

    def _too_long(self, length: int, asked: int | None, *, param: str) -> Refusal:
        return Refusal(
            400,
            f"the prompt has {length} tokens and max_tokens is {asked or 1}, together more "
            f"than the context window of {self.limit}; shorten the prompt or lower max_tokens",
            param=param,
            code="context_length_exceeded",
        )


class OccurrencePenalty:
    """OpenAI's penalties on decoded tokens, which leave the prompt out.

    Args:
        prompt_length: number of ids before the first decoded token.
        presence: subtracted once from the logit of every decoded token.
        frequency: subtracted once for each time the token was decoded.
    """

    def __init__(self, prompt_length: int, *, presence: float, frequency: float) -> None:
        self._prompt_length = prompt_length
        self._presence = presence
        self._frequency = frequency

    def __call__(self, text: Tensor, scores: Tensor) -> Tensor:
        """Processes scores [1, V] after the text [1, L]."""
        tokens, counts = text[0, self._prompt_length :].unique(return_counts=True)
        lowered = scores.clone()
        lowered[0, tokens] -= self._presence + self._frequency * counts
        return lowered


class LogitBias:
    """OpenAI's logit bias: adds `biases` to logits, by token id."""

    def __init__(self, biases: Mapping[int, float]) -> None:
        self._tokens = list(biases)
        self._biases = torch.tensor(list(biases.values()))

    def __call__(self, text: Tensor, scores: Tensor) -> Tensor:
        """Processes scores [1, V] after the text [1, L]."""
        raised = scores.clone()
        raised[0, self._tokens] += self._biases.to(scores)
        return raised
