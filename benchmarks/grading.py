"""Processor time of grading an item: its own answer, and its neighbour's, on each benchmark set.

    EASD_DATA=FOLDER python benchmarks/grading.py [--before ../before] [--items 60] [--rounds 3]

Each round is a process of its own; those of the checkout named by `--before` take turns with this
one's. Processes that graders start are counted, other work on the machine is not.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETS = "math500,olympiadbench,gsm8k,svamp,aime24,limr,mmlu,arc-easy,nq-open,humaneval,mbpp"


def seconds_of_sets(names: list[str], items: int) -> dict[str, float]:
    """Processor seconds of an item by set, half of them given a wrong answer."""
    from easd.tasks import load_task
    from easd.tasks.mathematics import _worker

    found = {}
    for name in names:
        task = load_task(name, allow_code_execution=True)
        chosen = task.items[:: max(1, len(task.items) // items)][:items]
        code = name in ("humaneval", "mbpp")
        said = [item.reference if code else f"\\boxed{{{item.answers[0]}}}" for item in chosen]
        task.grade(chosen[0], "\\boxed{x + 1}")  # Starts what has to be started.
        begin = _spent(_worker)
        for number, item in enumerate(chosen):
            task.grade(item, said[number])
            task.grade(item, said[number - 1])
        found[name] = (_spent(_worker) - begin) / (2 * len(chosen))
    return found


def _spent(worker) -> float:
    """Processor seconds of this process, of those that have ended, and of math-verify's."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() + ended.ru_utime + ended.ru_stime
    if worker._process is not None:
        threads = Path(f"/proc/{worker._process.pid}/task").glob("*/schedstat")
        spent += sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    return spent


def in_checkout(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """The same in a process that imports a checkout's package."""
    command = [sys.executable, __file__, "--once", "--sets", arguments.sets]
    command += ["--items", str(arguments.items)]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src")}
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(out.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--sets", default=SETS)
    parser.add_argument("--items", type=int, default=60, help="items of each set")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help="one round of this process's package")
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(seconds_of_sets(arguments.sets.split(","), arguments.items)))
        return
    folders = [ROOT] if arguments.before is None else [arguments.before, ROOT]
    rounds = [
        [in_checkout(folder, arguments) for folder in folders] for _ in range(arguments.rounds)
    ]
    for name in arguments.sets.split(","):
        medians = [
            statistics.median(one[place][name] for one in rounds) for place in range(len(folders))
        ]
        line = f"{name}: {1000 * medians[-1]:.2f} ms an item"
        if len(folders) == 2:
            line += f", {medians[1] / medians[0]:.2f} of {1000 * medians[0]:.2f} ms before"
        print(line, flush=True)


if __name__ == "__main__":
    main()
