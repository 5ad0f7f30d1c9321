"""Printing of texts while they grow."""

from types import SimpleNamespace

import pytest

from easd.cli.texts import Stream
from easd.engine.request import Request, Row


class Bytes:
    """A tokenizer whose tokens are bytes, so that characters come in pieces."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("block", [1, 2, 3, 7])
@pytest.mark.parametrize("text", ["naïve 日本語 🙂", "cut 🙂"[:-1] + "\ud83d", "a\nb"])
def test_only_whole_characters_are_printed_and_all_in_the_end(capsys, block, text):
    data = text.encode("utf-8", errors="surrogatepass")
    row = Row.start(Request(prompt=(1,)))
    printed = []
    with Stream(Bytes()) as stream:
        for first in range(0, len(data), block):
            row.ids += data[first : first + block]
            row.finished = "length" if len(row.new_ids) == len(data) else None
            stream.add(SimpleNamespace(rows=[row]))
            printed.append(capsys.readouterr().out)
            if row.finished is None:
                assert not printed[-1].endswith("\ufffd")
    assert "".join(printed) == data.decode("utf-8", errors="replace")
    assert capsys.readouterr().out == "\n"


def test_nothing_printed_ends_no_line(capsys):
    with Stream(Bytes()):
        pass
    assert capsys.readouterr().out == ""
