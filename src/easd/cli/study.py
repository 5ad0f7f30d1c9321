"""The commands that turn decoding into evidence: arguments in, sessions out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from easd.cli.options import MODEL_SETTINGS, Device, Draft, Dtype, Int8Draft, Pair, Target
from easd.presets import PRESETS

app = typer.Typer()

_GRID, _DECODING, _OUTPUT = "Grid", "Decoding", "Output"
_ENDPOINT = "Endpoint"

TaskName = Annotated[
    list[str] | None,
    Option(
        "--task",
        help="A task, or the first items of one as name:count; see `easd tasks`. May be repeated.",
        metavar="NAME[:COUNT]",
        rich_help_panel=_GRID,
    ),
]
Data = Annotated[
    Path | None,
    Option(
        "--data",
        help="A file of items, or a folder with a file for each task.",
        show_default="EASD_DATA, or the hub",
        rich_help_panel=_GRID,
    ),
]
SystemSpec = Annotated[
    list[str] | None,
    Option(
        "--system",
        help="A rule with fields and settings, such as easd:tau_h=1.2,coupling=maximal, or "
        "rsd:delta=0.7. "
        "With --endpoint also `served`: the server's own. May be repeated.",
        metavar="RULE[:FIELD=VALUE,...]",
        show_default="target, speculative, easd; with --endpoint served",
        rich_help_panel=_GRID,
    ),
]
Seeds = Annotated[
    list[int] | None,
    Option(
        "--seed",
        help="Decodes every item once; may be repeated.",
        show_default="0",
        rich_help_panel=_GRID,
    ),
]
Endpoint = Annotated[
    str | None,
    Option(
        "--endpoint",
        help="Evaluate this OpenAI-compatible server, such as http://127.0.0.1:8000/v1, instead of "
        "a pair.",
        metavar="URL",
        rich_help_panel=_ENDPOINT,
    ),
]
Model = Annotated[
    str | None,
    Option(
        "--model",
        help="The server's name for the model.",
        show_default="its only one",
        rich_help_panel=_ENDPOINT,
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    Option(
        "--api-key-env",
        help="The environment variable that holds the server's key.",
        metavar="NAME",
        rich_help_panel=_ENDPOINT,
    ),
]
Dialect = Annotated[
    str | None,
    Option(
        "--dialect",
        help="How a request names its rule: easd (easd serve) or vllm (the plugin).",
        show_default="whichever the server understands",
        rich_help_panel=_ENDPOINT,
    ),
]
Concurrency = Annotated[
    int | None,
    Option(
        "--concurrency",
        help="Requests under way at once.",
        show_default="16",
        rich_help_panel=_ENDPOINT,
    ),
]
Temperature = Annotated[
    float | None,
    Option(
        "--temperature",
        help="0 decodes greedily.",
        show_default="1.0",
        rich_help_panel=_DECODING,
    ),
]
TopP = Annotated[
    float | None,
    Option(
        "--top-p",
        help="Keep the smallest set with this probability.",
        show_default="1.0",
        rich_help_panel=_DECODING,
    ),
]
Gamma = Annotated[
    int | None,
    Option(
        "--gamma",
        help="Draft tokens asked for in a block.",
        show_default="4",
        rich_help_panel=_DECODING,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    Option(
        "--max-new-tokens",
        help="Most tokens of a text.",
        show_default="the task's",
        rich_help_panel=_DECODING,
    ),
]
Batch = Annotated[
    int | None,
    Option("--batch", help="Texts decoded at once.", show_default="16", rich_help_panel=_DECODING),
]
SetValue = Annotated[
    list[str] | None,
    Option(
        "--set",
        help="Any setting of the config file, as name=value (top_k=50, coupling=maximal, "
        "trace=500, chunk=32, baselines=false, ...). May be repeated.",
        metavar="NAME=VALUE",
        rich_help_panel=_DECODING,
    ),
]
Config = Annotated[
    Path | None,
    typer.Argument(
        help="A YAML file with any of these settings, or a preset: "
        f"{', '.join(PRESETS)}. Options go before it."
    ),
]
Out = Annotated[
    Path,
    Option(
        "--out",
        help="Folder of the run; one that was stopped goes on.",
        rich_help_panel=_OUTPUT,
    ),
]
CalibrationFile = Annotated[
    Path | None,
    Option(
        "--calibration",
        help="Take thresholds (and the pool) from a file of `easd calibrate` or `easd diagnose`.",
        rich_help_panel=_GRID,
    ),
]
Force = Annotated[
    bool,
    Option(
        "--force",
        help="Use a calibration of another pair or other settings.",
        rich_help_panel=_GRID,
    ),
]
AllowCode = Annotated[
    bool,
    Option(
        "--allow-code-execution",
        help="Run code that models wrote, in a sandbox: tasks of programs need it.",
        rich_help_panel=_GRID,
    ),
]
Quiet = Annotated[
    bool,
    Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=_OUTPUT),
]
TauH = Annotated[
    str | None,
    Option(
        "--tau-h",
        help="Entropy threshold in nats, or in bits as '2bits'.",
        show_default="1.5, or the calibration's",
        metavar="NUMBER",
        rich_help_panel=_GRID,
    ),
]
TauO = Annotated[
    float,
    Option("--tau-o", help="Overlap threshold in [0, 1].", rich_help_panel=_GRID),
]


@app.command(name="eval")
def evaluate(
    config: Config = None,
    *,
    out: Out = Path("runs/eval"),
    pair: Pair = None,
    target: Target = None,
    draft: Draft = None,
    dtype: Dtype = None,
    int8_draft: Int8Draft = None,
    device: Device = None,
    task: TaskName = None,
    data: Data = None,
    system: SystemSpec = None,
    seed: Seeds = None,
    endpoint: Endpoint = None,
    model: Model = None,
    api_key_env: ApiKeyEnv = None,
    dialect: Dialect = None,
    concurrency: Concurrency = None,
    calibration: CalibrationFile = None,
    force: Force = False,
    allow_code_execution: AllowCode = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    gamma: Gamma = None,
    max_new_tokens: MaxNewTokens = None,
    batch: Batch = None,
    set_: SetValue = None,
    quiet: Quiet = False,
) -> None:
    """Decode and grade tasks with several systems: who is right how often?

    Every system sees the same items with the same random numbers (shared noise), so that two of
    them differ only where their rules acted. A target at temperature 0.5 and one decoding greedily
    are always among them. A run that was stopped goes on where it was.

    With --endpoint a server decodes. Noise is then independent, and systems are only those named.
    """
    about_server = {
        "url": endpoint,
        "model": model,
        "api_key_env": api_key_env,
        "dialect": dialect,
        "concurrency": concurrency,
    }
    values = _values(locals())
    values |= {f"endpoint.{k}": v for k, v in about_server.items() if v is not None}
    if system:
        values["systems"] = system
    _evaluate(config, values, out, calibration, force, allow_code_execution, quiet)


@app.command()
def ablate(
    config: Config = None,
    *,
    out: Out = Path("runs/ablation"),
    pair: Pair = None,
    target: Target = None,
    draft: Draft = None,
    dtype: Dtype = None,
    int8_draft: Int8Draft = None,
    device: Device = None,
    task: TaskName = None,
    data: Data = None,
    tau_h: TauH = None,
    tau_o: TauO = 0.8,
    draft_at_bonus: Annotated[
        bool, Option(help="Gate the bonus position too.", rich_help_panel=_GRID)
    ] = False,
    seed: Seeds = None,
    calibration: CalibrationFile = None,
    force: Force = False,
    allow_code_execution: AllowCode = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    gamma: Gamma = None,
    max_new_tokens: MaxNewTokens = None,
    batch: Batch = None,
    set_: SetValue = None,
    quiet: Quiet = False,
) -> None:
    """Take EASD apart: the paper's ablation, with random refusal at EASD's own rate as control."""
    from easd.evaluate.presets import ablation, matched_refusal
    from easd.runs import open_run

    gate: dict[str, Any] = {"tau_o": tau_o, "draft_at_bonus": draft_at_bonus}
    if tau_h is not None:
        gate["tau_h"] = tau_h
    values = _values(locals())
    cells = ablation(gate)

    def with_control() -> list[Any]:
        return [*cells, matched_refusal(open_run(out, "evaluation"), gate)]

    _evaluate(
        *(config, values | {"systems": cells}, out),
        *(calibration, force, allow_code_execution, quiet),
        then=with_control,
    )


@app.command()
def sweep(
    config: Config = None,
    *,
    out: Out = Path("runs/sweep"),
    pair: Pair = None,
    target: Target = None,
    draft: Draft = None,
    dtype: Dtype = None,
    int8_draft: Int8Draft = None,
    device: Device = None,
    task: TaskName = None,
    data: Data = None,
    tau_h: Annotated[
        list[float] | None,
        Option(
            "--tau-h",
            help="Entropy threshold in nats; may be repeated.",
            show_default="1.5 2.0 2.5, or 0.75, 1 and 1.25 times the calibration's",
            rich_help_panel=_GRID,
        ),
    ] = None,
    tau_o: Annotated[
        list[float] | None,
        Option(
            "--tau-o",
            help="Overlap threshold; may be repeated.",
            show_default="0.6 0.8 1.0",
            rich_help_panel=_GRID,
        ),
    ] = None,
    replay: Annotated[
        Path | None,
        Option(
            "--replay",
            help="Only say how often the gate would open, from the recorded tokens of this run; "
            "nothing is decoded.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    seed: Seeds = None,
    calibration: CalibrationFile = None,
    force: Force = False,
    allow_code_execution: AllowCode = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    gamma: Gamma = None,
    max_new_tokens: MaxNewTokens = None,
    batch: Batch = None,
    set_: SetValue = None,
    quiet: Quiet = False,
) -> None:
    """Try thresholds: accuracy by decoding every pair of them, firing rates also by replay."""
    from easd.diagnose.calibration_file import read_calibration
    from easd.evaluate import presets

    centre = read_calibration(calibration).fields["tau_h"] if calibration else None
    around = tuple(round(centre * factor, 4) for factor in (0.75, 1.0, 1.25)) if centre else None
    grid_h = tuple(tau_h or ()) or around or presets.SWEEP_TAU_H
    grid_o = tuple(tau_o or ()) or presets.SWEEP_TAU_O
    if replay is not None:
        from easd.cli.commands.sweep import show_replay

        show_replay(replay, grid_h, grid_o)
        return
    values = _values(locals()) | {"systems": presets.sweep(grid_h, grid_o, {})}
    _evaluate(config, values, out, calibration, force, allow_code_execution, quiet)


@app.command()
def calibrate(
    config: Config = None,
    *,
    out: Annotated[
        Path, Option("--out", help="The file to write.", rich_help_panel=_OUTPUT)
    ] = Path("calibration.json"),
    run: Annotated[
        Path,
        Option(
            "--run",
            help="Folder of the texts decoded for it; one that was stopped goes on.",
            rich_help_panel=_OUTPUT,
        ),
    ] = Path("runs/calibration"),
    pair: Pair = None,
    target: Target = None,
    draft: Draft = None,
    dtype: Dtype = None,
    int8_draft: Int8Draft = None,
    device: Device = None,
    task: TaskName = None,
    data: Data = None,
    source: Annotated[
        str,
        Option(
            help="Whose entropies the paper's rule takes: pooled, draft or target.",
            rich_help_panel=_GRID,
        ),
    ] = "pooled",
    rate: Annotated[
        float | None,
        Option(
            help="Find the tau_h at which the gate opens at this share of positions, instead of "
            "the paper's rule.",
            rich_help_panel=_GRID,
        ),
    ] = None,
    tau_o: TauO = 0.8,
    top_n: Annotated[int, Option(help="Top tokens the overlap counts.", rich_help_panel=_GRID)] = 5,
    entropy_of: Annotated[
        str,
        Option(
            help="Entropies of the distribution tokens are drawn from or of the one before "
            "temperature and truncation: sampling or raw.",
            rich_help_panel=_GRID,
        ),
    ] = "sampling",
    seed: Seeds = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    gamma: Gamma = None,
    max_new_tokens: MaxNewTokens = None,
    batch: Batch = None,
    set_: SetValue = None,
    quiet: Quiet = False,
) -> None:
    """Find tau_h for a pair: the paper's mean of the top 5 % entropies, or a wanted firing rate.

    The file names the pair (by hash), the sampling settings and the data; `--calibration` refuses
    it where they differ.
    """
    from easd.cli.commands.calibrate import Calibration, calibration_config
    from easd.diagnose.calibration import SOURCES
    from easd.errors import ConfigError
    from easd.evaluate.config import read_study

    if source not in SOURCES:
        raise ConfigError(f"source = {source!r} is not known; choose one of {', '.join(SOURCES)}")
    gate = {"tau_o": tau_o, "top_n": top_n, "entropy_of": entropy_of}
    values = read_study(config, _values(locals()))
    Calibration(
        config=calibration_config(values, gate),
        out=out,
        run_folder=run,
        source=source,  # type: ignore[arg-type]
        rate=rate,
        quiet=quiet,
    ).run()


@app.command()
def diagnose(
    *,
    task: Annotated[
        str,
        Option(
            "--task",
            help="A task with written solutions, or the first items of one as name:count; or "
            "`file` with --data.",
            metavar="NAME[:COUNT]",
            rich_help_panel=_GRID,
        ),
    ],
    data: Data = None,
    pair: Pair = None,
    target: Target = None,
    draft: Draft = None,
    dtype: Dtype = None,
    int8_draft: Int8Draft = None,
    device: Device = None,
    tau_h: TauH = None,
    tau_o: TauO = 0.8,
    rate: Annotated[
        list[float] | None,
        Option(
            help="Also judge the threshold at which the gate opens at this share of positions; may "
            "be repeated. Without --tau-h, the first one's is what --out keeps.",
            show_default="0.02 0.005 0.08",
            rich_help_panel=_GRID,
        ),
    ] = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    set_: SetValue = None,
    out: Annotated[
        Path | None,
        Option(
            "--out",
            help="Write thresholds and the fitted pool here, for --calibration.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    positions: Annotated[
        Path | None,
        Option(
            "--positions",
            help="Write the table of positions here, as Parquet.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, Option("--json", help="Print everything as JSON.", rich_help_panel=_OUTPUT)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Will EASD help on this pair, or another rule? Says so from reference text, without decoding.

    Both models read written solutions once. What every rule's law does to the right token where the
    gate is open is then known exactly.
    """
    from easd.cli.commands.diagnose import Diagnose
    from easd.config import parse_rule
    from easd.evaluate.config import load_study

    values = _values({**locals(), "task": [task]})
    rule: Any = parse_rule({"name": "easd", "tau_o": tau_o, **({"tau_h": tau_h} if tau_h else {})})
    rates = rate or [0.02, 0.005, 0.08]
    Diagnose(
        config=load_study(None, values),
        tau_h=rule.tau_h,
        tau_o=rule.tau_o,
        rates=sorted(rates),
        kept=None if tau_h else rates[0],
        out=out,
        positions=positions,
        as_json=as_json,
        quiet=quiet,
    ).run()


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `easd eval` wrote.")],
    out: Annotated[
        Path | None,
        Option("--out", help="Folder of the report.", show_default="report in the first run"),
    ] = None,
    baseline: Annotated[
        str | None,
        Option(
            "--baseline", help="The system the others are compared with.", show_default="target"
        ),
    ] = None,
    margin: Annotated[
        float,
        Option(help="Accuracies this close, in points, count as no difference worth having."),
    ] = 1.0,
) -> None:
    """Write what runs show: one HTML page, the same as Markdown, and every table."""
    from easd.report import write_report
    from easd.runs import open_run

    folder = out or runs[0] / "report"
    page = write_report(
        [open_run(run, "evaluation") for run in runs],
        folder,
        baseline=baseline,
        margin=margin / 100,
    )
    typer.echo(f"written to {page}", err=True)


