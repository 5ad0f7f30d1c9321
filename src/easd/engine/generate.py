"""Decodes prompts with a target and a draft."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, TypeVar, Unpack, get_type_hints
from weakref import ref

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from easd.core.couplings import Coupling
from easd.core.rules import Rule
from easd.engine.auto_gamma import AutoGamma, recall, remember
from easd.engine.batch import Failure, StepRecord
from easd.engine.chat import as_turn, check_characters, encode, encode_turns, reasoning_markers
from easd.engine.drafter_kinds import DrafterKind, make_drafter
from easd.engine.engine import Engine
from easd.engine.models.slots import SlotModel
from easd.engine.pair import Pair
from easd.engine.request import Counts, FinishReason, Request, Row
from easd.engine.settings import Scope, Settings
from easd.engine.stopping import StopStrings
from easd.errors import ConfigError, EasdError

Message = Mapping[str, str]
Prompt = str | Sequence[int] | Tensor | Sequence[Message]

_NEW_TOKENS = 256
_MOST_CHARACTERS = 300  # of an error raised by the caller's code


class SettingsFields(TypedDict, total=False):
    """The fields of `Settings`, for editors and type checkers."""

    rule: Rule | type[Rule] | str
    gamma: int | Literal["auto"]
    least_block_prob: float
    drafter: DrafterKind
    max_new_tokens: int | None
    min_new_tokens: int
    temperature: float
    draft_temperature: float | None
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    bad_words: tuple[str, ...]
    stop: tuple[str, ...]
    seed: int
    coupling: Coupling | None
    exact_first: int
    scope: Scope
    n: int
    batch_size: int


F = TypeVar("F", bound=Callable[..., Any])


def _listing_settings(function: F) -> F:
    """Shows every setting, with its default, in the signature that `help` prints."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    defaults, types = Settings(), get_type_hints(SettingsFields)
    settings = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(defaults, field.name),
            annotation=types[field.name],
        )
        for field in fields(Settings)
    ]
    function.__signature__ = signature.replace(parameters=[*own, *settings])  # type: ignore[attr-defined]
    return function


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One decoded text.

    Attributes:
        number: the request's; the j-th text of prompt i has number i * n + j.
        token_ids: the new tokens, including an end-of-sequence token.
        text: the new tokens as text without special tokens; None without a tokenizer.
        finish_reason: `eos`, `stop` (a stop string or criterion), `length`, or `error`.
        counts: blocks (target forwards), and draft tokens proposed, examined, accepted, penalised.
        scores: the target's processed scores of each emitted token if asked for, else empty.
        error: the cause where `finish_reason` is `error`.
    """

    number: int
    prompt_ids: tuple[int, ...]
    token_ids: list[int]
    text: str | None
    finish_reason: FinishReason
    counts: Counts
    scores: list[Tensor]
    error: Exception | None = None


@_listing_settings
def generate(
    target: PreTrainedModel,
    draft: PreTrainedModel | None,
    prompts: Prompt | Sequence[Prompt],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    draft_tokenizer: PreTrainedTokenizerBase | None = None,
    chat: bool = False,
    settings: Settings | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    **overrides: Unpack[SettingsFields],
) -> list[Generation]:
    """Decodes every prompt and returns the texts in the prompts' order.

    A text that fails, for example by NaN logits, ends with `finish_reason` "error" and a warning,
    and the others continue. If all texts fail, the first error is raised.

    Args:
        target: the model to decode.
        draft: a smaller model; None with prompt lookup or a rule that runs the target alone.
        prompts: one prompt or several: text to continue, a conversation to answer (a list of
            messages with `role` and `content`), or token ids. Text and conversations need
            `tokenizer`.
        tokenizer: turns text into ids and back, and names the end-of-sequence token.
        draft_tokenizer: the draft's, if it is another.
        chat: answer a text as a user's turn in the tokenizer's chat template. Otherwise the text
            is continued as it is, which chat models often end at once.
        settings: how to decode.
        on_step: called with every step's record.
        **overrides: single fields of `Settings`, for example `rule=EASD(tau_h=1.2)`; its
            documentation explains each.

    Raises:
        ConfigError: A setting is unknown, out of range, or does not fit these models.
        InputError: A prompt is empty or does not fit the context window.
        ModelError: The models do not share a vocabulary, or their cache cannot be served.
        NumericsError: A model returned NaN for all texts.
    """
    settings = with_overrides(settings or Settings(), overrides)
    pair = Pair.of(target, draft, tokenizer, draft_tokenizer)
    ids = [_prompt_ids(prompt, tokenizer, chat=chat) for prompt in _as_list(prompts)]
    done: list[Row] = []
    failed: list[Row] = []
    for record in decode(pair, make_requests(pair, ids, settings), settings, failed.append):
        done += [row for row in record.rows if row.finished]
        if on_step is not None:
            on_step(record)
    if failed:
        if not done:
            raise failed[0].error or AssertionError("a row fails by an error")
        warnings.warn(summary_of_failures(failed, len(done) + len(failed)), stacklevel=2)
    done += failed
    done.sort(key=lambda row: row.request.number)
    return [_generation(row, tokenizer) for row in done]


def decode(
    pair: Pair,
    requests: Iterable[Request],
    settings: Settings,
    on_failure: Callable[[Row], None] | None = None,
) -> Iterator[StepRecord]:
    """Decodes `requests` and yields a record of every step.

    Args:
        on_failure: called with every row that fails, while the others continue; without it the
            error is raised.
    """
    requests = list(requests)
    engine = make_engine(pair, settings, num_rows=min(settings.batch_size, len(requests)))
    for request in requests:
        engine.submit(request)
    while engine.busy:
        for found in engine.step():
            if not isinstance(found, Failure):
                yield found
            elif on_failure is None:
                raise found.error
            else:
                on_failure(found.row)
    engine.close()
    if engine.auto is not None:
        remember(pair.target, _kind(pair, settings), engine.auto)


def summary_of_failures(failed: Sequence[Row], texts: int) -> str:
    """One line on the failed ones of `texts` texts."""
    first = min(failed, key=lambda row: row.request.number)
    return (
        f"{len(failed)} of {texts} texts failed and end early; "
        f"the first, text {first.request.number}: {describe_error(first.error)}"
    )


def describe_error(error: Exception | None) -> str:
    """One line on why a text failed."""
    line = " ".join(str(error).split())[:_MOST_CHARACTERS]
    return line if isinstance(error, EasdError) else f"{type(error).__name__}: {line}".rstrip(": ")


def make_engine(pair: Pair, settings: Settings, *, num_rows: int) -> Engine:
    """An idle engine with the models that the settings' rule runs."""
    rule = settings.rule
    seen = pair.seen_by(rule)
    gamma = settings.most_gamma if rule.models == "both" else 0
    num_rows = max(num_rows, 1)
    return Engine(
        SlotModel(seen.target, num_rows),
        make_drafter(
            settings.drafter,
            seen,
            gamma=gamma,
            num_rows=num_rows,
            least_block_prob=settings.least_block_prob,
        ),
        rule,
        vocab_size=seen.vocab_size,
        context_window=pair.context_window,
        gamma=gamma,
        auto=_auto_gamma(pair, settings) if settings.gamma == "auto" and gamma else None,
        num_rows=num_rows,
        coupling=settings.coupling,
    )


