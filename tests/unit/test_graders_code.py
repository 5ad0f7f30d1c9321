"""Code: what is run, and what it cannot do."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from easd.tasks import Item, sandbox, sandbox_program
from easd.tasks.graders import grade_code
from easd.tasks.programs import extract

pytestmark = pytest.mark.skipif(
    sandbox.missing() is not None, reason=f"no sandbox here: {sandbox.missing()}"
)

TESTS = "assert add(1, 2) == 3\n"
ADD = "def add(a, b):\n    return a + b\n"
REFUSED = "PermissionError: "

# Name, code, start of the error it raises (REFUSED: by the kernel).
ATTACKS = [
    ("forks", "import os\nos.fork()", REFUSED),
    ("fork bomb", "import os\nwhile True: os.fork()", REFUSED),
    ("threads", "import threading\nthreading.Thread(target=print).start()", "RuntimeError"),
    ("program", "import subprocess\nsubprocess.run(['true'])", REFUSED),
    ("becomes another", "import os, sys\nos.execv(sys.executable, ['python'])", REFUSED),
    ("memory at once", "x = bytearray(8 << 30)", "MemoryError"),
    ("memory, slowly", "x = []\nwhile True: x.append(bytearray(1 << 24))", "MemoryError"),
    ("big file", "f = open('a', 'wb')\nwhile True: f.write(bytes(1 << 16))", "OSError: [Errno 27]"),
    ("memory file", "import os\nf = os.memfd_create('x')\nos.truncate(f, 1 << 30)", "OSError"),
    ("beside its folder", "open('../easd-escaped', 'w')", REFUSED),
    ("in /tmp", "open('/tmp/easd-escaped', 'w')", REFUSED),
    ("this file", f"open({__file__!r}, 'a')", REFUSED),
    ("truncates", f"import os\nos.truncate({__file__!r}, 10**6)", REFUSED),
    ("permissions", "import os\nos.chmod('/tmp', 0o777)", REFUSED),
    ("reads the tests", f"open({__file__!r})", REFUSED),
    ("reads users", "open('/etc/passwd')", REFUSED),
    ("reads /proc", "open('/proc/self/environ')", REFUSED),
    ("through a link", "import os\nos.symlink('/etc/passwd', 'link')", REFUSED),
    ("kills its parent", "import os\nos.kill(os.getppid(), 9)", REFUSED),
    ("kills everybody", "import os\nos.kill(-1, 9)", REFUSED),
    ("signals by fcntl", "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())", REFUSED),
    ("others' limits", "import os, resource as r\nr.prlimit(os.getppid(), 7, (1, 1))", REFUSED),
    ("network", "import socket\nsocket.create_connection(('127.0.0.1', 9))", REFUSED),
    ("datagrams", "import socket\nsocket.socket(type=socket.SOCK_DGRAM)", REFUSED),
    ("services", "import socket\nsocket.socket(socket.AF_UNIX)", REFUSED),
    ("root again", "import os\nos.setuid(0)", REFUSED),
    ("asks the user", "input()", "EOFError"),
    ("leaves politely", "import sys\nsys.exit(0)", "SystemExit"),
    ("interrupts", "raise KeyboardInterrupt", "KeyboardInterrupt"),
    ("not Python", "def add(", "SyntaxError"),
    ("null byte", "x = '\0'", "SyntaxError"),
    ("recursion", "def f(): f()\nf()", "RecursionError"),
]
# Name, code, and how the sandbox says it ended.
ENDED = [
    ("leaves at once", "import os\nos._exit(0)", "before its tests did (exit code 0)"),
    ("crashes", "import ctypes\nctypes.string_at(0)", "before its tests did (signal 11)"),
    ("closes everything", "import os\nos.closerange(0, 64)", "before its tests did"),
    ("guesses", "import os\nfor i in range(3, 9):\n  try: os.write(i, b'passed')\n"
     "  except OSError: pass\nos._exit(0)", "before its tests did"),
    ("floods", "import os\nfor i in range(3, 64):\n  try:\n    while 1: os.write(i, b'x' * 999)\n"
     "  except OSError: pass", "before its tests did"),
    ("sleeps", "import time\ntime.sleep(600)", "ran for more than 1.9 s"),
    ("prints", "while True: print('x' * 10**6)", "for more than"),
    ("many files", "i = 0\nwhile True:\n  open(str(i), 'w').close()\n  i += 1", "for more than"),
    ("unmoved", "import signal\nsignal.signal(24, signal.SIG_IGN)\nwhile True: pass",
     "ran for more than 1.9 s"),
    ("slow error", "class E(Exception):\n  def __str__(self): import time; time.sleep(99)\n"
     "raise E", "ran for more than 1.9 s"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process, folder or file of the sandbox outlives a test.

    Its folders are put where other tests that run beside these put none.
    """
    own = tmp_path / "sandboxes"
    own.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(own))
    yield
    assert list(own.iterdir()) == []
    assert running() == []


def running() -> list[int]:
    """Processes that run the inside of the sandbox for this one or for nobody."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if sandbox_program.__file__.encode() in command and parent in (1, os.getpid()):
            found.append(int(folder.name))
    return found


def program(name: str = "add") -> Item:
    data = {"head": "", "tests": TESTS, "entry_point": name}
    return Item(id="item", prompt="?", answers=(ADD,), data=data)


def test_right_and_wrong_programs() -> None:
    assert grade_code(program(), f"Here:\n```python\n{ADD}```\nDone.").correct
    wrong = grade_code(program(), "```python\ndef add(a, b):\n    return a - b\n```")
    assert (wrong.correct, wrong.failure) == (False, None)
    assert not grade_code(program(), "I cannot.").correct
    assert not grade_code(program(), "").correct


def test_what_programs_need_works() -> None:
    code = """