@app.command()
def power(
    runs: Annotated[list[Path], typer.Argument(help="Folders of a pilot run.")],
    *,
    system: Annotated[str, Option(help="The system in question, as named in the run.")] = "easd",
    baseline: Annotated[str, Option(help="What it is compared with.")] = "target",
    difference: Annotated[
        float | None,
        Option(help="A difference in points: how many problems does it take to see it?"),
    ] = None,
    problems: Annotated[
        int | None, Option(help="A number of problems: what difference can they show?")
    ] = None,
    seeds: Annotated[int, Option(help="Texts a problem.")] = 1,
    chance: Annotated[float, Option(help="The wanted probability of seeing it.")] = 0.8,
) -> None:
    """How many problems and seeds does it take? From the variance of a pilot run of the pair."""
    from easd.cli.commands.power import show_power

    show_power(runs, system, baseline, difference, problems, seeds, chance)


@app.command()
def tasks() -> None:
    """List the tasks, where they come from, and how their answers are graded."""
    from rich.console import Console
    from rich.table import Table

    from easd.tasks import TASKS

    table = Table("task", "what it is", "source", "licence", "graded by")
    for name, info in TASKS.items():
        where = info.hub or ("generated" if info.kind == "lab" else "your file")
        table.add_row(name, info.summary, where, info.licence, info.kind)
    Console().print(table)


