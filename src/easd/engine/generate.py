"""Decode prompts with a target and a draft: the front door of the engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from easd.engine.batch import Failure, StepRecord
from easd.engine.drafters import Drafter, ModelDrafter, NoDrafter, PromptLookupDrafter
from easd.engine.engine import Engine
from easd.engine.models.slots import SlotModel
from easd.engine.pair import Pair
from easd.engine.request import Counts, FinishReason, Request, Row
from easd.engine.settings import Settings
from easd.engine.stopping import StopStrings
from easd.errors import ConfigError, EasdError

Prompt = str | Sequence[int] | Tensor

_NEW_TOKENS = 256
_MOST_CHARACTERS = 300  # of an error that a caller's own code raised


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One decoded text.

    Attributes:
        number: of the request: prompt i's j-th text has number i * n + j.
        token_ids: the new tokens, including an end-of-sequence token.
        text: the new tokens as text without special tokens; None without a tokenizer.
        finish_reason: `eos`, `stop` (a stop string or criterion), `length`, or `error`.
        counts: blocks (target forwards), and draft tokens proposed, examined, accepted, penalised.
        scores: the target's processed scores of each emitted token where asked for, else empty.
        error: what ended the text where `finish_reason` is `error`.
    """

    number: int
    prompt_ids: tuple[int, ...]
    token_ids: list[int]
    text: str | None
    finish_reason: FinishReason
    counts: Counts
    scores: list[Tensor]
    error: Exception | None = None


def generate(
    target: PreTrainedModel,
    draft: PreTrainedModel | None,
    prompts: Prompt | Sequence[Prompt],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    settings: Settings | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    **overrides: Any,
) -> list[Generation]:
    """Decodes every prompt and returns the texts in the prompts' order.

    A text with a fault of its own, such as NaN logits, ends with `finish_reason` "error" and a
    warning, and the others go on; if all texts have one, the first is raised.

    Args:
        target: the model whose text is wanted.
        draft: a smaller model with the same tokenizer; None with the prompt-lookup drafter or a
            rule that runs the target alone.
        prompts: one prompt or several, as text (which needs `tokenizer`) or as token ids.
        tokenizer: turns text into ids and back, and names the end-of-sequence token.
        settings: how to decode.
        on_step: called with every step's record.
        **overrides: single fields of `Settings` by name, for example `rule=EASD(tau_h=1.2)`.

    Raises:
        ConfigError: A setting is unknown, out of range, or does not fit these models.
        InputError: A prompt is empty or does not fit the context window.
        ModelError: The models do not share a vocabulary, or their cache cannot be served.
        NumericsError: A model returned NaN for all texts.
    """
    settings = with_overrides(settings or Settings(), overrides)
    pair = Pair.of(target, draft, tokenizer)
    ids = [_token_ids(prompt, tokenizer) for prompt in _as_list(prompts)]
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
    """Decodes `requests` to their ends and yields a record of every step.

    Args:
        pair: the models.
        requests: what to decode.
        settings: how to.
        on_failure: called with every row that a fault of its own ended, while the others go on;
            without it the fault is raised.
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


def summary_of_failures(failed: Sequence[Row], texts: int) -> str:
    """One line on the texts that failed, of so many in all."""
    first = min(failed, key=lambda row: row.request.number)
    return (
        f"{len(failed)} of {texts} texts failed and end early; "
        f"the first, text {first.request.number}: {describe_error(first.error)}"
    )


def describe_error(error: Exception | None) -> str:
    """One line on a text's fault."""
    line = " ".join(str(error).split())[:_MOST_CHARACTERS]
    return line if isinstance(error, EasdError) else f"{type(error).__name__}: {line}".rstrip(": ")


def make_engine(pair: Pair, settings: Settings, *, num_rows: int) -> Engine:
    """An idle engine; for a rule that runs one model alone it has just that one."""
    rule = settings.rule
    seen = pair.seen_by(rule)
    gamma = settings.gamma if rule.models == "both" else 0
    num_rows = max(num_rows, 1)
    return Engine(
        SlotModel(seen.target, num_rows),
        _drafter(seen, settings, gamma, num_rows),
        rule,
        vocab_size=seen.vocab_size,
        context_window=pair.context_window,
        gamma=gamma,
        num_rows=num_rows,
        coupling=settings.coupling,
    )


def _drafter(pair: Pair, settings: Settings, gamma: int, num_rows: int) -> Drafter:
    if gamma == 0:
        return NoDrafter(pair.vocab_size, pair.target.device)
    if settings.drafter == "prompt-lookup":
        return PromptLookupDrafter(pair.vocab_size, pair.target.device, gamma)
    if pair.draft is None:
        raise ConfigError("no draft model given; name one, or use drafter='prompt-lookup'")
    draft = SlotModel(pair.draft, num_rows)
    return ModelDrafter(draft, pair.vocab_size, settings.least_block_prob)


def make_requests(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    numbers: Sequence[int] | None = None,
) -> list[Request]:
    """`settings.n` requests for each prompt of token ids.

    Args:
        pair: gives end-of-sequence tokens, the context window and the tokenizer.
        prompts: token ids.
        settings: how to decode.
        numbers: of each prompt's first request, which its other ones count on from; unless given,
            all requests count from 0.
    """
    eos, tokenizer = pair.end_tokens, pair.tokenizer
    if (settings.stop or settings.bad_words) and tokenizer is None:
        raise ConfigError("stop and bad_words are texts; give the tokenizer that reads them")
    bad_words = [_token_ids(word, tokenizer, special=False) for word in settings.bad_words]
    if numbers is None:
        numbers = range(0, len(prompts) * settings.n, settings.n)
    return [
        Request(
            prompt=tuple(ids),
            number=first + copy,
            seed=settings.seed,
            max_new_tokens=settings.max_new_tokens or _room(len(ids), pair.context_window),
            eos=frozenset(eos),
            processing=settings.processing(len(ids), eos, bad_words),
            criteria=(StopStrings(tokenizer, settings.stop, len(ids)),) if settings.stop else (),
        )
        for first, ids in zip(numbers, prompts, strict=True)
        for copy in range(settings.n)
    ]


def _room(prompt_length: int, limit: int | None) -> int:
    """Default number of new tokens; at least one, so that the engine can say what does not fit."""
    return _NEW_TOKENS if limit is None else max(1, min(_NEW_TOKENS, limit - prompt_length))


def with_overrides(settings: Settings, overrides: dict[str, Any]) -> Settings:
    """`settings` with single fields replaced.

    Raises:
        ConfigError: A name is not a setting.
    """
    known = [field.name for field in fields(Settings)]
    for name in overrides:
        if name not in known:
            raise ConfigError(f"{name!r} is not a setting; choose from {', '.join(known)}")
    return replace(settings, **overrides) if overrides else settings


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str) or (isinstance(prompts, Tensor) and prompts.ndim == 1):
        return [prompts]
    items = list(prompts)
    return [items] if items and isinstance(items[0], int) else items  # type: ignore[list-item]


def _token_ids(
    prompt: Prompt, tokenizer: PreTrainedTokenizerBase | None, *, special: bool = True
) -> list[int]:
    if isinstance(prompt, Tensor):
        return prompt.tolist()
    if not isinstance(prompt, str):
        return list(prompt)
    if tokenizer is None:
        raise ConfigError("the prompt is text; give the tokenizer that turns it into token ids")
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
