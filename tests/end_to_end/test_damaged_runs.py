"""Run folders that were damaged: resuming repairs them, or an error names what is wrong."""

import os
import random
import shutil
from collections import Counter

import pytest
from traces import traced

from easd import load_pair
from easd.config import RunConfig
from easd.errors import TraceError
from easd.evaluate.config import StudyConfig
from easd.evaluate.engine import Evaluation
from easd.runs import TABLES, open_run
from easd.speed.bench.run import Bench, Cell
from easd.speed.bench.systems import Load, System

DAMAGES = 1000
GRID = {
    "pair": "lab-a",
    "tasks": ["lab-a:4"],
    "systems": ["target", "easd:tau_h=0.2"],
    "max_new_tokens": 6,
    "chunk": 2,
    "trace": 2,
    "baselines": False,
}
TIMES = ("seconds", "_s")  # Endings of columns that no repetition gives again.


@pytest.fixture(scope="module")
def pair():
    return load_pair("lab-a", device="cpu")


def evaluation(pair, folder, **changes):
    config = StudyConfig.from_dict({**GRID, **changes})
    return Evaluation(config, pair, [task.load() for task in config.tasks], folder)


def bench(pair, folder):
    return Bench(
        pair=pair,
        prompts=[[1, 2, 3]],
        systems=[System("target"), System("speculative", 2)],
        cells=[Cell(1, None)],
        rounds=2,
        load=Load(tokens=3),
        folder=folder,
    )


@pytest.fixture(scope="module")
def runs(pair, tmp_path_factory):
    """Folders of undamaged runs by name, and one of another run with the same part names."""
    root = tmp_path_factory.mktemp("runs")
    evaluation(pair, root / "evaluation").run()
    evaluation(pair, root / "other", temperature=0.5).run()
    shutil.copytree(root / "evaluation", root / "killed")
    begun = evaluation(pair, root / "killed")  # What a kill leaves: no word on how it ended.
    begun._out.run.pop("parts")
    begun._out._save()
    begun._out.release()
    list(bench(pair, root / "bench").run())
    config = RunConfig.from_dict({"pair": "lab-a", "max_new_tokens": 8})
    traced(pair, config, root / "trace", "12+3=")
    return root


def resume(pair, folder):
    """Goes on with a run of any kind; a trace has no way to."""
    if folder.name == "bench":
        list(bench(pair, folder).run())
    elif folder.name != "trace":
        evaluation(pair, folder).run()


def content(folder, *, times):
    """Everything a report can read: rows of all tables, and what run.json says of the grid."""
    run = open_run(folder)
    rows = {}
    for table in TABLES[run.kind]:
        found = getattr(run, table).to_pylist()
        kept = [{n: v for n, v in row.items() if times or not n.endswith(TIMES)} for row in found]
        rows[table] = sorted(map(str, kept))
    parts = ("config", "systems", "tasks", "models", "kind", "run")
    return rows, {name: run.run.get(name) for name in parts}


def is_part_of(found, whole):
    return found[1] == whole[1] and all(
        not Counter(rows) - Counter(whole[0][table]) for table, rows in found[0].items()
    )


def check_named(error, folder, *of):
    assert "\n" not in str(error), of
    assert str(folder) in str(error), of


def damage(folder, other, draw):
    """Damages one file of a folder, and says how."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = [path for path in files if path.suffix == ".parquet"]
    how = draw.choice(["truncate", "empty", "flip", "flip", "copy", "delete", "swap", "foreign"])
    path = draw.choice(files if how in ("truncate", "empty", "flip", "delete") else parts)
    size = path.stat().st_size
    if how in ("truncate", "empty"):
        os.truncate(path, draw.randrange(size) if size and how == "truncate" else 0)
    elif how == "flip" and size:
        whole = bytearray(path.read_bytes())
        whole[draw.randrange(size)] ^= 1 << draw.randrange(8)
        path.write_bytes(whole)
    elif how == "delete":
        path.unlink()
    elif how == "copy":
        onto = draw.choice(
            [*parts, path.with_name("copy.parquet"), path.with_name("again.parquet")]
        )
        onto.write_bytes(path.read_bytes())
    elif how == "swap":
        one, two = draw.sample(files, 2)
        one_has, two_has = one.read_bytes(), two.read_bytes()
        one.write_bytes(two_has)
        two.write_bytes(one_has)
    elif how == "foreign":
        source = draw.choice(sorted(other.rglob("*.parquet")))
        path.write_bytes(source.read_bytes())
    return f"{how} {path.relative_to(folder)}"


def check_damages(pair, runs, tmp_path, count, seed):
    """Damages copies of runs and sees that none gives a wrong number; returns what happened."""
    draw = random.Random(seed)
    kinds = ("evaluation", "evaluation", "killed", "bench", "trace")
    before = {kind: content(runs / kind, times=True) for kind in set(kinds)}
    without_times = {kind: content(runs / kind, times=False) for kind in set(kinds)}
    happened = Counter()
    for number in range(count):
        kind = kinds[number % len(kinds)]
        folder = tmp_path / str(number) / kind
        shutil.copytree(runs / kind, folder)
        done = [damage(folder, runs / "other", draw) for _ in range(draw.choice([1, 1, 2]))]
        try:
            read = content(folder, times=True)
            same = read == before[kind]
            assert same or (kind == "killed" and is_part_of(read, before[kind])), (kind, done)
            outcome = "unharmed" if same else "read in part"
        except TraceError as error:
            check_named(error, folder, kind, done)
            outcome = "named"
        try:
            resume(pair, folder)
            again = content(folder, times=False)
            if kind == "bench":  # Rounds are timed anew.
                assert len(again[0]["timings"]) == len(without_times[kind][0]["timings"]), done
            elif "run.json" in " ".join(done):
                again[1]["run"] = without_times[kind][1]["run"]
                assert again == without_times[kind], (kind, done)
            else:
                assert again == without_times[kind], (kind, done)
            happened[outcome, "repaired"] += 1
        except TraceError as error:
            check_named(error, folder, kind, done)
            happened[outcome, "named again"] += 1
        shutil.rmtree(folder.parent)
    return happened


def test_damages_are_repaired_or_named(pair, runs, tmp_path):
    happened = check_damages(pair, runs, tmp_path, DAMAGES // 25, seed=1)
    assert happened["named", "repaired"] > DAMAGES // 60


@pytest.mark.slow
def test_a_thousand_damages_are_repaired_or_named(pair, runs, tmp_path, record_property):
    happened = check_damages(pair, runs, tmp_path, DAMAGES, seed=2)
    print(dict(happened))
    assert happened["named", "repaired"] > DAMAGES // 3
