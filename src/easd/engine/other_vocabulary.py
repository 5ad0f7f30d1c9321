"""Drafts with a model whose tokenizer is not the target's.

The draft reads the target's text in its own tokens. They are a function of the text alone, never of
where blocks ended, so that a rule's law is, too: the text is cut into segments, which the draft's
tokenizer encodes separately. As the text grows, only the last segment changes, and the draft's
cache is rolled back to the first changed token.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from easd.core.noise import Noise
from easd.engine.drafters import MOST_AT_ONCE, Draft, ModelDrafter
from easd.engine.models.slots import LONGEST_PIECE, SlotModel, context_window
from easd.engine.models.upload import upload
from easd.engine.origins import Origin
from easd.engine.request import Row
from easd.engine.vocabulary import Begun, VocabularyMap

# Segments begin at a space after another character. No common tokenizer merges across that
# boundary, so the tokens are those of the whole text.
_BEGINS = re.compile(r"(?<=\S)(?= )")
_LONGEST_SEGMENT = 256  # characters; bounds the cost of one more token
_LONGEST_NUMBER = 8  # the target's tokens in one token of a draft
_Utf8 = getincrementaldecoder("utf-8")


@dataclass(slots=True, kw_only=True)
class Reading:
    """A text of the target in the draft's tokens.

    Attributes:
        words: the map between the vocabularies.
        settled: the draft's ids of all segments but the last; no continuation changes them.
        segment: the last segment.
        unfinished: the following bytes of an incomplete character.
        length: number of the target's tokens read.
        recent: the last of these, since the last special token.
    """

    words: VocabularyMap
    settled: list[int]
    segment: str = ""
    unfinished: bytes = b""
    length: int = 0
    recent: tuple[int, ...] = ()

    @classmethod
    def start(cls, words: VocabularyMap, row: Row) -> Reading:
        """Reads a row's prompt, or the request's `draft_prompt` instead."""
        given = row.request.draft_prompt
        if given is not None:
            return cls(words=words, settled=list(given), length=len(row.request.prompt))
        begin = words.draft.begin
        reading = cls(words=words, settled=[] if begin is None else [begin])
        reading.read(row.request.prompt)
        return reading

    def fork(self) -> Reading:
        """A copy for reading ahead."""
        return replace(self, settled=self.settled.copy())

    def read(self, tokens: Iterable[int]) -> None:
        """Appends tokens of the target."""
        spelt = self.words.target.bytes_of
        for token in tokens:
            piece = spelt[token]
            if piece is None:
                self.recent = ()
                self._read_special(token)
            else:
                self.recent = (*self.recent[1 - _LONGEST_NUMBER :], token)
                self._append(piece)
            self.length += 1

    @property
    def ids(self) -> list[int] | None:
        """The text in the draft's tokens; None inside a character or without text."""
        if self.unfinished:
            return None
        return [*self.settled, *self.words.draft.encode(self.segment)] or None

    def begun(self, ids: Sequence[int]) -> Begun | None:
        """The target's tokens of the last of `ids`, if longer numbers begin with them."""
        last = self.words.draft.bytes_of[ids[-1]] if len(ids) > 1 and self.words.inside else None
        if last is None:
            return None
        spelt = self.words.target.bytes_of
        for length in range(1, len(self.recent) + 1):
            tokens = self.recent[-length:]
            if b"".join(spelt[token] or b"" for token in tokens) == last:
                return tokens if tokens in self.words.inside else None
        return None

    def _read_special(self, token: int) -> None:
        words = self.words
        if token == words.target.begin and self.length == 0:
            return  # The draft has its own beginning token, or none.
        theirs = words.special_in_draft(token)
        if theirs is None:
            self._append(words.target.names.get(token, "").encode())
            return
        self._append(b"", final=True)
        self._settle([self.segment])
        self.segment = ""
        self.settled.append(theirs)

    def _append(self, piece: bytes, *, final: bool = False) -> None:
        decoder = _Utf8(errors="replace")
        self.segment += decoder.decode(self.unfinished + piece, final)
        self.unfinished = decoder.getstate()[0]
        *done, self.segment = _BEGINS.split(self.segment)
        self._settle(done)
        while len(self.segment) > _LONGEST_SEGMENT:
            self._settle([self.segment[:_LONGEST_SEGMENT]])
            self.segment = self.segment[_LONGEST_SEGMENT:]

    def _settle(self, segments: Iterable[str]) -> None:
        for segment in segments:
            for begin in range(0, len(segment), _LONGEST_SEGMENT):
                self.settled += self.words.draft.encode(segment[begin : begin + _LONGEST_SEGMENT])


@dataclass(slots=True)
class _Held:
    """The tokens in a row's slots: `ids`, of which the first `settled` cannot change any more.

    `begun` are the target's tokens of the last one, if they may be the beginning of a number.
    """

    reading: Reading
    ids: list[int] = field(default_factory=list)
    settled: int = 0
    begun: Begun | None = None


def common_length(one: Sequence[int], other: Sequence[int], known: int = 0) -> int:
    """The length of the longest common prefix, of which the first `known` are not compared."""
    most = min(len(one), len(other))
    same = min(known, most)
    while same < most and one[same] == other[same]:
        same += 1
    return same


