"""The command line: arguments in, exit codes out. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from easd.cli.options import Device, Draft, Dtype, Int8Draft, Pair, Target, chosen_models
from easd.cli.serving import app as server
from easd.cli.speed import app as speed
from easd.cli.study import app as studies
from easd.errors import ConfigError, EasdError, TraceError

USAGE_ERROR = 2

app = typer.Typer(
    name="easd",
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Imported by studies only; see the extra `study` in pyproject.toml.
_OF_STUDIES = ("datasets", "httpx2", "jinja2", "math_verify", "matplotlib", "pandas", "scipy")
# Imported by `easd serve` only; see the extra `serve`.
_OF_SERVER = ("fastapi", "prometheus_client", "starlette", "uvicorn")

_RULE, _DECODING, _OUTPUT = "Rule", "Decoding", "Input and output"


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Entropy-aware speculative decoding with exact rules."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="The prompt; '-' reads it from standard input. Without one, what is piped in, "
            "or else an example of the pair."
        ),
    ] = None,
    *,
    pair: Pair = None,
    target: Target = None,
    draft: Draft = None,
    dtype: Dtype = None,
    int8_draft: Int8Draft = None,
    device: Device = None,
    file: Annotated[
        Path | None,
        Option(
            help="Prompts, one a line; in a .jsonl file under 'prompt' or 'problem'.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        Option(
            "--chat/--no-chat",
            help="Use the tokenizer's chat template.",
            show_default="where it has one",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    system: Annotated[str | None, Option(help="A system message.", rich_help_panel=_OUTPUT)] = None,
    as_json: Annotated[
        bool, Option("--json", help="Print one JSON object a text.", rich_help_panel=_OUTPUT)
    ] = False,
    trace: Annotated[
        Path | None,
        Option(help="Record every token in this new folder.", rich_help_panel=_OUTPUT),
    ] = None,
    quiet: Annotated[
        bool,
        Option("--quiet", "-q", help="Print the texts and nothing else.", rich_help_panel=_OUTPUT),
    ] = False,
    calibration: Annotated[
        Path | None,
        Option(
            help="Take thresholds (and the pool) from a file of `easd calibrate` or "
            "`easd diagnose`.",
            rich_help_panel=_RULE,
        ),
    ] = None,
    force: Annotated[
        bool,
        Option(
            "--force",
            help="Use a calibration of another pair or other settings.",
            rich_help_panel=_RULE,
        ),
    ] = False,
    config: Annotated[
        Path | None,
        Option(
            help="A YAML file with any of these settings; options go before it.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    rule: Annotated[
        str | None,
        Option(
            help="easd, speculative, target, draft; ablations: easd-without-overlap, "
            "easd-without-draft-entropy, easd-without-both, overlap-only, random-refusal; ours: "
            "pool, relaxed-pool, greedy-p, sharpened, keep-near-top, contrast; others': "
            "typical-acceptance, lenience, ensemble, fly.",
            show_default="easd",
            rich_help_panel=_RULE,
        ),
    ] = None,
    tau_h: Annotated[
        str | None,
        Option(
            help="Entropy threshold in nats, or in bits as '2bits'.",
            show_default="1.5",
            metavar="NUMBER",
            rich_help_panel=_RULE,
        ),
    ] = None,
    tau_o: Annotated[
        float | None,
        Option(help="Overlap threshold in [0, 1].", show_default="0.8", rich_help_panel=_RULE),
    ] = None,
    top_n: Annotated[
        int | None,
        Option(help="Top tokens the overlap counts.", show_default="5", rich_help_panel=_RULE),
    ] = None,
    redraw: Annotated[
        str | None,
        Option(
            help="Draw a replacement from the target without the token (exclude) or from the "
            "target itself (target).",
            show_default="exclude",
            rich_help_panel=_RULE,
        ),
    ] = None,
    penalise: Annotated[
        str | None,
        Option(
            help="Exclude the drafted token or the draft's top token: drafted or draft_top.",
            show_default="drafted",
            rich_help_panel=_RULE,
        ),
    ] = None,
    gate_on: Annotated[
        str | None,
        Option(
            help="Ask the gate of every proposed token or of accepted ones: proposed or accepted.",
            show_default="proposed",
            rich_help_panel=_RULE,
        ),
    ] = None,
    draft_at_bonus: Annotated[
        bool | None,
        Option(
            "--draft-at-bonus/--no-draft-at-bonus",
            help="Ask the draft at the bonus position, and gate it too.",
            show_default="no",
            rich_help_panel=_RULE,
        ),
    ] = None,
    entropy_of: Annotated[
        str | None,
        Option(
            help="Entropies of the distribution tokens are drawn from or of the one before "
            "temperature and truncation: sampling or raw.",
            show_default="sampling",
            rich_help_panel=_RULE,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        Option(
            help="Share of tokens that random-refusal refuses.",
            show_default="0.02",
            rich_help_panel=_RULE,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        Option(
            "--set",
            help="Any field of the rule, as field=value; may be repeated.",
            metavar="FIELD=VALUE",
            rich_help_panel=_RULE,
        ),
    ] = None,
    gamma: Annotated[
        int | None,
        Option(
            help="Draft tokens asked for in a block.", show_default="4", rich_help_panel=_DECODING
        ),
    ] = None,
    least_block_prob: Annotated[
        float | None,
        Option(
            help="End a block early where the draft's probability of all its tokens falls below "
            "this.",
            show_default="0.0",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    drafter: Annotated[
        str | None,
        Option(
            help="Draft with the model or look tokens up in the text so far: model or "
            "prompt-lookup.",
            show_default="model",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        Option(
            help="Most tokens of a text.",
            show_default="256, or what the context window leaves",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    min_new_tokens: Annotated[
        int | None,
        Option(help="Least tokens of a text.", show_default="0", rich_help_panel=_DECODING),
    ] = None,
    temperature: Annotated[
        float | None,
        Option(help="0 decodes greedily.", show_default="1.0", rich_help_panel=_DECODING),
    ] = None,
    top_k: Annotated[
        int | None,
        Option(
            help="Keep the k most probable tokens, 0 all.",
            show_default="0",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        Option(
            help="Keep the smallest set with this probability.",
            show_default="1.0",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    min_p: Annotated[
        float | None,
        Option(
            help="Drop tokens below this share of the most probable one.",
            show_default="0.0",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        Option(
            help="Divides the logits of tokens already there.",
            show_default="1.0",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        Option(help="A text that ends the decoding; may be repeated.", rich_help_panel=_DECODING),
    ] = None,
    bad_word: Annotated[
        list[str] | None,
        Option(help="A text that is never written; may be repeated.", rich_help_panel=_DECODING),
    ] = None,
    seed: Annotated[
        int | None,
        Option(help="Decides all randomness.", show_default="0", rich_help_panel=_DECODING),
    ] = None,
    coupling: Annotated[
        str | None,
        Option(
            help="Keep as many draft tokens as the rule's law allows (maximal), follow the rule's "
            "paper (published), or draw draft and text with the same numbers (shared).",
            show_default="the rule's own",
            rich_help_panel=_DECODING,
        ),
    ] = None,
    n: Annotated[
        int | None,
        Option("--n", help="Texts a prompt.", show_default="1", rich_help_panel=_DECODING),
    ] = None,
    batch: Annotated[
        int | None,
        Option(
            "--batch", help="Texts decoded at once.", show_default="8", rich_help_panel=_DECODING
        ),
    ] = None,
) -> None:
    """Continue a prompt, or answer it, and say what was drafted, accepted and penalised."""
    from easd.cli.commands.generate import Session, read_prompts
    from easd.config import load_config, parse_override
    from easd.diagnose.calibration_file import read_calibration

    overrides: dict[str, Any] = {
        **chosen_models(locals()),
        "chat": chat,
        "rule": rule,
        "rule.tau_h": tau_h,
        "rule.tau_o": tau_o,
        "rule.top_n": top_n,
        "rule.redraw": redraw,
        "rule.penalise": penalise,
        "rule.gate_on": gate_on,
        "rule.draft_at_bonus": draft_at_bonus,
        "rule.entropy_of": entropy_of,
        "rule.rate": rate,
        "gamma": gamma,
        "least_block_prob": least_block_prob,
        "drafter": drafter,
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": min_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop or None,
        "bad_words": bad_word or None,
        "seed": seed,
        "coupling": coupling,
        "n": n,
        "batch_size": batch,
    }
    overrides = {name: value for name, value in overrides.items() if value is not None}
    for text in set_ or []:
        name, value = parse_override(text)
        overrides[f"rule.{name}"] = value
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        artefact = read_calibration(calibration) if calibration else None
        parsed = load_config(config, overrides, fill=artefact.fill if artefact else None)
    if not quiet:
        for line in dict.fromkeys(str(warning.message) for warning in told):
            typer.echo(f"note: {line}", err=True)
    Session(
        config=parsed,
        prompts=read_prompts(prompt, file, parsed.pair),
        system=system,
        as_json=as_json,
        trace=trace,
        quiet=quiet,
        artefact=None if force else artefact,
    ).run()


@app.command()
def pairs() -> None:
    """List the embedded pairs, and what is missing to use one."""
    from rich.console import Console
    from rich.table import Table

    from easd.pairs.lab import ALIASES
    from easd.pairs.loading import PAIRS

    short = {name: alias for alias, name in ALIASES.items()}
    table = Table("pair", "what it is", "parameters", "licence", "state")
    for name, info in PAIRS.items():
        missing = info.missing()
        state = "ready" if info.cached() else "installed; unpacked on first use"
        names = f"{name}, {short[name]}" if name in short else name
        table.add_row(
            names,
            info.summary,
            info.parameters,
            info.licence,
            f"run: {missing}" if missing else state,
        )
    Console().print(table)


@app.command()
def inspect(
    folders: Annotated[
        list[Path],
        typer.Argument(help="A run's folder; with --html several to compare."),
    ],
    sample: Annotated[
        int | None,
        Option(
            help="Show this recorded text, counted from 0.",
            show_default="0 of a trace; with --html all",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        Option(help="Write a page for the browser to this file; it needs no other."),
    ] = None,
) -> None:
    """Show what any run holds: a trace's tokens, an evaluation's systems, a benchmark's speeds.

    Recorded tokens are shown by outcome, with entropies, what each penalty replaced, and a summary.
    """
    from easd.runs import open_run, traces

    runs = [open_run(folder) for folder in folders]
    if html is not None:
        from easd.inspect.page import write_page

        write_page([trace for run in runs for trace in traces(run)], html, sample=sample)
        typer.echo(f"wrote {html}", err=True)
        return
    if len(runs) > 1:
        raise ConfigError(
            f"the terminal shows one run, not {len(runs)}; name one, or compare with --html"
        )
    from rich.console import Console

    from easd.inspect.overview import overview
    from easd.inspect.terminal import render

    (run,) = runs
    if sample is None and run.kind != "trace":
        overview(run, Console())
        return
    recorded = traces(run)
    if not recorded:
        raise TraceError(f"{str(run.folder)!r} recorded no tokens; leave out --sample to see it")
    for trace in recorded:
        render(trace, sample or 0, Console())


app.add_typer(studies)
app.add_typer(server)
app.add_typer(speed)


def main() -> None:
    """Runs the command line; a mistake of the user's costs one line and exit code 2."""
    warnings.filterwarnings("ignore", module=r"transformers|torch|huggingface_hub")
    try:
        code = app(standalone_mode=False)
    except EasdError as error:
        code = _fail(str(error))
    except typer.TyperException as error:
        code = _fail(error.format_message())
    except ModuleNotFoundError as error:
        if error.name not in (*_OF_STUDIES, *_OF_SERVER):
            raise
        extra = "serve" if error.name in _OF_SERVER else "study"
        code = _fail(f"this command needs {error.name}; pip install 'easd[{extra}]'")
    sys.exit(code)


def _fail(message: str) -> int:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    return USAGE_ERROR
