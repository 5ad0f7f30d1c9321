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
sys.path.insert(0, "tests")
from enumeration import check_law, steps
from easd.config import parse_rule
from easd.core.rules import RULES, rule_names, summary_of
from easd.diagnose.reference_pass import judged_rules

check_law(RULES["mixed"].example(), dict(steps())["alike"])
print(json.dumps({
    "names": "mixed" in rule_names(),
    "summary": summary_of("mixed"),
    "parsed": parse_rule("mixed").name,
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
