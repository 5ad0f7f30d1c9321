"""The model `easd` for lm-evaluation-harness.

Texts are decoded in batches under the run's rule. A request's index in the harness's list keys its
noise, so the same command gives the same texts at any batch size. Log-likelihoods are the target's
under any rule, so multiple choice measures the target.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
    simple_parse_args_string,
)
from torch.nn.functional import log_softmax
from tqdm import tqdm

from easd.config import RunConfig
from easd.engine.generate import decode, describe_error, make_requests
from easd.engine.models.slots import context_window
from easd.engine.request import Counts, Row
from easd.engine.settings import Settings
from easd.errors import ConfigError, InputError, NumericsError
from easd.integrations.arguments import before_stop, run_config
from easd.pairs.from_config import load

_HARNESS_DECIDES = {
    "chat": "--apply_chat_template",
    "n": "the task's repeats",
    "stop": "--gen_kwargs until=...",
    "temperature": "--gen_kwargs do_sample=true,temperature=...",
}
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_TRUNCATION = ("top_k", "top_p", "min_p")
_KEPT = (*_TRUNCATION, "min_new_tokens", "repetition_penalty", "seed")
# The harness's command line passes it if no device was named.
_DEFAULT_DEVICE = "cuda:0"
_UNKNOWN_WINDOW = 2048

# Key in the harness's cache, context, continuation.
Scored = tuple[tuple[str, str] | None, list[int], list[int]]


@register_model("easd")
class EasdLM(TemplateLM):
    """A pair of models as a model of the harness.

    Args:
        **arguments: those of `easd generate`: `pair` or `target` and `draft`, `rule`, its fields
            (`tau_h` or `rule.tau_h`), `gamma`, `batch_size`, `seed`, or `config`, a YAML file.

    Raises:
        EasdError: An argument is unknown, invalid, or set through the harness instead.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        for name, instead in _HARNESS_DECIDES.items():
            if name in arguments:
                raise ConfigError(f"{name!r} is decided by the harness; use {instead}")
        self.config: RunConfig = run_config(arguments)
        self.pair = load(self.config)
        self.tokenizer = self.pair.tokenizer
        self.counts = Counts()
        self.failed: dict[str, str] = {}
        self._device = self.pair.target.device

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> EasdLM:
        """Returns the model that `--model_args` describe; they override the harness's options."""
        options = {k: v for k, v in (additional_config or {}).items() if v is not None}
        if options.get("device") == _DEFAULT_DEVICE and not torch.cuda.is_available():
            del options["device"]
        return cls(**{**options, **arg_dict})

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> EasdLM:
        """Returns the model that `key=value,key=value` describes."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def get_model_info(self) -> dict[str, Any]:
        """Returns settings, draft-token counts and failed items, for the harness's results file."""
        counts = asdict(self.counts)
        return {"easd": self.config.to_dict(), "easd_counts": counts, "easd_failed": self.failed}

    @property
    def eot_token_id(self) -> int:
        """The first token that ends a text."""
        return self.pair.end_tokens[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context: beginning-of-sequence, else end-of-sequence."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos  # type: ignore[return-value]

    @property
    def max_length(self) -> int:
        """The target's context window."""
        return context_window(self.pair.target) or _UNKNOWN_WINDOW

    @property
    def tokenizer_name(self) -> str:
        """The key that separates tokenizers in the harness's cache."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns messages rendered by the chat template.

        Raises:
            ConfigError: The tokenizer has no chat template.
        """
        if not self.tokenizer.chat_template:
            raise ConfigError(
                "this tokenizer has no chat template; leave out --apply_chat_template"
            )
        return self.tokenizer.apply_chat_template(  # type: ignore[return-value]
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns token ids, without a second beginning-of-sequence token after a chat template."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(str(bos)))
        return self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]  # type: ignore[return-value]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Decodes every context under the rule, up to the task's stop strings.

        An item that fails, for example with NaN logits, has no text, which the harness counts as
        wrong; a warning and `get_model_info` name it. If all items fail, the first error is raised.
        """
        arguments: list[tuple[Any, ...]] = [request.args for request in requests]
        groups: dict[str, list[int]] = defaultdict(list)
        for number, (_, kwargs) in enumerate(arguments):
            groups[repr(sorted(kwargs.items()))].append(number)
        texts = [""] * len(requests)
        failed: list[Row] = []
        with tqdm(total=len(requests), disable=disable_tqdm, desc="decoding by easd") as progress:
            for numbers in groups.values():
                settings = self._settings(arguments[numbers[0]][1])
                contexts = {number: arguments[number][0] for number in numbers}
                for row in self._decode(contexts, settings, failed.append):
                    number = row.request.number
                    text = self.tokenizer.decode(row.new_ids, skip_special_tokens=True)
                    texts[number] = before_stop(str(text), settings.stop)
                    self.cache_hook.add_partial("generate_until", arguments[number], texts[number])
                    progress.update()
        names = [f"{request.task_name} document {request.doc_id}" for request in requests]
        self._report({names[row.request.number]: row.error for row in failed}, len(requests))
        return texts

    def _report(self, failed: Mapping[str, Exception | None], total: int) -> None:
        """Warns about failed items; raises the first one's error where all failed."""
        self.failed |= {name: describe_error(error) for name, error in failed.items()}
        for name, error in list(failed.items())[:1]:
            if len(failed) == total and error is not None:
                raise error
            warnings.warn(
                f"{len(failed)} of {total} items failed and count as wrong; the first, {name}: "
                f"{describe_error(error)}",
                stacklevel=3,
            )

    def _settings(self, kwargs: Mapping[str, Any]) -> Settings:
        """Returns settings with a task's overrides, greedy unless it asks for sampling."""
        values = dict(kwargs)
        until = values.pop("until", None) or ()
        stop = [until] if isinstance(until, str) else list(until)
        temperature = values.pop("temperature", None)
        sampled = values.pop("do_sample", None)
        if sampled is None:
            sampled = bool(temperature)
        lengths = [values.pop(name) for name in _LENGTHS if name in values]
        if values.get("num_beams") == 1:
            del values["num_beams"]
        for name in values:
            if name not in _KEPT:
                known = ", ".join(["until", "do_sample", "temperature", _LENGTHS[0], *_KEPT])
                raise ConfigError(
                    f"gen_kwargs ask for {name!r}, which cannot be honoured; use {known}"
                )
        if not sampled:
            temperature = 0.0
            values = {name: value for name, value in values.items() if name not in _TRUNCATION}
        asked = {
            **self.config.to_dict(),
            **values,
            # Some tasks list an empty stop string.
            "stop": [string for string in stop if string],
            "temperature": 1.0 if temperature is None else temperature,
        }
        if lengths:
            asked["max_new_tokens"] = lengths[0]
        return RunConfig.from_dict(asked).settings

    def _decode(
        self,
        contexts: Mapping[int, str],
        settings: Settings,
        on_failure: Callable[[Row], None],
    ) -> Iterator[Row]:
        """Yields rows that finish without an error; contexts are by request number."""
        window = self.pair.context_window
        prompts = [
            _fitting(self.tok_encode(context) or [self.prefix_token_id], settings, window)
            for context in contexts.values()
        ]
        requests = make_requests(self.pair, prompts, settings, numbers=list(contexts))
        for record in decode(self.pair, requests, settings, on_failure):
            for row in record.rows:
                if row.finished:
                    self.counts += row.counts
                    yield row

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the target's log-probabilities of whole texts, in windows of its context."""
        windows: list[Scored] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            # The window's prefix replaces the beginning token that the tokenizer would add.
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            rolling = get_rolling_token_windows(
                token_list=ids[1:] if ids[:1] == [self.prefix_token_id] else ids,
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in rolling:
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for owner, (score, _) in zip(owners, scores, strict=True):
            totals[owner] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(  # type: ignore[override]
        self, requests: Sequence[Scored], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Returns each continuation's log-probability, and whether greedy decoding writes it.

        With NaN logits it is minus infinity, so that no such choice is the best.
        """
        if not self.config.settings.rule.lossless:
            warnings.warn(
                "log-likelihoods are the target's own: the rule changes decoded texts only",
                stacklevel=2,
            )
        longest_first = sorted(
            range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2])
        )
        size = self.config.settings.batch_size
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="scoring") as progress:
            for begin in range(0, len(requests), size):
                batch = longest_first[begin : begin + size]
                scores = self._score([requests[i][1:] for i in batch])
                for i, score in zip(batch, scores, strict=True):
                    found[i] = score
                    if (asked := requests[i][0]) is not None and score[0] == score[0]:
                        self.cache_hook.add_partial("loglikelihood", asked, score)
                progress.update(len(batch))
        nan = NumericsError("the target's logits are NaN; check its files and its dtype")
        failed = [i for i, (score, _) in enumerate(found) if score != score]
        for i in failed:
            found[i] = float("-inf"), False
        self._report({f"log-likelihood {i}": nan for i in failed}, len(found))
        return found

    @torch.inference_mode()
    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        for _, continuation in pairs:
            if not 0 < len(continuation) <= self.max_length:
                raise InputError(
                    f"a continuation has {len(continuation)} tokens; give from 1 to "
                    f"{self.max_length}, the context window"
                )
        # The last token is scored but never an input; long texts are truncated on the left.
        texts = [
            (context + continuation)[-self.max_length - 1 :] for context, continuation in pairs
        ]
        longest = max(map(len, texts))
        # Padding on the right is invisible to scored tokens.
        padding = [[0] * (longest - len(text)) for text in texts]
        rows = [text[:-1] + after for text, after in zip(texts, padding, strict=True)]
        mask = [[1] * (len(text) - 1) + after for text, after in zip(texts, padding, strict=True)]
        logits = self.pair.target(
            input_ids=torch.tensor(rows, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
        ).logits
        scores = []
        for text, (_, continuation), row in zip(texts, pairs, logits, strict=True):
            tokens = torch.tensor(text[-len(continuation) :], device=self._device)
            begin = len(text) - 1 - len(tokens)
            log_probs = log_softmax(row[begin : begin + len(tokens)].float(), -1)
            score = log_probs.gather(1, tokens[:, None]).sum().item()
            scores.append((score, bool((log_probs.argmax(-1) == tokens).all())))
        return scores


def _fitting(ids: list[int], settings: Settings, limit: int | None) -> list[int]:
    """Truncates a prompt on the left, as the harness does, to leave room for the new tokens."""
    new = settings.max_new_tokens or 1
    if limit is None or len(ids) + new <= limit:
        return ids
    if new >= limit:
        raise ConfigError(
            f"max_gen_toks = {new} fills the context window of {limit}; lower it to make room "
            "for prompts"
        )
    warnings.warn(
        f"prompts are cut on the left to leave {new} tokens of the context window of {limit}; "
        "lower max_gen_toks or num_fewshot",
        stacklevel=2,
    )
    return ids[new - limit :]