import asyncio, collections, decimal, hashlib, itertools, json, math, random, re, sqlite3, time
from dataclasses import dataclass
from typing import List
import numpy

@dataclass
class Point:
    x: List[int]

async def three():
    return 3

with open("notes.txt", "w") as file:
    file.write("3")
assert open("notes.txt").read() == "3"
assert Point([1]).x == [1]
assert numpy.ones(3).sum() == asyncio.run(three())
assert __name__ != "__main__"
"""
    assert sandbox.run([code]) == sandbox.Outcome(passed=True)


@pytest.mark.parametrize(("code", "error"), [pytest.param(*a[1:], id=a[0]) for a in ATTACKS])
def test_the_kernel_refuses(code: str, error: str) -> None:
    outcome = sandbox.run([code, "x = 1"])
    assert not outcome.passed
    assert outcome.failure is None
    assert str(outcome.error).startswith(error)
    assert not Path("/tmp/easd-escaped").exists()


@pytest.mark.parametrize(("code", "failure"), [pytest.param(*a[1:], id=a[0]) for a in ENDED])
def test_code_that_does_not_reach_its_tests_fails(code: str, failure: str) -> None:
    start = time.perf_counter()
    outcome = sandbox.run([code, "x = 1"], cpu_time=1, timeout=1.9)  # before the kernel's last word
    assert time.perf_counter() - start < 8
    assert not outcome.passed
    assert failure in str(outcome.failure)


def test_processor_time_is_limited_however_busy_the_machine() -> None:
    outcome = sandbox.run(["while True: pass"], cpu_time=1)
    assert outcome.failure == "the code computed for more than 1 s"


def test_a_failed_run_is_a_failed_item() -> None:
    grade = grade_code(program(), "```python\nimport os\ndef add(a, b): os._exit(0)\n```")
    assert not grade.correct
    assert grade.failure == "the code ended before its tests did (exit code 0)"


def test_a_sandbox_that_cannot_be_started_is_a_failed_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    grade = grade_code(program(), ADD)
    assert not grade.correct
    assert "could not be started" in str(grade.failure)


def test_a_sandbox_that_cannot_be_set_up_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MEMORY", 1 << 20)
    outcome = sandbox.run(["x = 1"])
    assert not outcome.passed
    assert outcome.failure


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_the_same_holds_without_root() -> None:
    """The kernel's refusals do not rest on a change of user."""
    script = f"""
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
libc.prctl(8, 1, 0, 0, 0)
os.setgroups([])
os.setresgid(1000, 1000, 1000)
os.setresuid(1000, 1000, 1000)
# Only so that Python is readable wherever it is installed, also for the child.
libc.capset(struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", 4, 4, 4, 0, 0, 0))
libc.prctl(47, 2, 2, 0, 0)
from easd.tasks import sandbox
assert sandbox.run(["x = 1"]).passed
for code in {[code for _, code, error in ATTACKS if error == REFUSED]!r}:
    outcome = sandbox.run([code, "x = 1"])
    assert str(outcome.error).startswith("PermissionError"), (code, outcome)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_code_dies_with_the_run() -> None:
    script = "from easd.tasks import sandbox\nsandbox.run(['import time\\ntime.sleep(60)'])"
    run = subprocess.Popen([sys.executable, "-c", script])

    def children() -> list[str]:
        listed = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        return listed.read_text().split()

    deadline = time.monotonic() + 60
    while not children():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = Path("/proc", children()[0])
    folder = (child / "cwd").readlink()
    time.sleep(1)  # Until it sleeps itself.
    run.send_signal(signal.SIGKILL)
    run.wait()
    while child.exists() and (child / "cmdline").read_bytes():  # Empty once it has ended.
        assert time.monotonic() < deadline
        time.sleep(0.05)
    folder.rmdir()  # Which a run that is killed cannot do.


def test_system_call_numbers_are_those_of_the_headers() -> None:
    headers = {
        "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        "aarch64": Path("/usr/include/asm-generic/unistd.h"),
    }
    checked = 0
    for machine, header in headers.items():
        if not header.exists():
            continue
        lines = [line.split() for line in header.read_text().splitlines() if "__NR" in line]
        known = {}
        for line in lines:
            if len(line) >= 3 and line[0] == "#define" and line[2].isdigit():
                known[line[1].removeprefix("__NR").removeprefix("3264").strip("_")] = int(line[2])
        for name, number in sandbox_program.FORBIDDEN_CALLS[machine].items():
            if name in known:
                assert known[name] == number, (machine, name)
                checked += 1
    if not checked:
        pytest.skip("no kernel headers here")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"```python\n{ADD}```", ADD),
        (f"```\n{ADD}```", ADD),
        (f"``` Python\r\n{ADD}```", ADD),
        (f"```python\n{ADD}", ADD),
        (f"```python\nx = 1\n```\nthen\n```python\n{ADD}```\nlike\n```python\nadd(1, 2)\n```", ADD),
        (f"```python\ndef add(): 1\n```\nbetter\n```py\n{ADD}```", ADD),
        ("```python\ndef other(): 1\n```", "def other(): 1\n"),
        (ADD, ADD),
        ("    return a + b\n", None),
        ("", None),
    ],
)
def test_where_the_code_is(text: str, code: str | None) -> None:
    assert extract(text, "add") == code
