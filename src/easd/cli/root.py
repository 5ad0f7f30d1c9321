"""The command line: finds a command, and reports user errors in one line with an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Collection, Sequence
from importlib import import_module
from importlib.metadata import version

from cyclopts import App, CycloptsError, Parameter

from easd.errors import EasdError, one_line

# Module of each command, and its summary for help, which does not import the module.
COMMANDS = {
    "generate": ("generate", "Continue or answer a prompt, and summarise what was accepted."),
    "pairs": ("pairs", "List the embedded pairs, and what is missing to use one."),
    "inspect": ("inspect", "Show any run; a trace token by token."),
    "eval": ("evaluate", "Decode and grade tasks with several systems."),
    "ablate": ("ablate", "Run the paper's ablation of EASD, with controls."),
    "sweep": ("sweep", "Try thresholds: accuracies, or firing rates by replay."),
    "calibrate": ("calibrate", "Find tau_h for a pair."),
    "diagnose": ("diagnose", "Predict whether EASD or another rule helps on a pair."),
    "tune": ("tune", "Find the best rule for a pair, and say if none helps."),
    "study": (
        "study",
        "Does any rule help this pair on this task? Tunes, decodes and reports.",
    ),
    "reproduce": (
        "reproduce",
        "Run an experiment of the paper, and print its results beside the reported ones.",
    ),
    "report": ("report", "Report on runs: one page, and every table."),
    "power": ("power", "Estimate how many problems and seeds a comparison takes."),
    "tasks": ("tasks", "List the tasks, and how their answers are graded."),
    "serve": ("serve", "Serve a pair over HTTP: OpenAI's API, and a page."),
    "plan": ("plan", "Forecast tokens per second on other hardware."),
    "bench": ("bench", "Time every way to decode in turns: ratios with intervals."),
}
USAGE_ERROR = 2
INTERRUPTED = 130

# Modules that each extra installs.
_EXTRAS = {
    "study": ("datasets", "httpx2", "jinja2", "math_verify", "matplotlib", "pandas", "scipy"),
    "serve": ("fastapi", "prometheus_client", "starlette", "uvicorn"),
}


def command_line(loaded: Collection[str] = ()) -> App:
    """Returns all commands: those in `loaded` with their options, the others with their summary.

    Loading a command imports what it needs, which may be torch.
    """
    app = App(
        name="easd",
        help="Entropy-aware speculative decoding with exact rules.",
        help_format="markdown",
        version=lambda: f"easd {version('easd')}",
        default_parameter=Parameter(negative_iterable=(), negative_none=(), allow_repeating=True),
        exit_on_error=False,
        print_error=False,
        result_action="return_none",
        suppress_keyboard_interrupt=False,
    )
    for place, (name, (module, summary)) in enumerate(COMMANDS.items()):
        path = f"easd.cli.{module}"
        if name in loaded:
            import_module(path)  # cyclopts would hide the name of a missing package.
            summary = None
        app.command(f"{path}:command", name=name, help=summary, sort_key=place)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line; a user error prints one line and exits with code 2."""
    warnings.filterwarnings("ignore", module=r"transformers|torch|huggingface_hub")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if sys.stdout is None:
        sys.exit(_fail("standard output is closed; send it to /dev/null to have nothing printed"))
    try:
        command_line(words[:1])(_dash_last(words))
        sys.stdout.flush()
    except (CycloptsError, EasdError) as error:
        sys.exit(_fail(str(error)))
    except ModuleNotFoundError as error:
        extra = next((extra for extra, names in _EXTRAS.items() if error.name in names), None)
        if extra is None:
            raise
        sys.exit(_fail(f"this command needs {error.name}; pip install 'easd[{extra}]'"))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (BrokenPipeError, SystemExit) as ended:
        # rich turns a closed pipe into an exit without a word.
        if isinstance(ended, SystemExit) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        # What is left in the buffer cannot be written when Python ends, either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_fail("standard output was closed before everything was printed"))
    sys.exit(0)


def _dash_last(words: list[str]) -> list[str]:
    """Moves a lone `-`, which means standard input, behind `--`: else it would be an option."""
    if "-" not in words or "--" in words:
        return words
    return [*(word for word in words if word != "-"), "--", "-"]


def _fail(message: str) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return USAGE_ERROR
