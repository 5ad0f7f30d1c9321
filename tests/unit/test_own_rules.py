"""A rule in a file of one's own is found everywhere without another file being touched."""

import json
import os
import subprocess
import sys

RULE = '''
from dataclasses import dataclass

from easd.core.rules import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed(Rule):
    """Draws from p and q in equal parts."""

    name = "mixed"

    def law(self, step):
        mixture = (step.target_probs + step.draft_probs) / 2
        return mixture.where(step.has_draft()[..., None], step.target_probs)
'''

ASKED = """
import json, sys
sys.path[:0] = ["tests", "docs"]
import make_cli
from enumeration import check_law, steps
from fastapi.testclient import TestClient
from rule_steps import every_rule
from easd import load_pair
from easd.config import RunConfig, parse_rule
from easd.core.rules import RULES, rule_names, summary_of
from easd.diagnose.reference_pass import judged_rules
from easd.serve.app import App
from easd.serve.serving import Serving

server = TestClient(App(load_pair("lab"), Serving(config=RunConfig())).asgi())
asked = {"prompt": "12 + 3 - 4 + 5 + 6 ?", "speculative": {"rule": "mixed"}, "seed": 1}
with server:
    told = server.get("/easd/rules", headers={"Host": "localhost"}).json()["rules"]
    served = server.post("/easd/decode", json=asked, headers={"Host": "localhost"})
check_law(RULES["mixed"].example(), dict(steps())["alike"])
print(json.dumps({
    "names": "mixed" in rule_names(),
    "summary": summary_of("mixed"),
    "parsed": parse_rule("mixed").name,
    "served": ("mixed" in told, served.status_code),
    "tested": "mixed" in every_rule.args[1],
    "documented": "mixed" in make_cli.page(),
    "diagnosed": any("mixed" in group for group in judged_rules()),
}))
"""


def run(*arguments, folder, code=0):
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "EASD_RULES": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_a_rule_of_fifteen_lines_is_found(tmp_path):
    (tmp_path / "mixed.py").write_text(RULE)
    assert len([line for line in RULE.splitlines() if line.strip()]) <= 15
    found = json.loads(run("-c", ASKED, folder=tmp_path))
    assert found == {
        "names": True,
        "summary": "Draws from p and q in equal parts.",
        "parsed": "mixed",
        "served": [True, 200],
        "tested": True,
        "documented": True,
        "diagnosed": True,
    }
    assert "mixed" in run("-m", "easd", "generate", "--help", folder=tmp_path)
    asked = ("--pair", "lab", "--rule", "mixed", "--max-new-tokens", "8")
    assert run("-m", "easd", "generate", *asked, "12 + 3 - 4 + 5 + 6 ?", folder=tmp_path).strip()


def test_a_file_that_cannot_be_run_is_one_line(tmp_path):
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    said = run("-m", "easd", "generate", "--rule", "easd", folder=tmp_path, code=2)
    assert "EASD_RULES: cannot run" in said
    assert "nothing_of_that_name" in said
    assert "Traceback" not in said
