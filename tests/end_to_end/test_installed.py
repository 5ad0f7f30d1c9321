"""The commands of the environment that the tests run in, which need not be the newest one."""

import sys
from pathlib import Path

import installed

COMMANDS = Path(sys.executable).parent


def test_a_pair_is_decoded(tmp_path):
    installed.decode(COMMANDS, tmp_path)


def test_a_run_is_reported(tmp_path):
    installed.evaluate(COMMANDS, tmp_path)
    installed.report(COMMANDS, tmp_path)


def test_a_request_is_served(tmp_path):
    installed.serve(COMMANDS, tmp_path)
