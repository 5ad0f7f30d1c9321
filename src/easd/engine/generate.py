"""Decode prompts with a target and a draft: the front door of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from easd.core.rules import Rule, rule_name
from easd.engine.drafters import Drafter, ModelDrafter, NoDrafter, PromptLookupDrafter
from easd.engine.engine import Engine, StepRecord
from easd.engine.models.slots import SlotModel, context_window
from easd.engine.request import Counts, FinishReason, Request, Row
from easd.engine.settings import Settings
from easd.engine.stopping import StopStrings
from easd.errors import ConfigError, InputError, ModelError

Prompt = str | Sequence[int] | Tensor

_NEW_TOKENS = 256

# Vocabularies are padded to please the hardware; more rows than this are different tokens.
_MOST_PADDING = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One decoded text.

    Attributes:
        number: index of the request: prompt i's j-th text has number i * n + j.
        token_ids: the new tokens, including the end-of-sequence token where it came.
        text: the new tokens as text without special tokens; None without a tokenizer.
        finish_reason: `eos`, `stop` (a stop string or criterion) or `length`.
        counts: blocks (target forwards), and draft tokens proposed, examined, accepted, penalised.
        scores: the target's processed scores of each emitted token where asked for, else empty.
    """

    number: int
    prompt_ids: tuple[int, ...]
    token_ids: list[int]
    text: str | None
    finish_reason: FinishReason
    counts: Counts
    scores: list[Tensor]


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

    Args:
        target: the model whose text is wanted.
        draft: a smaller model with the same tokenizer; None with the prompt-lookup drafter or a
            rule that runs the target alone.
        prompts: one prompt or several, as text (then `tokenizer` is needed) or as token ids.
        tokenizer: turns text into ids and back; names the end-of-sequence token.
        settings: how to decode.
        on_step: called with every step's record.
        **overrides: single fields of `Settings` by name, for example `rule=EASD(tau_h=1.2)`.

    Raises:
        ConfigError: A setting is unknown, out of range, or does not fit these models.
        InputError: A prompt is empty or does not fit the context window.
        ModelError: The models do not share a vocabulary, or their cache cannot be served.
        NumericsError: A model returned NaN.
    """
    settings = with_overrides(settings or Settings(), overrides)
    texts = _as_list(prompts)
    ids = [_token_ids(prompt, tokenizer) for prompt in texts]
    requests = make_requests([target, draft], ids, settings, tokenizer)
    done: list[Row] = []
    for record in decode(target, draft, requests, settings):
        done += [row for row in record.rows if row.finished]
        if on_step is not None:
            on_step(record)
    done.sort(key=lambda row: row.request.number)
    return [_generation(row, tokenizer) for row in done]


def decode(
    target: PreTrainedModel,
    draft: PreTrainedModel | None,
    requests: Iterable[Request],
    settings: Settings,
) -> Iterator[StepRecord]:
    """Runs the engine over `requests` and yields every step."""
    requests = list(requests)
    engine = make_engine(target, draft, settings, num_rows=min(settings.batch_size, len(requests)))
    _check_prompts(requests, context_limit([target, draft]), engine.vocab_size)
    _check_rules(requests, settings.rule)
    engine.waiting.extend(requests)
    while engine.busy:
        yield from engine.step()


def make_engine(
    target: PreTrainedModel, draft: PreTrainedModel | None, settings: Settings, *, num_rows: int
) -> Engine:
    """An empty engine for these models; a rule that runs one model alone gets just that one."""
    rule = settings.rule
    if rule.models == "draft":
        if draft is None:
            raise ConfigError("this rule decodes with the draft alone; give a draft model")
        target = draft
    gamma = settings.gamma if rule.models == "both" else 0
    num_rows = max(num_rows, 1)
    vocab_size = shared_vocabulary(target, draft)
    drafter: Drafter
    if gamma == 0:
        drafter = NoDrafter(vocab_size, target.device)
    elif settings.drafter == "prompt-lookup":
        drafter = PromptLookupDrafter(vocab_size, target.device, gamma)
    elif draft is None:
        raise ConfigError("no draft model given; name one, or use drafter='prompt-lookup'")
    else:
        drafter = ModelDrafter(SlotModel(draft, num_rows), vocab_size, settings.least_block_prob)
    return Engine(
        SlotModel(target, num_rows),
        drafter,
        rule,
        vocab_size=vocab_size,
        gamma=gamma,
        num_rows=num_rows,
        coupling=settings.coupling,
    )


def make_requests(
    models: Sequence[PreTrainedModel | None],
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[Request]:
    """`settings.n` requests for each prompt of token ids, for the target and its draft."""
    eos = end_tokens(models[0], tokenizer)
    limit = context_limit(models)
    if (settings.stop or settings.bad_words) and tokenizer is None:
        raise ConfigError("stop and bad_words are texts; give the tokenizer that reads them")
    bad_words = [_token_ids(word, tokenizer, special=False) for word in settings.bad_words]
    return [
        Request(
            prompt=tuple(ids),
            number=index * settings.n + copy,
            seed=settings.seed,
            max_new_tokens=settings.max_new_tokens or _room(len(ids), limit),
            eos=frozenset(eos),
            processing=settings.processing(len(ids), eos, bad_words),
            criteria=(StopStrings(tokenizer, settings.stop, len(ids)),)
            if tokenizer is not None and settings.stop
            else (),
        )
        for index, ids in enumerate(prompts)
        for copy in range(settings.n)
    ]


def end_tokens(
    target: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None
) -> list[int]:
    """Ids that end a text: the generation config's, or the tokenizer's."""
    config = getattr(target, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    if ids is None and tokenizer is not None:
        ids = tokenizer.eos_token_id
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else [int(token) for token in ids]


def shared_vocabulary(target: PreTrainedModel, draft: PreTrainedModel | None) -> int:
    """The number of token ids both models know; unequal padding is cut off.

    Raises:
        ModelError: The sizes differ by more than padding.
    """
    size = target.config.get_text_config(decoder=True).vocab_size
    if draft is None:
        return size
    other = draft.config.get_text_config(decoder=True).vocab_size
    if abs(size - other) > _MOST_PADDING:
        raise ModelError(
            f"draft vocabulary ({other}) differs from target vocabulary ({size}) beyond padding "
            f"({_MOST_PADDING}); use models that share a tokenizer, or the prompt-lookup drafter"
        )
    return min(size, other)


def context_limit(models: Sequence[PreTrainedModel | None]) -> int | None:
    """The smallest context window of the models, or None where none is named."""
    windows = [context_window(model) for model in models if model is not None]
    return min((window for window in windows if window), default=None)


def _room(prompt_length: int, limit: int | None) -> int:
    """New tokens for a prompt that asks for no number; at least one, so that a check can refuse."""
    return _NEW_TOKENS if limit is None else max(1, min(_NEW_TOKENS, limit - prompt_length))


def _check_prompts(requests: Sequence[Request], limit: int | None, vocab_size: int) -> None:
    for request in requests:
        length = len(request.prompt)
        if not length:
            raise InputError(
                f"prompt {request.number} is empty; give at least one token to continue from"
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < vocab_size:
            raise InputError(
                f"prompt {request.number} has token ids from {min(request.prompt)} to "
                f"{max(request.prompt)} and the vocabulary {vocab_size} tokens; "
                "use the models' own tokenizer"
            )
        if limit is not None and length + request.max_new_tokens > limit:
            raise InputError(
                f"prompt {request.number} has {length} tokens and max_new_tokens is "
                f"{request.max_new_tokens}, together more than the context window of {limit}; "
                "shorten the prompt or lower max_new_tokens"
            )


def _check_rules(requests: Sequence[Request], rule: Rule) -> None:
    """What a batch of forwards has in common is the engine's rule's to say."""
    for other in {request.rule for request in requests if request.rule is not None}:
        if (other.models, other.draft_at_bonus) != (rule.models, rule.draft_at_bonus):
            raise ConfigError(
                f"the rules {rule_name(other)} and {rule_name(rule)} run the models in different "
                "ways; decode each by itself"
            )


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
    )
