"""What end-to-end tests share: the command line in this process."""

import sys

import pytest

from easd import cli


@pytest.fixture
def easd(monkeypatch, capsys):
    """Runs the command line in this process; returns exit code, stdout and stderr."""

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["easd", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert (caught.value.code or 0) == code, err
        return out, err

    return run


@pytest.fixture
def refused(easd):
    """Runs the command line, which must refuse; returns its one line."""

    def run(*arguments):
        out, err = easd(*arguments, code=2)
        assert out == ""
        assert "Traceback" not in err
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return line

    return run
