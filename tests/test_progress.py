"""Progress without a terminal: a line every few seconds, and none for short work."""

from __future__ import annotations

from amplify.progress import EVERY, Lines, progress, tracked


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_every_few_seconds_and_one_at_the_end() -> None:
    said: list[str] = []
    clock = Clock()
    with Lines(100, "answer", 20, "zero_shot", said.append, clock) as bar:
        for _ in range(8):
            clock.now += EVERY / 2
            bar.update(10)
    assert len(said) == 5
    assert said[0] == "zero_shot: 40/100 answers, 5 s, about 15 s left\n"
    assert said[-1] == "zero_shot: 100/100 answers, 20 s\n"


def test_short_work_is_silent(capsys) -> None:  # type: ignore[no-untyped-def]
    with progress(total=3) as bar:
        bar.update(3)
    assert list(tracked([1, 2], shown=False)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_work_of_unknown_length_says_how_much_is_done() -> None:
    said: list[str] = []
    clock = Clock()
    bar = Lines(None, "run", 0, "", said.append, clock)
    clock.now = EVERY
    bar.update(7)
    assert said == ["7 runs, 5 s\n"]
