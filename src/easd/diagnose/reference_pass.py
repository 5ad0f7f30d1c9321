"""Teacher-forced pass of both models over reference texts, for a diagnosis."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from easd.core.rules import EASD, RULES, Rule
from easd.core.rules.fly import FLy
from easd.core.rules.gated import EntropyGated, gate_signals
from easd.core.rules.pool import LEAST_DRAFT_PROB, Pool
from easd.core.step import Step
from easd.diagnose.other_vocabulary_pass import OtherVocabularyPass
from easd.diagnose.positions import GATED, PLAUSIBLE, TOP_N, UNGATED, positions_schema
from easd.engine.generate import make_requests
from easd.engine.models.slots import SlotModel
from easd.engine.pair import Pair
from easd.engine.request import Row
from easd.engine.sampling import distributions
from easd.engine.settings import Settings
from easd.errors import ConfigError, InputError, NumericsError

ReferenceText = tuple[Sequence[int], Sequence[int], str]
"""Token ids of a prompt and of the right text after it, and the text's name."""

# Most probabilities of one model in memory: 8 MB in float32, which fits a CPU cache.
_MOST_PROBS = 2**21
_MOST_ROWS = 256
_POSITIONS_AT_ONCE = 32
# Forwards read this many steps at once: matrices of more positions take less time for each.
_STEPS_AHEAD = 4

# An overlap of 0 is always met: these gates are open everywhere, and the law is the open law.
_ALWAYS = {"conditions": ("overlap",), "tau_o": 0.0, "draft_at_bonus": True}

_VARIANTS: dict[str, Rule] = {
    "easd": EASD(**_ALWAYS),
    "easd-draft-top": EASD(**_ALWAYS, penalise="draft_top"),
    "easd-on-accepted": EASD(**_ALWAYS, gate_on="accepted"),
}
# Rules without a column: lossless, computed from other columns, or with fitted powers.
_NO_COLUMN = ("random-refusal", "pool", "relaxed-pool", "pool-everywhere", "pool-by-gate")
# With both powers 0 all plausible tokens are equally probable.
_PLAUSIBLE_TOKENS = Pool(**_ALWAYS, a=0.0, b=0.0, pick="sample", plausible=PLAUSIBLE)


def judged_rules() -> tuple[dict[str, Rule], dict[str, Rule]]:
    """Rules with a column: gated ones, with a gate that is always open, and others."""
    gated, ungated = dict(_VARIANTS), {}
    for name, kind in RULES.items():
        if name in gated or name in _NO_COLUMN:
            continue
        if issubclass(kind, EntropyGated):
            gated[name] = kind(**_ALWAYS)
        elif (rule := kind()).has_law and not rule.lossless:
            ungated[name] = rule
    # FLy's own gate is open where the target's entropy is above 0, as it is at every open gate.
    return {**gated, "draft-token": FLy(tau_h=0.0, window=0)}, ungated


