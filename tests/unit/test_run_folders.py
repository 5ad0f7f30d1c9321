"""What a run folder has to be before it is read, and what of it reaches a terminal."""

import csv
import json
import shutil
import sys
from io import StringIO

import pytest
from evaluations import graded
from rich.console import Console

from easd import cli
from easd.errors import TraceError
from easd.inspect.overview import overview
from easd.report import write_report
from easd.runs import RunFolder, describe, open_run
from easd.runs.fit_overlap import overlaps
from easd.runs.seal import seal_json

NASTY = "a\x1b[31m\x9b\u202e\x00[/]b"
SHOWN = "a<U+001B>[31m<U+009B><U+202E><U+0000>[/]b"


def write(folder, systems=("target", "easd"), **changes):
    """An evaluation with one part for each system."""
    made = graded({name: [True, False] for name in systems}).run()
    tables = {"samples": made.samples, "chunks": made.chunks}
    described = {name: made.run[name] for name in ("systems", "tasks", "models")}
    out = RunFolder(folder, "evaluation")
    out.begin(describe("evaluation", made.run["config"], **described, **changes))
    out.write("sums", {"items": made.items})
    for number, system in enumerate(systems):
        kept = {n: t.filter([str(s) == system for s in t["system"]]) for n, t in tables.items()}
        out.write(f"part-{number}", kept)
    with out:
        pass
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "run")


@pytest.mark.parametrize("table", ["samples", "chunks"])
@pytest.mark.parametrize(
    ("source", "target"),
    [("part-0", "part-0 (copy)"), ("part-0", "part-1")],
    ids=["copied", "copied over another"],
)
def test_a_part_that_stands_where_it_was_not_written_is_named(folder, table, source, target):
    shutil.copy(folder / table / f"{source}.parquet", folder / table / f"{target}.parquet")
    with pytest.raises(TraceError, match=rf"{table}/part-.*was written elsewhere.*easd eval"):
        open_run(folder)


@pytest.mark.parametrize("part", ["samples/part-1", "chunks/part-1", "items/sums"])
def test_a_part_that_is_gone_is_named(folder, part):
    (folder / f"{part}.parquet").unlink()
    with pytest.raises(TraceError, match=rf"{part}.parquet' is missing.*easd eval"):
        open_run(folder)


def test_a_chunk_over_samples_is_named(folder):
    shutil.copy(folder / "chunks/part-0.parquet", folder / "samples/part-0.parquet")
    with pytest.raises(TraceError, match=r"samples/part-0.*was written elsewhere"):
        open_run(folder)


def test_texts_that_are_there_twice_or_of_no_system_are_named(tmp_path):
    out = RunFolder(write(tmp_path / "twice"), "evaluation")
    samples = open_run(out.folder).samples
    out.write("again", {"samples": samples.slice(0, 1)})
    with pytest.raises(TraceError, match=r"a text twice \(system target, task sums, seed 0"):
        open_run(out.folder)
    out.release()
    folder = write(tmp_path / "stranger")
    run = json.loads((folder / "run.json").read_text())
    sealed = seal_json({**run, "systems": run["systems"][:1]})
    (folder / "run.json").write_text(json.dumps(sealed))
    with pytest.raises(TraceError, match="texts of the system 'easd'"):
        open_run(folder)


def run_json_with(folder, change):
    path = folder / "run.json"
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: "[" * 100_000, "nested too deeply"),
        (lambda text: text.replace('"gamma": 4', '"gamma": 5'), "changed by hand"),
        (lambda text: text.replace('"systems"', '"sistems"'), "changed by hand"),
        (lambda text: text[:-40], "is damaged"),
        (lambda text: "", "is damaged"),
        (lambda text: "3", "does not describe a run"),
        (lambda text: '{"format": "\\u001b[31m"}', r"format '\x1b[31m'"),
        (lambda text: '{"format": ' + "9" * 5000 + "}", "damaged"),
    ],
)
def test_a_run_json_that_is_not_what_was_written_costs_one_line(
    folder, change, says, capsys, monkeypatch
):
    run_json_with(folder, change)
    for command in ("inspect", "report"):
        monkeypatch.setattr(sys, "argv", ["easd", command, str(folder)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr().err
        assert ended.value.code == 2
        assert says in printed
        assert printed.count("\n") == 1
        assert len(printed) < 500


def test_unseen_characters_reach_neither_terminal_nor_spreadsheet(tmp_path):
    formula = '=HYPERLINK("http://example.org")'
    folder = write(tmp_path / "run", ("target", f"easd {NASTY}", formula), error=NASTY)
    run = open_run(folder)
    printed = StringIO()
    overview(run, Console(file=printed, width=200, force_terminal=True, color_system=None))
    assert printed.getvalue().count(SHOWN) == 2
    assert not set("\x1b\x9b\u202e\x00") & set(printed.getvalue())
    write_report([run], tmp_path / "report")
    for path in (tmp_path / "report/tables").glob("*.csv"):
        for row in csv.reader(StringIO(path.read_text(encoding="utf-8"), newline="")):
            for cell in row:
                number = cell[:1] == "-" and cell[1:2].isdigit()
                assert number or cell[:1] not in ("=", "+", "-", "@"), (path, cell)
                assert not set("\x1b\x9b\u202e\x00") & set(cell)


def test_a_folder_whose_name_is_not_utf8_is_written_and_shown(tmp_path, monkeypatch):
    folder = write(tmp_path / "run\udcff", error="half \ud83d")
    assert open_run(folder).run["error"] == "half \ud83d"
    printed = Console(file=StringIO(), width=100)
    overview(open_run(folder), printed)
    assert "half <U+D83D>" in printed.file.getvalue()


def test_a_report_says_which_items_a_calibration_was_fitted_on(tmp_path):
    fitted = [{"kind": "diagnosis", "data": [], "overlap": {"sums": 2}}]
    run = open_run(write(tmp_path / "run", fitted=fitted))
    (line,) = overlaps(run.run)
    assert line.startswith("the diagnosis was fitted on 2 of the 2 items of sums")
    write_report([run], tmp_path / "report")
    assert "2 of the 2 items of sums" in (tmp_path / "report/report.html").read_text()
    unknown = {**run.run, "fitted": [{**fitted[0], "overlap": {"sums": None}}]}
    assert "does not say which items" in next(overlaps(unknown))
    apart = {**run.run, "fitted": [{**fitted[0], "overlap": {"sums": 0}}]}
    assert not list(overlaps(apart))
