"""How many planted faults the tests notice: mutation testing of chosen rooms.

    python experiments/mutants.py stats tasks --count 40

Faults are drawn with a fixed seed and planted one at a time into a copy of the tree, in a temporary
folder. Each then has to make one of its room's tests fail. Survivors are printed with their line:
either a test is missing, or the fault changes nothing (an equivalent mutant), which only a reader
can tell. Sampling, and a list of tests for each room, are what the general tools lack.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("src", "tests", "experiments", "pyproject.toml", "README.md", "docs", "examples")
LEAST_TIMEOUT = 60.0  # seconds

# Sources, and tests in the order in which they are asked: the fastest, then those that notice most.
ROOMS = {
    "core": (
        ["core/*.py", "core/rules/*.py"],
        ["unit/test_rules.py", "unit/test_signals.py", "unit/test_noise.py", "laws", "properties"],
    ),
    "engine": (
        ["engine/*.py", "engine/models/*.py"],
        ["unit/test_packing.py", "unit/test_int8.py", "unit/test_trace.py",
         "end_to_end/test_engine.py", "end_to_end/test_slots.py", "end_to_end/test_sequences.py",
         "end_to_end/test_processors.py", "end_to_end/test_lossless.py"],
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
        ["end_to_end/test_server_limits.py", "end_to_end/test_server.py",
         "end_to_end/test_server_fuzz.py"],
    ),
}  # fmt: skip

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
    """A file with one place changed."""

    path: Path
    line: int
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
    for node in _places(ast.parse(source)):
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
            yield Mutant(path, node.lineno, before, text.splitlines()[0], found)


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
        case ast.Constant(value=float(value)):
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


def run_tests(tree: Path, tests: list[str], timeout: float) -> str:
    """`passed`, `failed` or `timeout`, of a room's tests in the copy."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    data = ROOT.parent / "shared" / "data"
    if data.is_dir():
        environment.setdefault("EASD_DATA", str(data))
    process = subprocess.Popen(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=tree,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return "failed" if process.wait(timeout) else "passed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return "timeout"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rooms", nargs="*", help=", ".join(ROOMS))
    parser.add_argument("--count", type=int, default=30, help="mutants of each room")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    survived = total = 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder)
        for name in COPIED:
            there = ROOT / name
            (shutil.copytree if there.is_dir() else shutil.copy)(there, tree / name)
        for room in options.rooms or ROOMS:
            left, tried = try_room(tree, room, options.count, options.seed)
            survived, total = survived + left, total + tried
    print(f"caught {total - survived} of {total} ({(total - survived) / max(total, 1):.1%})")


def try_room(tree: Path, room: str, count: int, seed: int) -> tuple[int, int]:
    """Plants a room's mutants; how many survived, and of how many."""
    patterns, tests = ROOMS[room]
    paths = [path for pattern in patterns for path in sorted((tree / "src/easd").glob(pattern))]
    every = [mutant for path in paths for mutant in mutants(path)]
    chosen = random.Random(f"{room} {seed}").sample(every, min(count, len(every)))
    begin = time.monotonic()
    if run_tests(tree, tests, 3600) != "passed":
        raise SystemExit(f"{room}: its tests fail without any mutant")
    timeout = max(LEAST_TIMEOUT, 3 * (time.monotonic() - begin))
    print(f"{room}: {len(chosen)} of {len(every)} mutants, tests take {timeout / 3:.0f} s or less")
    survived = 0
    for mutant in chosen:
        original = mutant.path.read_text(encoding="utf-8")
        mutant.path.write_text(mutant.source, encoding="utf-8")
        outcome = run_tests(tree, tests, timeout)
        mutant.path.write_text(original, encoding="utf-8")
        if outcome == "passed":
            survived += 1
            place = f"{mutant.path.relative_to(tree)}:{mutant.line}"
            print(f"  survived {place}\n    - {mutant.before}\n    + {mutant.after}", flush=True)
    print(f"{room}: caught {len(chosen) - survived} of {len(chosen)}", flush=True)
    return survived, len(chosen)


if __name__ == "__main__":
    main()