def _evaluate(
    config: Path | None,
    values: Mapping[str, Any],
    out: Path,
    calibration: Path | None,
    force: bool,
    allow_code_execution: bool,
    quiet: bool,
    then: Callable[[], list[Any]] | None = None,
) -> None:
    """Runs a grid, and after it the same one with the systems that `then` returns."""
    from easd.cli.commands.evaluate import Study
    from easd.diagnose.calibration_file import read_calibration
    from easd.evaluate.config import StudyConfig, read_study

    artefact = read_calibration(calibration) if calibration else None
    fill = artefact.fill if artefact else dict

    read = read_study(config, values)

    def grid(values: Mapping[str, Any]) -> StudyConfig:
        return StudyConfig.from_dict(values, fill=fill)

    if "endpoint" in read and then is None:
        from easd.cli.commands.endpoint import EndpointSession
        from easd.evaluate.endpoint.settings import EndpointStudy

        EndpointSession(
            config=EndpointStudy.from_dict(read, fill=fill),
            out=out,
            allow_code_execution=allow_code_execution,
            artefact=artefact,
            force=force,
            quiet=quiet,
        ).run()
        return
    Study(
        config=grid(read),
        then=None if then is None else lambda: grid({**read, "systems": then()}),
        out=out,
        allow_code_execution=allow_code_execution,
        artefact=artefact,
        force=force,
        quiet=quiet,
    ).run()


_SHARED = (*MODEL_SETTINGS, "temperature", "top_p", "gamma")


def _values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among a command's options, by their names in a config file."""
    from easd.config import parse_override

    found = {name: options.get(name) for name in (*_SHARED, "max_new_tokens")}
    found |= {"batch_size": options.get("batch"), "seeds": options.get("seed") or None}
    found = {name: value for name, value in found.items() if value is not None}
    if options.get("task"):
        found["tasks"] = [_task(spec, options.get("data")) for spec in options["task"]]
    found |= dict(parse_override(text) for text in options.get("set_") or ())
    return found


def _task(spec: str, data: Path | None) -> dict[str, Any]:
    name, _, limit = spec.partition(":")
    return {"name": name, "limit": limit or None, "data": None if data is None else str(data)}