class OtherVocabularyDrafter(ModelDrafter):
    """Drafts tokens of the target with a model that has another vocabulary.

    Its opinion is the pushforward of the model's distribution (`easd.engine.vocabulary`), in tokens
    of the target. Where a text ends inside a character, or is longer than the draft's context
    window, the draft has no opinion and the block ends.

    Args:
        model: the draft's.
        words: from its vocabulary to the target's.
        vocab_size: of the target.
        least_block_prob: see `ModelDrafter`.
    """

    def __init__(
        self,
        model: SlotModel,
        words: VocabularyMap,
        vocab_size: int,
        least_block_prob: float = 0.0,
    ) -> None:
        super().__init__(model, vocab_size, least_block_prob)
        self.words = words
        reachable = words.reachable
        few = 2 * len(reachable) < vocab_size
        self._known = reachable[reachable < vocab_size].to(model.device) if few else None
        self._window = context_window(model.model)
        self._block: list[Reading] = []
        self._origins: list[list[Origin | None]] = []

    def prompt(self, row: Row) -> list[int]:
        row.draft = _Held(Reading.start(self.words, row))
        row.draft.ids = self._within_window(row.draft.reading)
        return row.draft.ids[:-1]

    def propose(
        self, rows: Sequence[Row], counts: list[int], noise: Noise, *, bonus: bool, raw: bool
    ) -> Draft:
        self._origins = [[] for _ in rows]
        draft = super().propose(rows, counts, noise, bonus=bonus, raw=raw)
        origins, self._origins = self._origins, []
        return replace(draft, origins=origins)

    def commit(self, lengths: list[int]) -> None:
        """Does nothing, since each block begins by rolling the cache back to its text."""

    def _next(
        self, rows: Sequence[Row], drafted: Tensor, needed: list[bool]
    ) -> tuple[Tensor, list[int]]:
        if drafted.shape[1] == 0:
            for row in rows:
                reading = row.draft.reading
                reading.read(row.ids[reading.length :])
            self._block = [row.draft.reading.fork() for row in rows]
        else:
            for reading, token in zip(self._block, drafted[:, -1].tolist(), strict=True):
                reading.read([token])
        missing = [
            self._missing(place, row) if needed[place] else [] for place, row in enumerate(rows)
        ]
        shape = len(rows), 1, self.vocab_size
        if not any(missing):
            for row in self._origins:
                row.append(None)
            return torch.zeros(shape, dtype=self._dtype, device=self.model.device), [
                *range(len(rows))
            ]
        pushed = self._opinions(rows, missing)
        no_opinion = [
            place
            for place, mass in enumerate(pushed.sum(-1).tolist())
            if not missing[place] or mass == 0
        ]
        logits = self._logs(pushed)
        logits[no_opinion] = 0
        return logits[:, None], no_opinion

    def _missing(self, place: int, row: Row) -> list[int]:
        """Rolls the cache back; returns the next tokens to feed, none if it has no opinion."""
        held, lengths = row.draft, self.model.lengths
        ids = self._within_window(self._block[place])
        if not ids:
            return []
        held.begun = self._block[place].begun(ids)
        same = common_length(held.ids[: lengths[place]], ids, held.settled)
        # Inside a number, the distribution before the last token is needed, too.
        lengths[place] = same = min(same, len(ids) - (1 if held.begun is None else 2))
        held.ids, held.settled = ids, len(held.reading.settled)
        return ids[same:]

    def _within_window(self, reading: Reading) -> list[int]:
        ids = reading.ids or []
        return ids if self._window is None or len(ids) <= self._window else []

    def _opinions(self, rows: Sequence[Row], missing: list[list[int]]) -> Tensor:
        """The opinions of rows with `missing` tokens, in the target's tokens, [B, V]."""
        begun = [row.draft.begun if missing[place] else None for place, row in enumerate(rows)]
        probs = self._probs(missing, 2 if any(begun) else 1)
        pushed = self.words.pushforward(probs[:, -1], self.vocab_size)
        for place, tokens in enumerate(begun):
            last = missing[place][-1] if missing[place] else None
            if last is None:
                self._origins[place].append(None)
                continue
            origin = Origin(words=self.words, probs=probs[place], last=last, begun=tokens)
            self._origins[place].append(origin)
            if tokens is not None:
                pushed[place] = self.words.inside_number(
                    pushed[place], probs[place, 0], last, tokens
                )
        return pushed

    def _logs(self, opinions: Tensor) -> Tensor:
        """Logarithms of opinions [B, V]; that of 0 is slow, and most tokens may be out of reach."""
        if self._known is None:
            return opinions.log_()
        logs = opinions[:, self._known].log_()
        return opinions.fill_(float("-inf")).index_copy_(-1, self._known, logs)

    def _probs(self, missing: list[list[int]], keep: int) -> Tensor:
        """Feeds each row the tokens `missing`; returns the last `keep` probabilities of each row.

        They are [B, keep, V of the draft]. Rows without missing tokens are fed padding, which their
        next tokens overwrite; those of rows with fewer than `keep` tokens are repeated.
        """
        while (longest := max(map(len, missing))) > MOST_AT_ONCE:
            pieces = [
                tokens[: max(0, min(LONGEST_PIECE, len(tokens) - keep))] for tokens in missing
            ]
            self.model.extend(0, pieces)
            missing = [tokens[len(piece) :] for tokens, piece in zip(missing, pieces, strict=True)]
        # Padding repeats a row's own token, so that another row's text cannot affect it.
        padded = [[*tokens, *(tokens[-1:] or [0]) * (longest - len(tokens))] for tokens in missing]
        uniform = longest >= keep and all(len(tokens) in (0, longest) for tokens in missing)
        fed = upload(padded, self.model.device)
        logits = self.model.forward(fed, keep=keep if uniform else longest)
        if not uniform:
            last = upload([len(tokens) for tokens in missing], logits.device)
            at = (last[:, None] - torch.arange(keep, 0, -1, device=logits.device)).clamp_min(0)
            logits = logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1]))
        for place, tokens in enumerate(missing):
            self.model.lengths[place] += len(tokens)
        return logits.to(self._dtype).softmax(-1)
