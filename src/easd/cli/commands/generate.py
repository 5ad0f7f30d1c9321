"""One `easd generate`: prompts in, texts out, and a word about how they came to be."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from easd.config import RunConfig
from easd.diagnose.calibration_file import CalibrationFile
from easd.engine.chat import encode
from easd.engine.engine import StepRecord
from easd.engine.generate import generate
from easd.engine.pair import fingerprints
from easd.engine.record import Recorder
from easd.engine.request import Row
from easd.engine.trace import TraceWriter, claim_folder
from easd.errors import InputError
from easd.inspect.terminal import summary_panel
from easd.pairs.from_config import load_with_status
from easd.pairs.lab import ALIASES
from easd.pairs.loading import PAIRS
from easd.runs.tally import Tally
from easd.runs.texts import visible

Watcher = Callable[[StepRecord], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What `easd generate` was asked for.

    Attributes:
        config: models and settings.
        prompts: texts to continue or to answer.
        system: a system message for the chat template.
        as_json: print one JSON object a text.
        trace: folder of the trace, or None.
        quiet: print the texts and nothing else.
        artefact: a calibration that must fit the models and settings.
    """

    config: RunConfig
    prompts: Sequence[str]
    system: str | None = None
    as_json: bool = False
    trace: Path | None = None
    quiet: bool = False
    artefact: CalibrationFile | None = None

    def run(self) -> None:
        """Loads the models, decodes, prints.

        Raises:
            EasdError: Something about the models, the prompts or the trace folder does not do.
        """
        console = Console(stderr=True, quiet=self.quiet)
        if self.trace is not None:
            claim_folder(self.trace)
        pair = load_with_status(self.config, console)
        if self.artefact is not None:
            self.artefact.check(fingerprints(pair), self.config.settings)
        chat = {"chat": self.config.chat, "system": self.system}
        ids = [encode(prompt, pair.tokenizer, **chat) for prompt in self.prompts]
        recorder = Recorder(self.config.settings.rule)
        with ExitStack() as stack:
            watchers: list[Watcher] = [recorder.add]
            if self.trace is not None:
                watchers.append(stack.enter_context(TraceWriter(self.trace, pair, self.config)).add)
            watchers.append(stack.enter_context(self._printer(pair.tokenizer, console)).add)

            def watch(record: StepRecord) -> None:
                for watcher in watchers:
                    watcher(record)

            try:
                generate(
                    pair.target,
                    pair.draft,
                    ids,
                    tokenizer=pair.tokenizer,
                    settings=self.config.settings,
                    on_step=watch,
                )
            except KeyboardInterrupt:
                kept = f"; the trace in {self.trace} reads up to here" if self.trace else ""
                console.print(Text(f"interrupted after {recorder.total.tokens} tokens{kept}"))
                raise
        config = self.config.to_dict()
        tally = recorder.total
        console.print(summary_panel(tally.summary(), config, title=pair.name))
        for note in notes(tally, self.config):
            console.print(Text(f"note: {note}", "yellow"), soft_wrap=True)

    def _printer(self, tokenizer: PreTrainedTokenizerBase, console: Console) -> Stream | Texts:
        settings = self.config.settings
        total = len(self.prompts) * settings.n
        if total == 1 and not self.as_json:
            return Stream(tokenizer)
        return Texts(self.prompts, settings.n, tokenizer, console, as_json=self.as_json)


class Stream:
    """Prints one text while it is decoded, as far as it can no longer change."""

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
        self._ended |= {row.request.number: self._show(row) for row in ended}
        self._tokens += sum(map(len, record.committed))
        self._progress.update(self._task, advance=len(ended), tokens=self._tokens)
        if self._next not in self._ended:
            return
        in_the_way = sys.stdout.isatty()
        if in_the_way:
            self._progress.stop()
        while self._next in self._ended:
            print(self._ended.pop(self._next), flush=True)
            self._next += 1
        if in_the_way:
            self._progress.start()

    def _show(self, row: Row) -> str:
        number = row.request.number
        text = _text(self._tokenizer, row)
        if self._as_json:
            return json.dumps(self._as_object(row, text), ensure_ascii=False)
        prompt, copy = divmod(number, self._copies)
        which = f"prompt {prompt}" + (f", text {copy}" if self._copies > 1 else "")
        return f"--- {which} ---\n{_for_terminal(text)}"

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
        }


def notes(tally: Tally, config: RunConfig) -> list[str]:
    """What a reader of the summary should know."""
    settings = config.settings
    rule = settings.rule
    found = []
    if hasattr(rule, "tau_h") and settings.temperature == 0:
        found.append("at temperature 0 the gate uses raw entropies (temperature 1, no truncation)")
    if tally.gate_open == 0 and tally.examined and settings.drafter == "model":
        found.append(
            f"the gate never opened (tau_h {getattr(rule, 'tau_h', 0):.4g} nats): this is what "
            "plain speculation writes; lower --tau-h, or see the entropies with --trace"
        )
    return found


def read_prompts(prompt: str | None, file: Path | None, pair: str | None) -> list[str]:
    """The prompt itself, or what a file or standard input holds, or else the pair's example.

    A file has one prompt a line; a `.jsonl` file one object a line with `prompt` or `problem`.
    Standard input is one prompt.

    Raises:
        InputError: There is none, or the file cannot be read.
    """
    if file is not None:
        if prompt is not None:
            raise InputError("give a prompt or --file, not both")
        return _read_file(file)
    if prompt is not None and prompt != "-":
        return [prompt]
    piped = "" if prompt is None and sys.stdin.isatty() else sys.stdin.read().strip()
    if piped or prompt == "-":
        return [piped]
    info = PAIRS.get(ALIASES.get(pair or "", pair or ""))
    if info is None:
        raise InputError("no prompt; write one behind `generate`, use --file, or pipe it in")
    print(f"note: no prompt given, so here is an example: {info.example}", file=sys.stderr)
    return [info.example]


def _read_file(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"cannot read prompts from {str(file)!r} ({reason})") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"{str(file)!r} holds no prompt; write one on a line")
    if file.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt_of(line, f"{file}:{number}") for number, line in numbered]


def _prompt_of(line: str, where: str) -> str:
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    found = None
    if isinstance(values, dict):
        found = values.get("prompt", values.get("problem"))
    if not isinstance(found, str):
        raise InputError(f"{where} is no JSON object with a text under 'prompt' or 'problem'")
    return found


def _text(tokenizer: Any, row: Row) -> str:
    return tokenizer.decode(row.new_ids, skip_special_tokens=True)


def _for_terminal(text: str) -> str:
    """A model's control characters could steer a terminal; files get the text as it is."""
    return visible(text) if sys.stdout.isatty() else text
