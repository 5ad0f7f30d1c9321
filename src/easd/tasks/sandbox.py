"""Runs untrusted Python in a confined process.

The kernel (see `sandbox_program`) does not let the process start or signal another process or
thread, use the network, read files other than Python's, write outside its temporary folder, change
file attributes, or exceed its limits on memory, CPU time, open files and file size. This module
kills it after a timeout and discards its output.

The process reports success by a random number that it reads only after the tests. Code that exits
early therefore does not pass, whatever its exit code. Nor does code that replaces `exec` and
`compile`, or returns objects that are equal to everything.

Two things are not covered. The number of files in the folder is unlimited, so only the timeout
bounds disk use. And a deliberate cheat can still pass without solving the task, since it shares the
interpreter with the tests: it can find the pipe and read the number, change what the tests call
(`abs`, a library's functions), or find the tests' answers in their frames. Read the programs of a
model that may have been trained against this grader.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easd.tasks import sandbox_program

CPU_TIME = 10  # seconds; does not depend on what else the machine does
TIMEOUT = 30.0  # seconds, for code that waits
MEMORY = 1 << 30  # bytes of address space
FILE_SIZE = 1 << 20  # bytes
_REPORT_SIZE = 4096  # bytes
_PROGRAM = str(Path(sandbox_program.__file__))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        passed: All parts ran to their end.
        error: What the code raised, if it did.
        failure: Why the code had to be stopped, or how it ended without a report.
    """

    passed: bool
    error: str | None = None
    failure: str | None = None


def missing() -> str | None:
    """Returns what this system lacks to confine code, if anything."""
    if not sys.platform.startswith("linux"):
        return f"{platform.system()} has none of the needed kernel features"
    if platform.machine() not in sandbox_program.FORBIDDEN_CALLS:
        return f"no system call table for {platform.machine()}"
    if sandbox_program.landlock_version() < 1:
        return "the kernel does not offer Landlock"
    return None


def run(
    parts: Sequence[str],
    *,
    judged: str | None = None,
    cpu_time: int = CPU_TIME,
    timeout: float = TIMEOUT,
) -> Outcome:
    """Runs the parts of a program one after another in one namespace.

    Args:
        parts: Source code; the tests last.
        judged: Name of the function that the tests call. Its results must not be objects with
            comparisons that the program defines.
        cpu_time: Limit on processor time, in seconds.
        timeout: Limit on wall time, in seconds.

    Raises:
        OSError: The process cannot be started.
    """
    nonce = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="easd-", ignore_cleanup_errors=True) as folder:
        request = {
            "parts": list(parts),
            "judged": judged,
            "folder": folder,
            "parent": os.getpid(),
            "cpu_time": cpu_time,
            "memory": MEMORY,
            "file_size": FILE_SIZE,
        }
        report, report_to = os.pipe()
        try:
            process = _start(request, nonce, report_to)
            try:
                message = _listen(process, report, timeout)
            finally:
                process.kill()
                process.wait()
        finally:
            os.close(report)
    if message is None:
        return Outcome(passed=False, failure=f"the code ran for more than {timeout:g} s")
    if process.returncode == -signal.SIGXCPU:
        return Outcome(passed=False, failure=f"the code computed for more than {cpu_time} s")
    if message == nonce.encode():
        return Outcome(passed=True)
    return _reported(message, process.returncode)


_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def _start(request: dict[str, Any], nonce: str, report_to: int) -> subprocess.Popen[bytes]:
    """Starts the process and sends it the request; closes the writing ends of its pipes."""
    nonce_from, nonce_to = os.pipe()
    try:
        os.write(nonce_to, nonce.encode())
        folder = request["folder"]
        process = subprocess.Popen(
            [sys.executable, "-I", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(report_to, nonce_from),
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", **_ONE_THREAD},
            start_new_session=True,
        )
    finally:
        for end in (report_to, nonce_from, nonce_to):
            os.close(end)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        sent = {**request, "report": report_to, "nonce": nonce_from}
        process.stdin.write(json.dumps(sent).encode())
    return process


def _listen(process: subprocess.Popen[bytes], report: int, timeout: float) -> bytes | None:
    """Returns what the process reports before it ends; None if it does not end in time."""
    message = b""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    poll.register(report, select.POLLIN)
    while len(message) <= _REPORT_SIZE:
        if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            return None
        chunk = os.read(report, _REPORT_SIZE)
        if not chunk:
            return message if _ends(process, deadline) else None
        message += chunk
    return message


def _ends(process: subprocess.Popen[bytes], deadline: float) -> bool:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _reported(message: bytes, code: int) -> Outcome:
    """Returns the process's report of its failure, or how it ended without one."""
    try:
        report = json.loads(message)
        error, failure = report.get("error"), report.get("failure")
    except (ValueError, AttributeError, RecursionError):  # The code itself wrote to the pipe.
        error = failure = None
    if error is None and failure is None:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        failure = f"the code ended before its tests did ({how})"
    return Outcome(passed=False, error=_text(error), failure=_text(failure))


def _text(message: object) -> str | None:
    """Converts an untrusted value to short text that can be encoded as UTF-8."""
    return None if message is None else str(message)[:500].encode(errors="replace").decode()
