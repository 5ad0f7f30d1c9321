"""`easd generate`: prompts in, texts out, and a word about how they came to be."""

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

from easd.cli.options import (
    OUTPUT,
    CalibrationOption,
    Config,
    DecodingOptions,
    Force,
    ModelOptions,
    OtherRuleOptions,
    Quiet,
    RuleOptions,
    Set,
    overrides_of_rule,
)
from easd.cli.texts import Stream, Texts
from easd.config import RunConfig, load_config
from easd.diagnose.calibration_file import read_calibration
from easd.engine.chat import encode
from easd.engine.engine import StepRecord
from easd.engine.generate import decode as decode_requests
from easd.engine.generate import make_requests, summary_of_failures
from easd.engine.pair import Pair, fingerprints
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
    models: ModelOptions = None,
    rule: RuleOptions = None,
    set_: Set = None,
    calibration: CalibrationOption = None,
    force: Force = False,
    other_rules: OtherRuleOptions = None,
    decoding: DecodingOptions = None,
    config: Annotated[Config, Parameter(group=OUTPUT)] = None,
    file: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    system: Annotated[str | None, Parameter(group=OUTPUT, allow_leading_hyphen=True)] = None,
    as_json: Annotated[
        bool, Parameter(name="--json", group=OUTPUT, negative=(), show_default=False)
    ] = False,
    trace: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt, or answer it, and say what was drafted, accepted and penalised.

    Args:
        prompt: The prompt; '-' reads it from standard input. Without one, what is piped in, or
            else an example of the pair.
        file: Prompts, one a line; in a .jsonl file under 'prompt' or 'problem'.
        system: A system message.
        as_json: Print one JSON object a text.
        trace: Record every token in this new folder.
    """
    given = {**(models or {}), **overrides_of_rule(rule, other_rules, set_=set_)}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        calibrated = read_calibration(calibration) if calibration else None
        run = load_config(
            config,
            {**given, **(decoding or {})},
            fill=calibrated.fill if calibrated else None,
            defaults=calibrated.decoding if calibrated else None,
        )
    console = Console(stderr=True, quiet=quiet)
    for line in dict.fromkeys(str(warning.message) for warning in told):
        console.print(Text(f"note: {line}"), soft_wrap=True)
    prompts = read_prompts(prompt, file, run.pair)
    if trace is not None:
        claim_folder(trace)
    pair = load_with_status(run, console)
    if calibrated is not None and not force:
        calibrated.check(fingerprints(pair), run.settings)
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
    """Decodes, prints and records prompts; returns what was counted, and the rows that failed.

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

        def watch(record: StepRecord) -> None:
            for watcher in watchers:
                watcher(record)

        def fail(row: Row) -> None:
            failed.append(row)
            printer.fail(row)

        try:
            requests = make_requests(pair, ids, run.settings)
            for record in decode_requests(pair, requests, run.settings, fail):
                watch(record)
        except KeyboardInterrupt:
            kept = f"; the trace in {trace} reads up to here" if trace else ""
            console.print(Text(f"interrupted after {recorder.total.tokens} tokens{kept}"))
            raise
    return recorder.total, failed


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
        values = parse_json(line)
    except ValueError:
        values = None
    found = None
    if isinstance(values, dict):
        found = values.get("prompt", values.get("problem"))
    if not isinstance(found, str):
        raise InputError(f"{where} is no JSON object with a text under 'prompt' or 'problem'")
    return found
