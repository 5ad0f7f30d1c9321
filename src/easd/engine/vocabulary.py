"""The map from a draft's tokens to those of another vocabulary.

A draft token d represents bytes, which the target encodes as tokens enc(d) = (t_1 ... t_m). The
draft's distribution q becomes its pushforward on first tokens, q'(t) = sum of q(d) over all d with
enc(d)_1 = t. No mass is lost, and tokens with the same bytes add up. Keeping only tokens with m = 1
(arXiv:2502.05202) is a special case.

A draft may write in one token a number that takes several of the target's. Where a text ends inside
such a number, the draft's last token s is either all of it or the beginning of a longer d, so that
q'(t) is proportional to q(s) q'(t | s) + sum of q(d) over all d that continue s with t, where q is
the distribution before s.
"""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from easd.engine.byte_vocabulary import ByteVocabulary
from easd.engine.pair import tokenizer_fingerprint
from easd.errors import TraceError
from easd.runs.files import cache_folder, replace_file

Begun = tuple[int, ...]
Inside = dict[Begun, tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class VocabularyMap:
    """The first target token of each draft token.

    Attributes:
        target, draft: both tokenizers, by bytes.
        first: the target token that each draft token begins with, int64 [V of the draft]; -1 if it
            has none.
        single: whether that token is the whole draft token, bool [V of the draft].
        inside: by the target tokens that numbers begin with, the draft's tokens of such numbers,
            and the target token by which each goes on.
    """

    target: ByteVocabulary
    draft: ByteVocabulary
    first: Tensor
    single: Tensor
    inside: Inside = field(default_factory=dict)
    _indices: dict[tuple[int, torch.device], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def coverage(self) -> float:
        """The share of the draft's tokens that have a target token."""
        return float((self.first >= 0).float().mean())

    @property
    def one_to_one(self) -> float:
        """The share of the draft's tokens that are exactly one token of the target."""
        return float(self.single.float().mean())

    @property
    def reachable(self) -> Tensor:
        """Ids of the target's tokens that the draft can propose, ascending."""
        inside = [following for _, following in self.inside.values()]
        return torch.cat([self.first[self.first >= 0], *inside]).unique()

    def pushforward(self, probs: Tensor, size: int) -> Tensor:
        """The draft's `probs` [..., V of its model] as those of the target's tokens, [..., size].

        Draft tokens without a target token are left out.
        """
        index = self._index(size, probs.device)[: probs.shape[-1]]
        found = probs.new_zeros(*probs.shape[:-1], size + 1)
        return found.index_add_(-1, index, probs[..., : len(index)])[..., :size]

    def inside_number(self, opinion: Tensor, before: Tensor, last: int, begun: Begun) -> Tensor:
        """The draft's opinion [V] where a text ends inside what may be one token of the draft.

        Args:
            opinion: its opinion after the token `last`, as if the number ended there.
            before: its distribution before that token, [V of its model].
            last: the draft's last token, which reads `begun`.
            begun: a key of `inside`.
        """
        longer, following = (each.to(before.device) for each in self.inside[begun])
        known = longer < len(before)
        weights, ended = before[longer[known]], before[last]
        total = weights.sum() + ended
        if total == 0:
            return opinion
        return (opinion * ended).index_add(0, following[known], weights) / total

    def drafts_of(self, token: int) -> Tensor:
        """The draft's tokens that begin with a token of the target."""
        return (self.first == token).nonzero()[:, 0]

    def _index(self, size: int, device: torch.device) -> Tensor:
        """`first` on a device, with `size` for draft tokens without a target token below it."""
        if (size, device) not in self._indices:
            nowhere = (self.first < 0) | (self.first >= size)
            self._indices[size, device] = self.first.masked_fill(nowhere, size).to(device)
        return self._indices[size, device]

    def special_in_draft(self, token: int) -> int | None:
        """The draft's equivalent of a special token of the target, if it has one."""
        name = self.target.names.get(token)
        if name in self.draft.special:
            return self.draft.special[name]
        if token == self.target.turn_begin:
            return self.draft.turn_begin
        if token == self.target.turn_end and self.draft.turn_end is not None:
            return self.draft.turn_end
        return self.draft.end if token in self.target.endings else None


_NUMBER = re.compile(rb" ?[0-9]+")
_EDITION = 1  # of cached maps; increase it when maps are built differently
_Maps = WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[int, int], VocabularyMap]]
_maps: WeakKeyDictionary[PreTrainedTokenizerBase, _Maps] = WeakKeyDictionary()