def _auto_gamma(pair: Pair, settings: Settings) -> AutoGamma:
    learnt = recall(pair.target, _kind(pair, settings))
    bonus = settings.rule.draft_at_bonus
    return learnt or AutoGamma(settings.most_gamma, draft_at_bonus=bonus)


def _kind(pair: Pair, settings: Settings) -> Hashable:
    """Equal for decodes of a target whose blocks are drafted and judged alike."""
    draft = None if pair.draft is None else ref(pair.draft)
    return draft, replace(
        settings, seed=0, n=1, batch_size=1, max_new_tokens=None, min_new_tokens=0
    )


def make_requests(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    numbers: Sequence[int] | None = None,
) -> list[Request]:
    """`settings.n` requests for each prompt of token ids.

    Args:
        numbers: of each prompt's first request, and consecutive ones of its others; unless given,
            all requests are numbered from 0.
    """
    eos, tokenizer = pair.end_tokens, pair.tokenizer
    if (settings.stop or settings.bad_words) and tokenizer is None:
        raise ConfigError("stop and bad_words are texts; give the tokenizer that reads them")
    bad_words = [_token_ids(word, tokenizer, special=False) for word in settings.bad_words]
    markers = reasoning_markers(tokenizer) if settings.scope == "reasoning" else None
    if numbers is None:
        numbers = range(0, len(prompts) * settings.n, settings.n)
    return [
        Request(
            prompt=tuple(ids),
            draft_prompt=pair.draft_prompt(ids),
            number=first + copy,
            seed=settings.seed,
            max_new_tokens=settings.max_new_tokens or _room(len(ids), pair.context_window),
            eos=frozenset(eos),
            processing=settings.processing(len(ids), eos, bad_words),
            criteria=(StopStrings(tokenizer, settings.stop, len(ids)),) if settings.stop else (),
            exact_first=settings.exact_first,
            markers=markers,
        )
        for first, ids in zip(numbers, prompts, strict=True)
        for copy in range(settings.n)
    ]


