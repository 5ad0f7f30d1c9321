"""`custom_generate`, for `model.generate(..., custom_generate=easd.custom_generate)`.

transformers prepares the prompt, logits processors and stopping criteria as for its own sampling.
This module passes them to the engine row by row, and raises an error that names anything
unsupported.
"""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import logits_process as hf
from transformers.generation import stopping_criteria as stopping
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerationMixin

from easd.core.couplings import Coupling
from easd.core.rules import EASD, Rule, as_rule
from easd.engine.engine import StepRecord
from easd.engine.generate import decode, summary_of_failures
from easd.engine.models.slots import CACHE_KEYWORDS
from easd.engine.pair import Pair
from easd.engine.processing import Processing
from easd.engine.request import Criterion, Request, Row
from easd.engine.settings import Settings
from easd.engine.stopping import StopStrings
from easd.errors import ConfigError

# Processors with state between calls, which a refused draft token would corrupt.
_STATEFUL = (
    hf.UnbatchedClassifierFreeGuidanceLogitsProcessor,
    hf.ClassifierFreeGuidanceLogitsProcessor,
    hf.SynthIDTextWatermarkLogitsProcessor,
    hf.WhisperTimeStampLogitsProcessor,
)
# Code of the undecorated `generate`, whose frame holds the streamer.
_GENERATE = inspect.unwrap(vars(GenerationMixin)["generate"]).__code__
# Keywords that `generate` adds by itself, or that change no text.
_OWN_KEYWORDS = {
    *("attention_mask", "position_ids", "cache_position", "use_cache", "logits_to_keep"),
    *CACHE_KEYWORDS,
}
# Since transformers 5.24 `generate` encodes images first and passes on the encodings.
_MADE_OF = {"mm_encoder_outputs": "pixel_values (or another input of the model's encoders)"}
_UNSUPPORTED = {
    "output_logits": "use output_scores, the processed logits of every emitted token",
    "output_attentions": "run a plain forward over the finished text instead",
    "output_hidden_states": "run a plain forward over the finished text instead",
    "penalty_alpha": "contrastive search is another decoding method; drop it",
    "dola_layers": "DoLa is another decoding method; drop it",
}


