"""How long work shows itself where no terminal is."""

import re
import time

from avsbench_robust_dataset import progress


def work(steps: int, seconds: float, **options) -> None:
    bar = progress.progress_bar(total=steps + 3, initial=3, desc="train", **options)
    for _ in range(steps):
        time.sleep(seconds)
        bar.update()
    bar.close()


def test_one_line_a_minute_with_rate_and_remaining_time(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.2)
    work(20, 0.03)
    text = capsys.readouterr().err
    assert "\r" not in text and text.endswith("\n")
    lines = text.splitlines()
    assert 2 <= len(lines) <= 5  # 0.6 s and the last
    for line in lines:
        assert re.fullmatch(r"train: \d+% \d+/23 \[\d\d:\d\d<\d\d:\d\d, +\d+\.\d+it/s\]", line), line
    assert lines[-1].startswith("train: 100% 23/23")


def test_short_work_says_nothing(capsys):
    work(3, 0)
    work(3, 0, show=False)
    assert capsys.readouterr().err == ""