def _room(prompt_length: int, limit: int | None) -> int:
    """Default number of new tokens; at least one, so that the engine reports what does not fit."""
    return _NEW_TOKENS if limit is None else max(1, min(_NEW_TOKENS, limit - prompt_length))


def with_overrides(settings: Settings, overrides: Mapping[str, Any]) -> Settings:
    """`settings` with some fields replaced; refuses unknown names."""
    known = [field.name for field in fields(Settings)]
    for name in overrides:
        if name not in known:
            raise ConfigError(f"{name!r} is not a setting; choose from {', '.join(known)}")
    return replace(settings, **overrides) if overrides else settings


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (isinstance(prompts, Tensor) and prompts.ndim == 1):
        return [prompts]
    items = list(prompts)
    return [items] if items and isinstance(items[0], int | Mapping) else items  # type: ignore[list-item]


def _prompt_ids(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, *, chat: bool
) -> list[int]:
    """Token ids of a prompt; conversations, and with `chat` texts, use the chat template."""
    turns = None if isinstance(prompt, str | Tensor) else list(prompt)
    if not turns or not isinstance(turns[0], Mapping):
        if not (chat and isinstance(prompt, str)):
            return _token_ids(prompt, tokenizer)
        if tokenizer is not None:
            return encode(prompt, tokenizer, chat=True)
    if tokenizer is None:
        raise ConfigError("chat needs the chat template; give the tokenizer that has it")
    return encode_turns([as_turn(turn) for turn in turns or ()], tokenizer, chat=True)


def _token_ids(
    prompt: Any, tokenizer: PreTrainedTokenizerBase | None, *, special: bool = True
) -> list[int]:
    if isinstance(prompt, Tensor):
        return prompt.tolist()
    if not isinstance(prompt, str):
        return list(prompt)
    if tokenizer is None:
        raise ConfigError("the prompt is text; give the tokenizer that turns it into token ids")
    check_characters(prompt)
    return tokenizer(prompt, add_special_tokens=special)["input_ids"]


def _generation(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> Generation:
    assert row.finished is not None
    ids = row.new_ids
    return Generation(
        number=row.request.number,
        prompt_ids=row.request.prompt,
        token_ids=ids,
        text=None if tokenizer is None else str(tokenizer.decode(ids, skip_special_tokens=True)),
        finish_reason=row.finished,
        counts=row.counts,
        scores=row.scores,
        error=row.error,
    )