def custom_generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: hf.LogitsProcessorList,
    stopping_criteria: stopping.StoppingCriteriaList,
    generation_config: GenerationConfig,
    draft_model: PreTrainedModel | None = None,
    draft_tokenizer: PreTrainedTokenizerBase | None = None,
    rule: Rule | str | None = None,
    gamma: int | Literal["auto"] = 4,
    coupling: Coupling | None = None,
    draft_temperature: float | None = None,
    exact_first: int = 0,
    seed: int | None = None,
    batch_size: int | None = None,
    stop_strings: str | list[str] | None = None,
    stop_tokenizer: PreTrainedTokenizerBase | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    **model_kwargs: Any,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Decodes by `rule` with `draft_model`, under the user's generation config.

    Pass it as `custom_generate` to `model.generate`, together with the keywords below. A row that
    fails, for example with NaN logits, ends early with a warning that names it, and the others
    continue; if all rows fail, the first error is raised.

    Args:
        draft_model: the draft; without one, the config's `prompt_lookup_num_tokens` turns on prompt
            lookup.
        draft_tokenizer: the draft's, if it is not the model's.
        rule: a rule or its name; `EASD()` unless given.
        gamma: maximum number of draft tokens per block, or `auto`; see `Settings.gamma`.
        coupling: see `Settings.coupling`.
        draft_temperature: see `Settings.draft_temperature`.
        exact_first: see `Settings.exact_first`.
        seed: determines all randomness; unless given, drawn from torch's global generator, so that
            `set_seed` works as usual.
        batch_size: maximum number of rows decoded at once; all of them unless given.
        stop_strings: texts that end a row.
        stop_tokenizer: the model's tokenizer, which stop strings and a `draft_tokenizer` need and
            `generate` does not pass on; unless given, loaded from the model's path.
        on_step: called with every step's record.

    Raises:
        ConfigError: The generation config asks for something that cannot be honoured.
    """
    with _callers_streamer() as streamer:
        _refuse_unsupported(generation_config, logits_processor, model_kwargs, input_ids, streamer)
        lookup = generation_config.prompt_lookup_num_tokens
        if draft_model is None and lookup:
            gamma = lookup
        settings = Settings(
            rule=EASD() if rule is None else as_rule(rule),
            gamma=gamma,
            drafter="prompt-lookup" if draft_model is None and lookup else "model",
            coupling=coupling,
            temperature=_temperature(generation_config),
            draft_temperature=draft_temperature,
            exact_first=exact_first,
            batch_size=batch_size or input_ids.shape[0],
        )
        criteria = list(stopping_criteria)
        if stop_strings:
            tokenizer = stop_tokenizer or _tokenizer_of(model)
            strings = [stop_strings] if isinstance(stop_strings, str) else stop_strings
            criteria.append(StopStrings(tokenizer, strings, input_ids.shape[1]))
        requests = _requests(
            input_ids,
            model_kwargs.get("attention_mask"),
            logits_processor,
            criteria,
            generation_config,
            settings,
            int(torch.randint(2**62, ())) if seed is None else seed,
        )
        done: list[Row] = []
        own = None if draft_tokenizer is None else stop_tokenizer or _tokenizer_of(model)
        pair = Pair.of(model, draft_model, own, draft_tokenizer)
        failed: list[Row] = []
        for record in decode(pair, requests, settings, failed.append):
            done += [row for row in record.rows if row.finished]
            if streamer is not None:
                streamer.put(torch.tensor(record.committed[0]))
            if on_step is not None:
                on_step(record)
        if failed and not done:
            raise failed[0].error or AssertionError("a row fails by an error")
    if failed:
        warnings.warn(summary_of_failures(failed, len(requests)), stacklevel=2)
    done = sorted([*done, *failed], key=lambda row: row.request.number)
    return _output(done, input_ids, generation_config)


@contextmanager
def _callers_streamer() -> Iterator[Any]:
    """Yields the streamer that `generate` was called with, and ends it however decoding ends.

    `generate` feeds it the prompt but passes it only to its own methods. If an error left it open,
    a thread that reads from it would wait for ever.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not _GENERATE:
        frame = frame.f_back
    streamer = None if frame is None else frame.f_locals.get("streamer")
    try:
        yield streamer
    finally:
        if streamer is not None:
            streamer.end()


def _refuse_unsupported(
    config: GenerationConfig,
    processors: hf.LogitsProcessorList,
    model_kwargs: dict[str, Any],
    input_ids: Tensor,
    streamer: Any,
) -> None:
    for name, advice in _UNSUPPORTED.items():
        if getattr(config, name, None):
            raise ConfigError(f"{name} cannot be honoured by speculative decoding; {advice}")
    if (config.num_beams or 1) > 1:
        raise ConfigError(f"num_beams = {config.num_beams} cannot be honoured; use 1")
    for processor in processors:
        if isinstance(processor, _STATEFUL):
            raise ConfigError(
                f"{type(processor).__name__} keeps state from call to call, which refused draft "
                "tokens would corrupt; drop it or use plain sampling"
            )
    for name in CACHE_KEYWORDS:
        cache = model_kwargs.get(name)
        if cache is not None and cache.get_seq_length() > 0:
            raise ConfigError(f"a filled {name} cannot be continued; pass the whole prompt")
    if model_kwargs.get("inputs_embeds") is not None:
        raise ConfigError("inputs_embeds cannot be drafted from; pass input_ids")
    given = [
        name for name, value in model_kwargs.items() if value is not None and value is not False
    ]
    if unused := [_MADE_OF.get(name, name) for name in given if name not in _OWN_KEYWORDS]:
        raise ConfigError(
            f"{', '.join(unused)} cannot be honoured: the models are fed token ids alone; leave it "
            "out, or decode with transformers' own generate"
        )
    positions = model_kwargs.get("position_ids")
    if positions is not None and not _counts_up(positions, model_kwargs.get("attention_mask")):
        raise ConfigError("position_ids cannot be honoured: positions count up from 0; drop them")
    if streamer is not None and input_ids.shape[0] > 1:
        raise ConfigError(
            f"a streamer takes one text and the batch has {input_ids.shape[0]}; "
            "stream one prompt, or use on_step"
        )


def _counts_up(positions: Tensor, attention_mask: Tensor | None) -> bool:
    """Returns whether every token's position is the number of tokens before it."""
    seen = torch.ones_like(positions) if attention_mask is None else attention_mask
    return bool(((positions == seen.cumsum(-1) - 1) | (seen == 0)).all())