def vocabulary_map(
    target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase
) -> VocabularyMap:
    """The map between two tokenizers, built once and then read from the cache.

    Raises:
        ModelError: A tokenizer cannot be read as bytes.
    """
    sizes = len(target), len(draft)
    known = _maps.setdefault(target, WeakKeyDictionary())
    if draft not in known or known[draft][0] != sizes:
        known[draft] = sizes, _made(target, draft)
    return known[draft][1]


def _made(target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase) -> VocabularyMap:
    ours, theirs = ByteVocabulary(target), ByteVocabulary(draft)
    names = tokenizer_fingerprint(target), tokenizer_fingerprint(draft)
    file = cache_folder() / "vocabulary-maps" / f"{_EDITION}-{'-'.join(names)}.npz"
    found = _load(file, theirs.size)
    if found is None:
        found = _built(ours, theirs)
        _save(file, found)
    first, single = (torch.from_numpy(each) for each in found)
    return VocabularyMap(ours, theirs, first, single, _inside_numbers(ours, theirs))


def _built(target: ByteVocabulary, draft: ByteVocabulary) -> tuple[np.ndarray, np.ndarray]:
    first = np.full(draft.size, -1, dtype=np.int64)
    single = np.zeros(draft.size, dtype=bool)
    texts = [(at, piece) for at, piece in enumerate(draft.bytes_of) if piece]
    ids = target.encode_all([piece for _, piece in texts])
    for (at, _), tokens in zip(texts, ids, strict=True):
        if tokens:
            first[at], single[at] = tokens[0], len(tokens) == 1
    for at in draft.endings:
        first[at] = -1 if target.ending is None else target.ending
        single[at] = target.ending is not None
    same = {at: target.special.get(name) for name, at in draft.special.items()}
    for at, token in {**same, draft.turn_begin: target.turn_begin}.items():
        if at is not None and token is not None and first[at] < 0:
            first[at], single[at] = token, True
    return first, single


def _inside_numbers(target: ByteVocabulary, draft: ByteVocabulary) -> Inside:
    """The map's `inside`; tokenizers split most other words alike, or seldom at their beginning."""
    numbers = [at for at, piece in enumerate(draft.bytes_of) if piece and _NUMBER.fullmatch(piece)]
    ids = target.encode_all([draft.bytes_of[at] or b"" for at in numbers])
    found: dict[Begun, list[tuple[int, int]]] = defaultdict(list)
    for at, tokens in zip(numbers, ids, strict=True):
        for length in range(1, len(tokens)):
            found[tuple(tokens[:length])].append((at, tokens[length]))
    return {begun: tuple(torch.tensor(each).unbind(-1)) for begun, each in found.items()}


def _load(file: Path, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """A map from the cache; None if it is missing or damaged."""
    try:
        with np.load(file) as held:
            first, single = held["first"], held["single"]
    except (OSError, ValueError, KeyError, EOFError):
        return None
    fits = first.shape == single.shape == (size,)
    return (first, single) if fits and first.dtype == np.int64 and single.dtype == bool else None


def _save(file: Path, found: tuple[np.ndarray, np.ndarray]) -> None:
    """Writes a map into the cache, if possible."""

    def write(to: Path) -> None:
        with to.open("wb") as opened:
            np.savez(opened, first=found[0], single=found[1])

    with contextlib.suppress(OSError, TraceError):
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, write)
