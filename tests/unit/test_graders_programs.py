"""Programs as models write them: fences, bodies, and code that means to deceive."""

import time

import pytest

from easd.tasks import Item, sandbox
from easd.tasks.graders import grade_code
from easd.tasks.programs import continuation, extract

ADD = "def add(a, b):\n    return a + b\n"
D = 'def add(a, b):\n    """Adds.\n\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b\n'
D2 = '"""\n```\nadd(1, 2)\n```\n"""\ndef add(a, b):\n    return a + b\n'
PROGRAMS = [
    f"{ADD}```\nThis works.",
    f"Here:\n{ADD}```",
    f"```py3\n{ADD}```",
    f"```python3.11\n{ADD}```",
    f'```python title="a.py"\n{ADD}```',
    f"```{{python}}\n{ADD}```",
    f"```{{.python}}\n{ADD}```",
    f"~~~python\n{ADD}~~~",
    f"~~~\n{ADD}~~~\nok",
    f"````python\n{ADD}````",
    "1. Do:\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n2. done",
    "- ```python\n  def add(a, b):\n      return a + b\n  ```",
    "    ```python\n    def add(a, b):\n        return a + b\n    ```",
    "> ```python\n> def add(a, b):\n>     return a + b\n> ```",
    f"Use ```add(1, 2)``` so:\n```python\n{ADD}```",
    f"```add(1, 2)``` is it:\n```python\n{ADD}```",
    f"Call ``` x ``` or:\n\n```python\n{ADD}```\nand ```add```.",
    f"```python\n{D}```\nlike\n```python\nadd(1, 2)\n```",
    f"```python\n{D2}```",
    f"```\n\nHere:\n```python\n{ADD}```",
    f"```python\n{ADD.rstrip()}```",
    f"```Python3\r\n{ADD.replace(chr(10), chr(13) + chr(10))}```",
    f"```python\n{ADD}```This works.\n```python\nadd(1,2)\n```",
    f"<think>```python\ndef add(a, b):\n    return 0\n```</think>```python\n{ADD}```",
    f"Here it is:\n\n{ADD}",
    f"```bash\npip install x\n```\n```python\n{ADD}```\n```text\n3\n```",
    f'```python\n# don\'t\n{ADD}# it\'s """ fine\n```',
    f"```python\nx = '''a\n```\nb'''\n{ADD}```\ntail",
    f"```Python 3\n{ADD}```",
    f"```python:add.py\n{ADD}```",
    f"``` {{.python .numberLines}}\n{ADD}```",
    f"```python\n{ADD}\n```\n\n```\n>>> add(1,2)\n3\n```",
    "\t```python\n\tdef add(a, b):\n\t    return a + b\n\t```",
]
BODIES = [
    "    return a + b\n```\nExplanation",
    "    return a + b\n\n```python\nprint(add(1, 2))\n```",
    "```python\n    return a + b\n```",
    "Sure:\n```python\n    return a + b\n```",
    "    return a + b\n",
    "\n    return a + b\n~~~\n",
    "    return a + b```",
    "```\n    return a + b",
]

HEAD = "def add(a, b):\n    '''Adds.'''\n"


def result(code: str) -> object:
    names: dict[str, object] = {}
    exec(code, names)
    return names["add"](1, 2)  # type: ignore[operator]


@pytest.mark.parametrize("text", PROGRAMS)
def test_the_program_is_found(text: str) -> None:
    code = extract(text.split("</think>")[-1], "add")
    assert code is not None
    assert result(code) == 3


@pytest.mark.parametrize("text", BODIES)
def test_the_body_is_found(text: str) -> None:
    assert extract(text, "add") is None
    assert result(HEAD + continuation(text)) == 3


@pytest.mark.parametrize(
    "text",
    ["```\n" * 40_000, "```python\n'''\n" + "```\n" * 40_000, "`" * 90_000, "    ~~~ x\n" * 20_000],
)
def test_hostile_fences_take_no_time(text: str) -> None:
    start = time.process_time()
    extract(text, "add")
    continuation(text)
    assert time.process_time() - start < 3


WRITES = """import os
for pipe in range(3, 9):
    try:
        os.write(pipe, {!r})
    except OSError:
        pass
os._exit(0)
"""
ALWAYS_EQUAL = "def __eq__(self, other): return True"
# Name, and code that follows a wrong program.
DECEITS = [
    ("nested report", WRITES.format(b"[" * 4000)),
    ("report of objects", WRITES.format(b'{"error": {"a": [1]}, "failure": 5}')),
    ("report of a surrogate", WRITES.format(b'{"failure": "\\ud800"}')),
    ("report of a list", WRITES.format(b"[1]")),
    ("report of bytes", WRITES.format(bytes(range(128, 255)))),
    ("surrogate", "raise ValueError('\\ud800')"),
    ("no message", "class E(Exception):\n  def __str__(self): raise ValueError\nraise E"),
    ("exec", "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: ''"),
    ("equal", f"class A:\n  {ALWAYS_EQUAL}\ndef add(a, b): return A()"),
    ("number", f"class A(int):\n  {ALWAYS_EQUAL}\ndef add(a, b): return A(7)"),
    ("list", f"class A(list):\n  {ALWAYS_EQUAL}\ndef add(a, b): return A()"),
    ("inside", f"class A:\n  {ALWAYS_EQUAL}\ndef add(a, b): return ([A()], {{1: A()}})"),
    ("class", f"class M(type):\n  {ALWAYS_EQUAL}\nclass A(metaclass=M): 0\n"
     "def add(a, b): return A"),
    ("mock", "from unittest.mock import ANY\ndef add(a, b): return ANY"),
    ("builtins", "import builtins\nbuiltins.callable = lambda f: False\n"
     "builtins.isinstance = lambda *a: False\n"
     f"class A:\n  {ALWAYS_EQUAL}\ndef add(a, b): return A()"),
]  # fmt: skip


@pytest.mark.skipif(sandbox.missing() is not None, reason="no sandbox here")
@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in DECEITS])
def test_deceit_is_a_failed_item(code: str) -> None:
    tests = "assert add(1, 2) == 3 or add(1, 2) == ([3], {1: 3})"
    asked = Item(
        id="item", prompt="?", answers=(), data={"head": "", "tests": tests, "entry_point": "add"}
    )
    grade = grade_code(asked, f"```python\ndef add(a, b): return 0\n{code}\n```")
    assert not grade.correct
    assert grade.failure is None or grade.failure.encode()


@pytest.mark.skipif(sandbox.missing() is not None, reason="no sandbox here")
def test_objects_and_recursion_of_an_honest_program() -> None:
    code = (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n  x: int\n"
        "def add(a, b): return P(a).x if b == 0 else add(a, b - 1) + 1\n"
    )
    tests = "assert add(1, 900) == 901\nassert [add(1, 1)] == [2]"
    assert sandbox.run([code, tests], judged="add").passed
    assert not sandbox.run([code, "assert add(1, 1) == 3"], judged="add").passed
    points = f"{code}def two(): return [P(1), P(2)]\n"
    assert sandbox.run([points, "assert [p.x for p in two()] == [1, 2]"], judged="two").passed
