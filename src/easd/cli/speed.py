"""The commands about speed: arguments in, sessions out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from easd.cli.options import MODELS, Device, Draft, Dtype, Int8Draft, Pair, Target, chosen_models

app = typer.Typer()

_LOAD, _SYSTEMS, _OUTPUT = "Load", "Systems", "Output"


@app.command()
def plan(
    *,
    pair: Annotated[
        str | None, Option(help="An embedded pair; see `easd pairs`.", rich_help_panel=MODELS)
    ] = None,
    target: Annotated[
        str | None,
        Option(
            help="The target: a hub id, a folder or a config.json; its weights are not needed.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    draft: Annotated[
        str | None, Option(help="The draft, likewise.", rich_help_panel=MODELS)
    ] = None,
    on: Annotated[
        str,
        Option(
            help="A device, such as h100 or h100:8; a YAML file that describes one; or here, which "
            "measures this machine.",
        ),
    ] = "here",
    price: Annotated[float | None, Option(help="Of one device for an hour.")] = None,
    trace: Annotated[
        Path | None,
        Option(help="A run of the pair: how many draft tokens were kept.", rich_help_panel=_LOAD),
    ] = None,
    acceptance: Annotated[
        float | None,
        Option(
            help="Without a run: the share of draft tokens that are kept.", rich_help_panel=_LOAD
        ),
    ] = None,
    texts: Annotated[
        list[int] | None,
        Option(
            help="Texts at once; may be repeated.",
            show_default="1, 8, 32, 128, 512",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    gamma: Annotated[
        list[int] | None,
        Option(
            help="Draft tokens of a block; may be repeated.",
            show_default="1, 3, 5, 8",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    context: Annotated[
        int, Option(help="Tokens of a text halfway through.", rich_help_panel=_LOAD)
    ] = 1024,
) -> None:
    """Forecast tokens a second and their price on other hardware, and when not to draft."""
    from easd.cli.commands.plan import Plan

    Plan(
        pair=pair,
        target=target,
        draft=draft,
        on=on,
        price=price,
        trace=trace,
        acceptance=acceptance,
        texts=tuple(texts or (1, 8, 32, 128, 512)),
        gammas=tuple(gamma or (1, 3, 5, 8)),
        context=context,
    ).run()


@app.command()
def bench(
    *,
    pair: Pair = None,
    target: Target = None,
    draft: Draft = None,
    dtype: Dtype = None,
    int8_draft: Int8Draft = None,
    device: Device = None,
    threads: Annotated[int | None, Option(help="torch's threads.", rich_help_panel=MODELS)] = None,
    task: Annotated[
        str | None,
        Option(
            help="Whose prompts; see `easd tasks`.",
            show_default="a lab pair's own, else gsm8k",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    data: Annotated[
        Path | None, Option(help="A file with the task's items.", rich_help_panel=_LOAD)
    ] = None,
    batch: Annotated[
        list[int] | None,
        Option(help="Texts at once; may be repeated.", show_default="1", rich_help_panel=_LOAD),
    ] = None,
    context: Annotated[
        list[int] | None,
        Option(
            help="Tokens that prompts are cut or repeated to; may be repeated.",
            show_default="as they are",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        Option(
            help="Tokens of each text.",
            show_default="64, or what the context window leaves",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    texts: Annotated[
        int, Option(help="Texts for each place of the batch.", rich_help_panel=_LOAD)
    ] = 2,
    temperature: Annotated[float, Option(help="0 is greedy.", rich_help_panel=_LOAD)] = 1.0,
    rounds: Annotated[
        int,
        Option(
            help="How often each takes its turn; a finished run can be given more.",
            rich_help_panel=_LOAD,
        ),
    ] = 5,
    system: Annotated[
        list[str] | None,
        Option(
            help="target, assisted, speculative, adaptive, easd, easd-maximal, easd-adaptive or "
            "prompt-lookup; may be repeated.",
            show_default="all",
            rich_help_panel=_SYSTEMS,
        ),
    ] = None,
    gamma: Annotated[
        list[int] | None,
        Option(
            help="Draft tokens of a block; may be repeated.",
            show_default="4",
            rich_help_panel=_SYSTEMS,
        ),
    ] = None,
    tau_h: Annotated[
        float, Option(help="Entropy threshold in nats.", rich_help_panel=_SYSTEMS)
    ] = 1.5,
    clock: Annotated[
        Literal["wall", "cpu"],
        Option(
            help="What ratios are made of: wall time, or processor time, which other processes "
            "disturb less. With cpu use --threads 1: threads that wait for others count.",
            rich_help_panel=_OUTPUT,
        ),
    ] = "wall",
    profile: Annotated[
        bool, Option("--profile", help="Let torch's profiler look, too.", rich_help_panel=_OUTPUT)
    ] = False,
    roofline: Annotated[
        bool,
        Option(
            "--roofline",
            help="Measure the machine and hold the forwards against it.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    out: Annotated[
        Path,
        Option(
            help="Folder of the run; one that was stopped goes on where it was.",
            rich_help_panel=_OUTPUT,
        ),
    ],
) -> None:
    """Time every way to decode, in turn on the same prompts: ratios with intervals."""
    from easd.cli.commands.bench import Benchmark
    from easd.evaluate.config import StudyConfig
    from easd.pairs import lab
    from easd.speed.bench.systems import KINDS

    models = chosen_models(locals())
    batches = tuple(batch or (1,))
    own = lab.ALIASES.get(pair or "", pair)
    task = task or (own if own in lab.RECIPES else "gsm8k")
    items = {"name": task, "limit": max(batches) * texts}
    Benchmark(
        study=StudyConfig.from_dict(
            {
                **models,
                "temperature": temperature,
                "tasks": [{**items, "data": str(data)} if data else items],
            }
        ),
        kinds=tuple(system or KINDS),
        batches=batches,
        contexts=tuple(context or ()),
        gammas=tuple(gamma or (4,)),
        rounds=rounds,
        tokens=tokens,
        texts=texts,
        tau_h=tau_h,
        threads=threads,
        clock=clock,
        out=out,
        profile=profile,
        roofline=roofline,
    ).run()
