"""What must work where the package is installed: its commands, run as a user runs them."""

import json
import subprocess
import urllib.request
from pathlib import Path

PROBLEM = "28 - 28 + 6 * 25 * 2 ?"


def run(*command, **options):
    """What a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def decode(commands: Path, folder: Path) -> None:
    """`easd generate` finishes a text of a pair that the package brings."""
    arguments = ("generate", "--pair", "lab", "--seed", "3", "--json", PROBLEM)
    output = run(commands / "easd", *arguments, cwd=folder)
    assert json.loads(output)["finish_reason"] == "eos"


def evaluate(commands: Path, folder: Path) -> None:
    """`easd eval` leaves a run in `folder`."""
    run(
        commands / "easd",
        *("eval", "--pair", "lab-a", "--task", "lab-a:20", "--system", "target", "--out", "run"),
        *("--system", "easd:tau_h=0.2", "--system", "rsd", "-q"),
        cwd=folder,
    )


def report(commands: Path, folder: Path) -> None:
    """`easd report` makes a page of that run."""
    run(commands / "easd", "report", "run", cwd=folder)
    assert "easd:tau_h=0.2" in (folder / "run/report/report.html").read_text()


def serve(commands: Path, folder: Path) -> None:
    """`easd serve` answers a request, and ends when it is asked to."""
    arguments = (commands / "easd", "serve", "--pair", "lab", "--port", "0")
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, cwd=folder) as server:
        try:
            said = []
            while "at http://" not in (line := server.stderr.readline()):
                said.append(line)
                assert server.poll() is None, "".join(said)
            url = line.split(" at ")[1].strip()
            body = {"model": "lab-a", "prompt": PROBLEM, "seed": 3}
            request = urllib.request.Request(
                f"{url}/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["choices"][0]["finish_reason"] == "stop"
        finally:
            server.terminate()
    assert server.returncode == 0
