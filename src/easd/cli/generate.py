"""`easd generate`: decodes prompts and summarises what was drafted, accepted and penalised."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from easd.cli.options import OUTPUT, AsJson, Config, DecodingOptions, Quiet, RunOptions
from easd.cli.texts import Stream, Texts
from easd.config import RunConfig
from easd.engine.chat import encode
from easd.engine.engine import StepRecord
from easd.engine.generate import decode as decode_requests
from easd.engine.generate import make_requests, summary_of_failures
from easd.engine.pair import Pair
from easd.engine.record import Recorder
from easd.engine.request import Row
from easd.engine.trace import TraceWriter, claim_folder
from easd.errors import EasdError, InputError
from easd.inspect.terminal import summary_panel
from easd.pairs.from_config import load_with_status
from easd.pairs.lab import ALIASES
from easd.pairs.loading import PAIRS
from easd.parsing import parse_json
from easd.runs.tally import Tally

Watcher = Callable[[StepRecord], None]


def command(
    prompt: str | None = None,
    /,
    *,
    asked: RunOptions | None = None,
    decoding: DecodingOptions = None,
    config: Annotated[Config, Parameter(group=OUTPUT)] = None,
    file: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    system: Annotated[str | None, Parameter(group=OUTPUT, allow_leading_hyphen=True)] = None,
    as_json: AsJson = False,
    trace: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt, or answer it, and say what was drafted, accepted and penalised.

    Args:
        prompt: The prompt; '-' reads it from standard input. Without one, what is piped in, or
            else an example of the pair.
        file: Prompts, one per line; in a .jsonl file under 'prompt' or 'problem'.
        system: A system message.
        as_json: Print one JSON object per text.
        trace: Record every token in this new folder.
    """
    asked = asked or RunOptions()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = asked.load(config, decoding)
    console = Console(stderr=True, quiet=quiet)
    for line in dict.fromkeys(str(warning.message) for warning in caught):
        console.print(Text(f"note: {line}"), soft_wrap=True)
    prompts = read_prompts(prompt, file, run.pair)
    if trace is not None:
        claim_folder(trace)
    pair = load_with_status(run, console)
    asked.check(pair, run)
    ids = [encode(text, pair.tokenizer, chat=run.chat, system=system) for text in prompts]
    if len(ids) * run.settings.n == 1 and not as_json:
        printer = Stream(pair.tokenizer)
    else:
        printer = Texts(prompts, run.settings.n, pair.tokenizer, console, as_json=as_json)
    tally, failed = decode(run, pair, ids, printer, trace, console)
    count = len(ids) * run.settings.n
    if len(failed) == count:
        raise EasdError(summary_of_failures(failed, count))
    console.print(summary_panel(tally.summary(), run.to_dict(), title=pair.name))
    for note in notes(tally, run):
        console.print(Text(f"note: {note}", "yellow"), soft_wrap=True)
    if failed:
        raise EasdError(summary_of_failures(failed, count))


def decode(
    run: RunConfig,
    pair: Pair,
    ids: Sequence[list[int]],
    printer: Stream | Texts,
    trace: Path | None,
    console: Console,
) -> tuple[Tally, list[Row]]:
    """Decodes, prints and records texts; returns their counts and the rows that failed.

    Raises:
        EasdError: A prompt, or the folder of the trace, cannot be used.
    """
    recorder = Recorder(run.settings.rule)
    failed: list[Row] = []
    with ExitStack() as stack:
        watchers: list[Watcher] = [recorder.add]
        if trace is not None:
            watchers.append(stack.enter_context(TraceWriter(trace, pair, run)).add)
        watchers.append(stack.enter_context(printer).add)

        def fail(row: Row) -> None:
            failed.append(row)
            printer.fail(row)

        try:
            requests = make_requests(pair, ids, run.settings)
            for record in decode_requests(pair, requests, run.settings, fail):
                for watcher in watchers:
                    watcher(record)
        except KeyboardInterrupt:
            kept = f"; the trace in {trace} reads up to here" if trace else ""
            console.print(Text(f"interrupted after {recorder.total.tokens} tokens{kept}"))
            raise
    return recorder.total, failed


def notes(tally: Tally, config: RunConfig) -> list[str]:
    """Returns notes that help to read the summary."""
    settings = config.settings
    gate = settings.rule.gate
    found = []
    if gate is not None and settings.temperature == 0:
        found.append("at temperature 0 the gate uses raw entropies (temperature 1, no truncation)")
    if tally.gate_open == 0 and tally.examined and settings.drafter == "model":
        found.append(
            f"the gate never opened (tau_h {gate.tau_h if gate else 0:.4g} nats), so this is the "
            "text of plain speculation; lower --tau-h, or record the entropies with --trace"
        )
    return found


def read_prompts(prompt: str | None, file: Path | None, pair: str | None) -> list[str]:
    """Returns the prompt, or those of a file, or standard input as one, or the pair's example.

    A file has one prompt per line; a `.jsonl` file one object per line, with `prompt` or `problem`.

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
        raise InputError("no prompt; write one after `generate`, use --file, or pipe it in")
    print(f"note: no prompt given; this is an example: {info.example}", file=sys.stderr)
    return [info.example]


def _read_file(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"cannot read prompts from {str(file)!r} ({reason})") from None
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise InputError(f"{str(file)!r} holds no prompt; write one per line")
    if file.suffix != ".jsonl":
        return [line for _, line in numbered]
    return [_prompt_of(line, f"{file}:{number}") for number, line in numbered]


def _prompt_of(line: str, where: str) -> str:
    try:
        values = parse_json(line)
        found = values.get("prompt", values.get("problem"))
    except (ValueError, AttributeError):
        found = None
    if not isinstance(found, str):
        raise InputError(f"{where} is no JSON object with a text under 'prompt' or 'problem'")
    return found
