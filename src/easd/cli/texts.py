"""Printers of texts while they are decoded."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from easd.engine.engine import StepRecord
from easd.engine.generate import describe_error
from easd.engine.request import Row
from easd.errors import visible


class Stream:
    """Prints one text while it is decoded, up to where it can no longer change."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._printed = ""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        if self._printed:
            print()

    def add(self, record: StepRecord) -> None:
        (row,) = record.rows
        text = _text(self._tokenizer, row)
        # A character's first bytes decode to U+FFFD until the rest of it comes.
        stable = text if row.finished else text.rstrip("\ufffd")
        if stable.startswith(self._printed):
            print(_for_terminal(stable[len(self._printed) :]), end="", flush=True)
            self._printed = stable

    def fail(self, row: Row) -> None:
        """Does nothing; the command ends with the error."""


class Texts:
    """Prints every text in the prompts' order as soon as it and all before it have ended."""

    def __init__(
        self,
        prompts: Sequence[str],
        copies: int,
        tokenizer: PreTrainedTokenizerBase,
        console: Console,
        *,
        as_json: bool,
    ) -> None:
        self._prompts = prompts
        self._copies = copies
        self._tokenizer = tokenizer
        self._as_json = as_json
        self._ended: dict[int, str] = {}
        self._next = 0
        self._progress = Progress(
            TextColumn("decoding"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("texts, {task.fields[tokens]} tokens"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            disable=not console.is_terminal or console.quiet,
        )
        self._task = self._progress.add_task("", total=len(prompts) * copies, tokens=0)
        self._tokens = 0

    def __enter__(self) -> Texts:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def add(self, record: StepRecord) -> None:
        ended = [row for row in record.rows if row.finished]
        self._tokens += sum(map(len, record.committed))
        self._end(ended)

    def fail(self, row: Row) -> None:
        """Prints a text that failed, as far as it was decoded."""
        self._end([row])

    def _end(self, rows: Sequence[Row]) -> None:
        self._ended |= {row.request.number: self._show(row) for row in rows}
        self._progress.update(self._task, advance=len(rows), tokens=self._tokens)
        if self._next not in self._ended:
            return
        shares_terminal = sys.stdout.isatty()
        if shares_terminal:
            self._progress.stop()
        while self._next in self._ended:
            print(self._ended.pop(self._next), flush=True)
            self._next += 1
        if shares_terminal:
            self._progress.start()

    def _show(self, row: Row) -> str:
        number = row.request.number
        text = _text(self._tokenizer, row)
        if self._as_json:
            return json.dumps(self._as_object(row, text), ensure_ascii=False)
        prompt, copy = divmod(number, self._copies)
        which = f"prompt {prompt}" + (f", text {copy}" if self._copies > 1 else "")
        failed = "" if row.error is None else f" failed: {describe_error(row.error)}"
        return f"--- {which}{failed} ---\n{_for_terminal(text)}"

    def _as_object(self, row: Row, text: str) -> dict[str, Any]:
        prompt, copy = divmod(row.request.number, self._copies)
        return {
            "prompt_index": prompt,
            "text_index": copy,
            "prompt": self._prompts[prompt],
            "text": text,
            "finish_reason": row.finished,
            "token_ids": row.new_ids,
            "prompt_tokens": len(row.request.prompt),
            "new_tokens": len(row.new_ids),
            **asdict(row.counts),
            **({} if row.error is None else {"error": describe_error(row.error)}),
        }


def _text(tokenizer: Any, row: Row) -> str:
    return tokenizer.decode(row.new_ids, skip_special_tokens=True)


def _for_terminal(text: str) -> str:
    """Escapes control characters, which could steer a terminal; files get the text unchanged."""
    return visible(text) if sys.stdout.isatty() else text
