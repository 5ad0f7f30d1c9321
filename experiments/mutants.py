"""How many planted faults the tests notice: mutation testing of chosen rooms.

    python experiments/mutants.py stats tasks --count 40

Faults are drawn with a fixed seed and planted one at a time into a copy of the tree, in a temporary
folder. Each then has to make one of its room's tests fail. Survivors are printed with their line:
either a test is missing, or the fault changes nothing (an equivalent mutant), which only a reader
can tell. Sampling, and a list of tests for each room, are what the general tools lack.

A first run without faults notes which tests call which function, themselves or by a fixture, and
how long each takes. A fault is then shown to the tests that call its function, the shortest first,
until one fails or they have run for `--budget` seconds; one that is only found by a later test
counts as a survivor. Every run is forked from a process that has imported the large libraries.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("src", "tests", "experiments", "pyproject.toml", "README.md", "docs", "examples")
LARGE = ("torch", "transformers.generation.utils", "transformers.models.llama.modeling_llama",
         "scipy.stats", "pyarrow.parquet", "fastapi", "uvicorn", "httpx")  # fmt: skip
IMPORTED_EARLY = "ignore::pytest.PytestAssertRewriteWarning"
LEAST_TIMEOUT = 90.0  # seconds

# Sources, and the tests that are to notice a fault in them. Kernels of a GPU are left out.
ROOMS = {
    "core": (
        ["core/[a-qu-z]*.py", "core/signals.py", "core/step.py", "core/rules/*.py"],
        ["unit/test_rules.py", "unit/test_signals.py", "unit/test_noise.py", "laws", "properties"],
    ),
    "engine": (
        ["engine/*.py", "engine/models/*.py", "core/scope.py"],
        ["unit/test_packing.py", "unit/test_int8.py", "unit/test_trace.py",
         "unit/test_stopping.py", "end_to_end/test_engine.py", "end_to_end/test_slots.py",
         "end_to_end/test_isolation.py", "end_to_end/test_prefill.py",
         "end_to_end/test_processors.py", "end_to_end/test_plain_forward.py",
         "end_to_end/test_vocabularies.py", "end_to_end/test_other_vocabulary.py",
         "end_to_end/test_sequences.py"],
    ),
    "stats": (
        ["stats/*.py"],
        ["unit/test_stats_limits.py", "unit/test_stats.py", "unit/test_stats_simulation.py"],
    ),
    "tasks": (
        ["tasks/graders.py", "tasks/mathematics.py", "tasks/numbers.py", "tasks/programs.py",
         "tasks/task.py", "tasks/load.py", "tasks/sandbox.py", "tasks/sandbox_program.py",
         "diagnose/pool_fit.py"],
        ["unit/test_graders_written.py", "unit/test_graders_programs.py", "unit/test_graders.py",
         "unit/test_tasks.py", "unit/test_tasks_hub.py", "unit/test_diagnosis.py",
         "unit/test_graders_code.py", "unit/test_graders_gold.py"],
    ),
    "scheduler": (
        ["serve/scheduler.py", "serve/serving.py", "serve/limits.py"],
        ["end_to_end/test_scheduler.py", "end_to_end/test_server_limits.py",
         "end_to_end/test_server_refusals.py", "end_to_end/test_server_shutdown.py",
         "end_to_end/test_server.py", "unit/test_cli_docs.py"],
    ),
}  # fmt: skip

# What runs in a process of its own, where no call is noted, and the module that starts it.
STARTED_BY = {"sandbox_program.py": "sandbox.py"}

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "argmax": "argmin", "argmin": "argmax",
    "floor": "ceil", "ceil": "floor", "maximum": "minimum", "minimum": "maximum",
    "logical_and": "logical_or", "logical_or": "logical_and", "amax": "amin", "amin": "amax",
    "cdf": "sf", "sf": "cdf", "append": "remove", "update": "copy",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A file with one place changed, and the line at which the function around it begins."""

    path: Path
    line: int
    function: int | None
    before: str
    after: str
    source: str


