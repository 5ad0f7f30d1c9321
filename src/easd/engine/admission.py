"""The slots of an engine: admits rows, caches their prompts in turns, and frees slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from easd.engine.drafters import Drafter
from easd.engine.models.slots import LONGEST_PIECE, SlotModel
from easd.engine.request import Row


class Rows:
    """The requests in an engine's slots: first those that decode, then those still being cached.

    A forward takes consecutive slots, so both kinds are contiguous. The slots of the target and of
    the drafter's models follow the rows.
    """

    def __init__(self, target: SlotModel, drafter: Drafter, now: Callable[[], float]) -> None:
        self._drafter = drafter
        self._models = [target, *drafter.models]
        self._rows: list[Row] = []
        self._num_decoding = 0
        self._now = now
        self._draft_seconds = 0.0  # Taken to cache prompts in the drafter's models.

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    @property
    def decoding(self) -> list[Row]:
        """The rows whose prompts are cached."""
        return self._rows[: self._num_decoding]

    def add(self, row: Row, *, drafted: bool = True) -> None:
        """Assigns a slot to a row; its prompt is cached after a turn of each waiting one.

        Unless it is going to be `drafted`, the drafter's models read it when they are first asked.
        """
        waiting = self._rows[self._num_decoding :]
        row.served = max((other.served + 1 for other in waiting), default=0)
        row.unread = [row.ids[:-1], *(self._drafter.prompt(row) for _ in self._drafter.models)]
        if drafted:
            row.num_read = len(row.ids)
        else:
            row.unread[1:] = [[] for _ in self._drafter.models]
        for model, unread in zip(self._models, row.unread, strict=True):
            model.lengths[len(self._rows)] = 0
            model.cache.reserve(len(unread) + 1)
        self._rows.append(row)

    def prefill(self, budget: int | None) -> None:
        """Caches at most `budget` prompt tokens, padding included, or all of them if it is None.

        Prompts take turns: next is the one with the fewest cached tokens, and a new prompt starts
        at the most of those waiting. A short prompt thus waits one turn of each prompt before it,
        and a long one is never starved.
        """
        left = budget
        while self._num_decoding < len(self._rows) and (left is None or left > 0):
            first, pieces = self._turn(left)
            longest = max(map(_longest, pieces))
            of_target, *of_drafts = zip(*pieces, strict=True)
            self._extend(self._models[:1], first, [of_target])
            begun = self._now()
            self._extend(self._models[1:], first, of_drafts)
            self._draft_seconds += self._now() - begun
            for place, piece in enumerate(pieces, first):
                row = self._rows[place]
                row.unread = [
                    left[len(done) :] for left, done in zip(row.unread, piece, strict=True)
                ]
                row.served += _longest(piece)
                if not any(row.unread):
                    self._swap(place, self._num_decoding)
                    self._num_decoding += 1
            if left is not None:
                left -= len(pieces) * longest

    def take_draft_seconds(self) -> float:
        """Seconds in which the drafter's models read prompts since the last call."""
        taken, self._draft_seconds = self._draft_seconds, 0.0
        return taken

    def release(self, places: Sequence[int]) -> None:
        """Frees slots and moves other rows into the gaps."""
        for place in sorted(places, reverse=True):
            self._tidy(place)
            gap = place
            if place < self._num_decoding:
                self._num_decoding -= 1
                self._move(self._num_decoding, place)
                gap = self._num_decoding
            self._move(len(self._rows) - 1, gap)
            self._rows.pop()

    def _extend(
        self, models: Sequence[SlotModel], first: int, pieces: Sequence[Sequence[list[int]]]
    ) -> None:
        """Caches pieces of prompts of consecutive rows, those of each model."""
        for model, of_model in zip(models, pieces, strict=True):
            if any(of_model):
                model.extend(first, of_model)

    def _turn(self, budget: int | None) -> tuple[int, list[list[list[int]]]]:
        """The first slot of the next forward, and each prompt's piece in it for each model.

        The rows after the one whose turn it is join while the budget allows.
        """
        waiting = range(self._num_decoding, len(self._rows))
        if budget is None:
            return waiting.start, [self._piece(place, LONGEST_PIECE) for place in waiting]
        first = min(waiting, key=lambda place: self._rows[place].served)
        most = min(budget, LONGEST_PIECE)
        pieces, longest = [], 0
        for place in waiting[first - waiting.start :]:
            piece = self._piece(place, most)
            longest = max(longest, _longest(piece))
            if pieces and (len(pieces) + 1) * longest > budget:
                break
            pieces.append(piece)
        return first, pieces

    def _piece(self, place: int, most: int) -> list[list[int]]:
        return [unread[:most] for unread in self._rows[place].unread]

    def _swap(self, one: int, other: int) -> None:
        if one != other:
            self._rows[one], self._rows[other] = self._rows[other], self._rows[one]
            for model in self._models:
                model.swap(one, other)

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._rows[target] = self._rows[source]
            for model in self._models:
                model.move(source, target)
            self._tidy(source)

    def _tidy(self, place: int) -> None:
        """Clears a row's slots unless a step has shown that they are finite."""
        row = self._rows[place]
        if row.error is not None or not row.counts.blocks:
            for model in self._models:
                model.cache.clear(place)


def _longest(pieces: Sequence[Sequence[int]]) -> int:
    return max(map(len, pieces))
