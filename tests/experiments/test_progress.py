import time

from experiments.lab.progress import Progress


class Stream:
    """Keeps what is written; a terminal or not."""

    def __init__(self, terminal):
        self.text, self.terminal = "", terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self.terminal


def run(stream, monkeypatch, seconds):
    """Three pieces of 10 points; compiling takes 2 s, a piece `seconds`."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    progress = Progress("toy", stream)
    progress.expect(40, "points", done=10)
    with progress.compile():
        clock[0] += 2
    for _ in range(3):
        with progress.work(10):
            clock[0] += seconds
    progress.close()
    return progress


def test_a_terminal_has_one_line_that_is_rewritten(monkeypatch):
    stream = Stream(terminal=True)
    progress = run(stream, monkeypatch, seconds=5)
    shown = [line for line in stream.text.split("\r\x1b[K") if line]
    assert "\n" not in stream.text
    assert shown == [
        "toy: 10/40 points, compiling (compiled 0 in 0:00)",
        "toy: 20/40 points, 2 points/s, 0:10 left (compiled 1 in 0:02)",
        "toy: 30/40 points, 2 points/s, 0:05 left (compiled 1 in 0:02)",
        "toy: 40/40 points, 2 points/s, 0:00 left (compiled 1 in 0:02)",
    ]
    assert (progress.compiling, progress.running) == (2, 15)


def test_elsewhere_there_is_a_line_a_minute(monkeypatch):
    stream = Stream(terminal=False)
    run(stream, monkeypatch, seconds=40)
    assert stream.text.splitlines() == [
        "toy: 30/40 points, 0.25 points/s, 0:40 left (compiled 1 in 0:02)"
    ]


def test_a_control_has_its_own_rate(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    stream = Stream(terminal=True)
    progress = Progress("toy", stream)
    for seconds in (100, 1):
        progress.expect(20, "points")
        with progress.work(10):
            clock[0] += seconds
    assert "10 points/s, 0:01 left" in stream.text