def mutants(path: Path) -> Iterator[Mutant]:
    """Every fault that can be planted in a file."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line.encode()))
    encoded = source.encode()
    tree = ast.parse(source)
    functions = [
        (min(part.lineno for part in (node, *node.decorator_list)), node.end_lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for node in _places(tree):
        around = [first for first, last in functions if first < node.lineno <= last]
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        for changed in _changes(node):
            text = ast.unparse(ast.fix_missing_locations(changed))
            if isinstance(node, ast.stmt):  # Bodies keep their indentation.
                text = text.replace("\n", "\n" + " " * node.col_offset)
            elif not isinstance(changed, ast.Constant | ast.Name | ast.Call | ast.Attribute):
                text = f"({text})"
            found = (encoded[:begin] + text.encode() + encoded[end:]).decode()
            before = encoded[begin:end].decode().splitlines()[0]
            yield Mutant(
                path, node.lineno, max(around, default=None), before, text.splitlines()[0], found
            )


def _places(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that do something: no annotation, no docstring, no message, no format."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, ast.JoinedStr):
                continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            if isinstance(node, ast.stmt | ast.expr):
                yield node
            if not isinstance(node, ast.Raise | ast.Import | ast.ImportFrom):
                yield from _places(node)


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """The node with a fault, in every way that this script knows."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[operator]) if type(operator) in COMPARISONS:
            new.ops = [COMPARISONS[type(operator)]()]
            yield new
        case ast.BinOp(op=operator):
            if type(operator) in OPERATORS:
                new.op = OPERATORS[type(operator)]()
                yield new
            if isinstance(operator, ast.Sub | ast.Div | ast.Pow | ast.MatMult):
                swapped = copy.deepcopy(node)
                swapped.left, swapped.right = swapped.right, swapped.left
                yield swapped
        case ast.BoolOp(op=operator):
            new.op = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield new
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.IfExp(test=test):
            new.test = ast.UnaryOp(ast.Not(), test)
            yield new
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Constant(value=float(value)) if value:
            yield ast.Constant(value * 1.5)
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES:
            yield ast.Name(NAMES[name], ast.Load())
        case ast.Attribute(attr=name) if name in NAMES:
            new.attr = NAMES[name]
            yield new
        case ast.AugAssign(op=operator) if type(operator) in OPERATORS:
            new.op = OPERATORS[type(operator)]()
            yield new
            yield ast.Pass()
        case ast.Expr() | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.If(test=test) | ast.While(test=test):
            new.test = ast.UnaryOp(ast.Not(), test)
            yield new


class Calls:
    """Notes which tests call which functions of the package, and how long each test takes."""

    def __init__(self, source: Path) -> None:
        self.source = str(source)
        self.seconds: dict[str, float] = {}
        self.callers: dict[str, set[str]] = defaultdict(set)
        self._test = ""

    def _trace(self, frame, event, argument) -> None:
        if frame.f_code.co_filename.startswith(self.source):
            place = f"{frame.f_code.co_filename}:{frame.f_code.co_firstlineno}"
            self.callers[place].add(self._test)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self._test, begin = item.nodeid, time.monotonic()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]
            self.seconds[item.nodeid] = time.monotonic() - begin

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, request):
        """What a fixture calls is called for every test of its scope."""
        before, self._test = self._test, request.node.nodeid
        try:
            return (yield)
        finally:
            self._test = before

    def save(self, path: Path) -> None:
        callers = {place: sorted(tests) for place, tests in self.callers.items()}
        path.write_text(json.dumps({"seconds": self.seconds, "callers": callers}))