def read_positions(
    pair: Pair,
    texts: Sequence[ReferenceText],
    settings: Settings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> pa.Table:
    """The probability of each reference token under both models and every rule.

    Args:
        pair: with a draft model.
        texts: two or more.
        settings: temperature, truncation and penalties; the rest is not used.
        on_progress: called with positions done and positions in all.

    Returns:
        Rows by text and position, with the columns of `POSITIONS`, and `DraftVocabulary` in the
        metadata where the tokenizers differ.

    Raises:
        ConfigError: There is no draft model.
        InputError: A text is empty, too long for a model, or not made of the models' tokens.
        NumericsError: A model returned NaN.
    """
    tables, other = [], None
    for read in read_steps(pair, texts, settings, on_progress):
        tables.append(_table(read))
        other = read.other
    table = (
        pa.concat_tables(tables, promote_options="none")
        .unify_dictionaries()
        .sort_by([("text", "ascending"), ("position", "ascending")])
    )
    return table if other is None else other.summary().stored_in(table)


def read_steps(
    pair: Pair,
    texts: Sequence[ReferenceText],
    settings: Settings | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[ReadStep]:
    """Both models' distributions at every position of the texts, some positions at a time.

    Arguments and errors are those of `read_positions`.
    """
    if pair.draft is None:
        raise ConfigError("a diagnosis compares two models; name a draft")
    settings = replace(settings or Settings(), n=1)
    vocab_size = pair.vocab_size
    _check(texts, pair.context_window, vocab_size)
    requests = make_requests(pair, [prompt for prompt, _, _ in texts], settings)
    lengths = [len(reference) for _, reference, _ in texts]
    budget = max(1, _MOST_PROBS // vocab_size)
    num_rows = min(_MOST_ROWS, len(texts), max(1, budget // _POSITIONS_AT_ONCE))
    models = [SlotModel(pair.target, num_rows)]
    if pair.draft_tokenizer is None:
        models.append(SlotModel(pair.draft, num_rows, vocab_size))
        other = None
    else:
        other = OtherVocabularyPass(pair, num_rows)
    # Reading texts of similar length together keeps padding short.
    order = sorted(range(len(texts)), key=lambda index: lengths[index])
    done = 0
    for begin in range(0, len(order), num_rows):
        chosen = order[begin : begin + num_rows]
        batch = _Batch(
            chosen,
            [
                # The whole reference is read, whatever max_new_tokens is.
                Row.start(replace(requests[index], max_new_tokens=lengths[index]))
                for index in chosen
            ],
            [list(texts[index][1]) for index in chosen],
            [texts[index][2] for index in chosen],
        )
        for step in _read(batch, models, other, vocab_size, max(1, budget // len(chosen))):
            yield step
            done += int(step.there.sum())
            if on_progress is not None:
                on_progress(done, sum(lengths))
        _trim_heap()


def _trim_heap() -> None:
    """Returns free memory to the system.

    The sizes of tensors change with every text, and torch aligns them, so glibc's heap seldom finds
    room for one among the freed ones and grows by gigabytes.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Texts that are read side by side; `rows` begin as their prompts."""

    numbers: list[int]
    rows: list[Row]
    references: list[list[int]]
    names: list[str]


@dataclass(frozen=True, slots=True)
class ReadStep:
    """Both distributions at T positions of B texts.

    Attributes:
        begin: the first position.
        step: with K = T draft tokens; the bonus position is filler.
        right: the references' tokens, int64 [B, T], padded.
        there: whether a position is used, bool [B, T]: not past the text's end, nor where the draft
            has no distribution.
        other: the pass of a draft with another tokenizer.
    """

    batch: _Batch
    begin: int
    step: Step
    right: Tensor
    there: Tensor
    other: OtherVocabularyPass | None


@torch.inference_mode()
def _read(
    batch: _Batch,
    models: list[SlotModel],
    other: OtherVocabularyPass | None,
    vocab_size: int,
    length: int,
) -> Iterator[ReadStep]:
    """Yields `length` positions of every text at a time."""
    if other is not None:
        other.start(batch.rows)
    for model in models:
        model.prefill(0, [row.ids[:-1] for row in batch.rows])
    ahead = _STEPS_AHEAD * length
    for begin in range(0, max(map(len, batch.references)), ahead):
        pieces = [reference[begin : begin + ahead] for reference in batch.references]
        width = max(map(len, pieces))
        right = torch.tensor([piece + [0] * (width - len(piece)) for piece in pieces])
        there = torch.tensor([[True] * len(p) + [False] * (width - len(p)) for p in pieces])
        right, there = right.to(models[0].device), there.to(models[0].device)
        last = torch.tensor([row.ids[-1:] for row in batch.rows], device=right.device)
        fed = torch.cat([last, right[:, :-1]], 1)
        logits = [model.forward(fed)[..., :vocab_size] for model in models]
        for at in range(0, width, length):
            here = slice(at, at + length)
            sizes = [len(piece[here]) for piece in pieces]
            own, used = right[:, here], there[:, here]
            read = [each[:, here] for each in logits]
            if other is not None:
                opinions, heard = other.logits(batch.rows, own, sizes)
                read.append(opinions)
                used = used & heard
            yield ReadStep(batch, begin + at, _step(batch.rows, read, own, sizes), own, used, other)
            for row, piece in zip(batch.rows, pieces, strict=True):
                row.ids.extend(piece[here])
        for model in models:
            for place, piece in enumerate(pieces):
                model.lengths[place] += len(piece)


def _step(rows: Sequence[Row], logits: Sequence[Tensor], right: Tensor, counts: list[int]) -> Step:
    """The next T tokens as a verification step; the bonus position is filler."""
    greedy = rows[0].request.processing.greedy
    # Nothing follows a text's last token.
    drafted = [max(0, count - 1) for count in counts]
    target, draft = (
        distributions(each, rows, right[:, :-1], drafted, want_raw=greedy) for each in logits
    )
    pad = partial(torch.nn.functional.pad, pad=(0, 0, 0, 1))
    return Step(
        draft_tokens=right,
        num_draft_tokens=torch.full((len(rows),), right.shape[1], device=right.device),
        draft_probs=pad(draft.probs),
        target_probs=torch.cat([target.probs, target.probs[:, -1:]], 1),
        raw_draft_probs=None if draft.raw is None else pad(draft.raw),
        raw_target_probs=None if target.raw is None else pad(target.raw),
        greedy=torch.ones(len(rows), dtype=torch.bool, device=right.device) if greedy else None,
    )


def _table(read: ReadStep) -> pa.Table:
    """The step's rows of the table of positions."""
    batch, begin, step = read.batch, read.begin, read.step
    right, there = read.right, read.there

    def of_right(probs: Tensor) -> np.ndarray:
        return _numpy(probs[:, :-1].gather(-1, right[..., None])[..., 0][there].double())

    # Greedy rows draw from one-hot distributions, so signals and pools need the raw ones.
    draft_view, target_view = step.opinions()
    opinions = replace(step, draft_probs=draft_view, target_probs=target_view, greedy=None)
    draft_view, target_view = draft_view[:, :-1], target_view[:, :-1]
    signals = signals_at(draft_view, target_view, there)
    values = {name: _numpy(signal) for name, signal in signals.items()}
    gated, ungated = judged_rules()
    values |= {GATED + name: of_right(rule.law(step)) for name, rule in gated.items()}
    values |= {UNGATED + name: of_right(rule.law(step)) for name, rule in ungated.items()}
    row, place = (_numpy(index) for index in there.nonzero(as_tuple=True))
    values |= {
        "text": np.asarray(batch.numbers)[row],
        "id": np.asarray(batch.names)[row],
        "position": begin + place,
        "token": _numpy(right[there]),
        "draft_prob": of_right(step.draft_probs),
        "target_prob": of_right(step.target_probs),
        "draft_best": _numpy((draft_view.argmax(-1) == right)[there]),
        "target_best": _numpy((target_view.argmax(-1) == right)[there]),
        **_pool(_PLAUSIBLE_TOKENS.law(opinions)[:, :-1] > 0, draft_view, target_view, right, there),
    }
    schema = positions_schema(gated, ungated)
    columns = [pa.array(values[field.name]).cast(field.type) for field in schema]
    # `take` copies into Arrow's memory: small arrays kept among large ones fragment the heap.
    return pa.table(columns, schema=schema).take(np.arange(len(row)))


def signals_at(draft: Tensor, target: Tensor, there: Tensor) -> dict[str, Tensor]:
    """The gate's signals at the n positions `there` [B, T]; each [n].

    Raises:
        NumericsError: An entropy is not finite.
    """
    signals = gate_signals(draft, target, TOP_N)
    found = {name: signal[there] for name, signal in signals.items()}
    for model in ("draft", "target"):
        if not found[f"{model}_entropy"].isfinite().all():
            raise NumericsError(
                f"the {model}'s logits are NaN or leave no token to choose; check its files, its "
                "dtype and the logits processors"
            )
    return found


def _pool(
    plausible: Tensor, draft_probs: Tensor, target_probs: Tensor, right: Tensor, there: Tensor
) -> dict[str, pa.Array]:
    """The pool's columns: probabilities of plausible tokens, and the index of the right one."""
    chosen = plausible & there[..., None]
    ends = chosen.sum(-1)[there].cumsum(0)
    offsets = pa.array(np.concatenate([[0], _numpy(ends)]).astype(np.int32))
    before = (chosen.cumsum(-1) - 1).gather(-1, right[..., None])[..., 0]
    among = chosen.gather(-1, right[..., None])[..., 0]
    return {
        "pool_target_probs": pa.ListArray.from_arrays(
            offsets, _numpy(target_probs[chosen].double())
        ),
        "pool_draft_probs": pa.ListArray.from_arrays(
            offsets, _numpy(draft_probs[chosen].clamp_min(LEAST_DRAFT_PROB).double())
        ),
        "pool_right": pa.array(_numpy(before[there]), mask=_numpy(~among[there])),
    }


def _numpy(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()


def _check(texts: Sequence[ReferenceText], limit: int | None, vocab_size: int) -> None:
    if not texts:
        raise InputError("there are no reference texts; give two or more")
    for prompt, reference, name in texts:
        for what, ids in (("prompt", prompt), ("reference", reference)):
            if not len(ids):
                raise InputError(
                    f"the {what} of text {name!r} is empty; give at least one token, or leave the "
                    "text out"
                )
            if not 0 <= min(ids) <= max(ids) < vocab_size:
                raise InputError(
                    f"the {what} of text {name!r} has token ids from {min(ids)} to {max(ids)} and "
                    f"the vocabulary {vocab_size} tokens; use the models' own tokenizer"
                )
        if limit is not None and len(prompt) + len(reference) > limit:
            raise InputError(
                f"text {name!r} has {len(prompt)} + {len(reference)} tokens, more than the context "
                f"window of {limit}; shorten it or leave it out"
            )