def _requests(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    processors: Sequence[Any],
    criteria: list[Any],
    config: GenerationConfig,
    settings: Settings,
    seed: int,
) -> list[Request]:
    lengths = [c.max_length for c in criteria if isinstance(c, stopping.MaxLengthCriteria)]
    ends = [c.eos_token_id for c in criteria if isinstance(c, stopping.EosTokenCriteria)]
    others = tuple(
        _on_device(c, input_ids.device)
        for c in criteria
        if not isinstance(c, stopping.MaxLengthCriteria | stopping.EosTokenCriteria)
    )
    rows = input_ids.tolist()
    pads = _left_padding(attention_mask, rows)
    return [
        Request(
            prompt=tuple(ids[pad:]),
            padding=tuple(ids[:pad]),
            number=number,
            seed=seed,
            max_new_tokens=min(lengths) - len(ids),
            eos=frozenset(token for end in ends for token in end.tolist()),
            processing=Processing(
                tuple(_for_row(processor, number) for processor in processors),
                greedy=not config.do_sample,
                proposal_power=settings.proposal_power,
            ),
            criteria=others,
            exact_first=settings.exact_first,
            keep_scores=bool(config.return_dict_in_generate and config.output_scores),
        )
        for number, (ids, pad) in enumerate(zip(rows, pads, strict=True))
    ]


def _temperature(config: GenerationConfig) -> float:
    if not config.do_sample:
        return 0.0
    return 1.0 if config.temperature is None else config.temperature


def _on_device(criterion: Criterion, device: torch.device) -> Criterion:
    return lambda text, scores: criterion(text.to(device), scores)


def _left_padding(attention_mask: Tensor | None, rows: list[list[int]]) -> list[int]:
    if attention_mask is None:
        return [0] * len(rows)
    pads = (attention_mask == 0).sum(1).tolist()
    for row, pad in zip(attention_mask.tolist(), pads, strict=True):
        if 0 in row[pad:]:
            raise ConfigError(
                "the attention mask has holes or right padding; pad prompts on the left "
                "(tokenizer.padding_side = 'left')"
            )
    return pads


def _for_row(processor: Any, row: int) -> Any:
    """Returns a batch's processor narrowed to one row, since the engine calls it row by row."""
    if isinstance(processor, hf.RepetitionPenaltyLogitsProcessor):
        ignored = processor.prompt_ignore_length
        if isinstance(ignored, Tensor):
            processor = copy.copy(processor)
            processor.prompt_ignore_length = int(ignored[row])
    elif isinstance(processor, hf.PrefixConstrainedLogitsProcessor):
        allowed = processor._prefix_allowed_tokens_fn
        processor = hf.PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), 1)
    elif hasattr(processor, "encoder_input_ids"):
        processor = copy.copy(processor)
        processor.encoder_input_ids = processor.encoder_input_ids[row : row + 1]
    return processor


def _tokenizer_of(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(model.name_or_path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"stop_strings and draft_tokenizer need the model's own tokenizer and none lies at "
            f"{model.name_or_path!r}; pass stop_tokenizer"
        ) from error


def _output(
    rows: list[Row], input_ids: Tensor, config: GenerationConfig
) -> Tensor | GenerateDecoderOnlyOutput:
    pad = getattr(config, "_pad_token_tensor", None)
    pad_id = 0 if pad is None else int(pad)
    longest = max(len(row.new_ids) for row in rows)
    new = [row.new_ids + [pad_id] * (longest - len(row.new_ids)) for row in rows]
    sequences = torch.cat([input_ids, input_ids.new_tensor(new)], 1)
    if not config.return_dict_in_generate:
        return sequences
    scores = None
    if config.output_scores:
        # After a row's end, padding has probability 1.
        scored = next(row for row in rows if row.scores)
        certain = torch.full_like(scored.scores[0], float("-inf"))
        certain[pad_id] = 0.0
        padded = [row.scores + [certain] * (longest - len(row.scores)) for row in rows]
        scores = tuple(torch.stack(step) for step in zip(*padded, strict=True))
    return GenerateDecoderOnlyOutput(sequences=sequences, scores=scores)  # type: ignore[arg-type]
