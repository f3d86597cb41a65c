import io

import pytest

from embedcam.utils import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr(progress, "_shown", False)  # put back after the test
    progress.show()


@pytest.fixture
def hidden(monkeypatch):
    monkeypatch.setattr(progress, "_shown", False)


def test_a_library_prints_nothing(hidden, capsys):
    progress.say("hello")
    assert list(progress.track("abc", "reading", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_elsewhere_than_on_a_terminal_there_is_one_line_at_the_end(shown, capsys):
    assert list(progress.track(range(3), "reading", 10, unit=4)) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("reading: 10 in ")
    assert err.count("\n") == 1


def test_long_work_says_how_far_it_is(shown, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", -1.0)
    list(progress.track(range(3), "reading", 10, unit=4))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["reading: 4 of 10", "reading: 8 of 10", "reading: 10 of 10"]


def test_on_a_terminal_there_is_a_bar(shown, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress.track(range(3), "reading", 10, unit=4)) == [0, 1, 2]
    assert "reading" in terminal.getvalue()
    assert "10/10" in terminal.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_wants_no_escape_codes_gets_lines(shown, monkeypatch, name, value):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress.track(range(3), "reading", 10, unit=4)) == [0, 1, 2]
    assert terminal.getvalue().startswith("reading: 10 in ")
    assert "\x1b" not in terminal.getvalue()


def test_work_that_stops_early_says_nothing_of_an_end(shown, capsys):
    def broken():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(progress.track(broken(), "reading", 2))
    assert capsys.readouterr().err == ""