def run_tests(tree: Path, tests: list[str], timeout: float, noted: Path | None = None) -> str:
    """`passed`, `failed` or `timeout`, of tests in the copy, in a process of their own."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            os.chdir(tree)
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(quiet, stream)
            sys.path.insert(0, str(tree / "src"))
            os.environ["PYTHONPATH"] = str(tree / "src")
            sys.dont_write_bytecode = noted is None
            calls = Calls(tree / "src")
            options = ["-q", "-p", "no:cacheprovider", "-W", IMPORTED_EARLY]
            if noted is None:
                options.append("-x")
            code = pytest.main([*options, *tests], plugins=[] if noted is None else [calls])
            if noted is not None:
                calls.save(noted)
        finally:
            os._exit(code)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "failed" if status else "passed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", help=", ".join(ROOMS))
    parser.add_argument("--count", type=int, default=30, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of tests for a mutant")
    options = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    data = ROOT.parent / "shared" / "data"
    if data.is_dir():
        os.environ.setdefault("EASD_DATA", str(data))
    for name in LARGE:
        importlib.import_module(name)
    survived = total = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        for name in COPIED:
            there = ROOT / name
            (shutil.copytree if there.is_dir() else shutil.copy)(there, tree / name)
        for room in options.rooms or ROOMS:
            left, tried = try_room(tree, room, options.count, options.seed, options.budget)
            survived, total = survived + left, total + tried
    print(f"caught {total - survived} of {total} ({(total - survived) / max(total, 1):.1%})")


def try_room(tree: Path, room: str, count: int, seed: int, budget: float) -> tuple[int, int]:
    """Plants a room's mutants; how many survived, and of how many."""
    patterns, tests = ROOMS[room]
    paths = [path for pattern in patterns for path in sorted((tree / "src/easd").glob(pattern))]
    every = [mutant for path in paths for mutant in mutants(path)]
    chosen = random.Random(f"{room} {seed}").sample(every, min(count, len(every)))
    noted = tree / "calls.json"
    if run_tests(tree, [f"tests/{test}" for test in tests], 3600, noted) != "passed":
        raise SystemExit(f"{room}: its tests fail without any mutant")
    calls = json.loads(noted.read_text())
    print(
        f"{room}: {len(chosen)} of {len(every)} mutants, {len(calls['seconds'])} tests", flush=True
    )
    survived = 0
    for mutant in chosen:
        asked = _tests_of(mutant, calls, budget)
        original = mutant.path.read_text(encoding="utf-8")
        mutant.path.write_text(mutant.source, encoding="utf-8")
        timeout = LEAST_TIMEOUT + 3 * budget
        outcome = run_tests(tree, asked, timeout) if asked else "passed"
        mutant.path.write_text(original, encoding="utf-8")
        survived += outcome == "passed"
        if outcome != "failed":
            how = "survived" if outcome == "passed" else "caught by the time limit"
            place = f"{mutant.path.relative_to(tree)}:{mutant.line} ({len(asked)} tests)"
            print(f"  {how} {place}\n    - {mutant.before}\n    + {mutant.after}", flush=True)
    print(f"{room}: caught {len(chosen) - survived} of {len(chosen)}", flush=True)
    return survived, len(chosen)


def _tests_of(mutant: Mutant, calls: dict, budget: float) -> list[str]:
    """The tests that call a mutant's function, or all where it lies in none: shortest first."""
    seconds, callers = calls["seconds"], calls["callers"]
    places = [""]
    if (starter := STARTED_BY.get(mutant.path.name)) is not None:
        every = f"{mutant.path.with_name(starter)}:"
        places = [
            place for file, found in callers.items() if file.startswith(every) for place in found
        ]
    elif mutant.function is not None:
        places = callers.get(f"{mutant.path}:{mutant.function}", [])
    tests = [test for test in seconds if test.startswith(tuple(places))]
    found, spent = [], 0.0
    for test in sorted(tests, key=seconds.__getitem__):
        spent += seconds[test]
        if found and spent > budget:
            break
        found.append(test)
    return found


if __name__ == "__main__":
    main()
