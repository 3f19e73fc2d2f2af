"""A harness that kills a command at random moments: `kill_at_random_moments`, `run_command`."""

import random
import signal
import time
from pathlib import Path

import pytest


class Run:
    """How a command ended: `code` (negative: the signal), `output`, `seconds`, `changes` that it made on disk."""

    def __init__(self, code, log, seconds):
        self.code, self.seconds = code, seconds
        self.output = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        changes = Path(f"{log}.changes")
        self.changes = (
            int(changes.read_text(encoding="utf-8") or 0) if changes.exists() else None
        )  # empty: killed while it wrote it


@pytest.fixture
def run_command(fork_run, tmp_path_factory):
    """run_command("module:function", arguments, folder=…, environment={…}, before=Python code, kill_after=seconds |
    kill_before_change=k).

    Each run begins with an empty cache of data sets, unless `environment` names another: so a command changes the
    file system as often in its first run as later.
    """

    def run_command(
        entry,
        arguments,
        *,
        folder=".",
        environment=(),
        before="",
        kill_after=None,
        kill_before_change=None,
        timeout=120,
    ):
        log = tmp_path_factory.mktemp("run") / "log.txt"
        cache = log.with_name("cache")
        cache.mkdir()
        environment = {"HF_DATASETS_CACHE": str(cache), **dict(environment)}
        start = time.perf_counter()
        run = fork_run(
            entry, arguments, log, folder, environment, kill_before_change=kill_before_change, before=before
        )
        [process] = run.processes
        process.join(timeout if kill_after is None else kill_after)
        if process.exitcode is None:
            run.kill()
            assert kill_after is not None, (
                f"{entry} did not end within {timeout} s:\n{log.read_text(encoding='utf-8')[-3000:]}"
            )
        run.wait_for_children()
        return Run(process.exitcode, log, time.perf_counter() - start)

    return run_command


@pytest.fixture
def kill_at_random_moments(run_command):
    """Kills a command at random moments of its run, checks after each, and lets the next run finish the work.

    kill_at_random_moments(entry, arguments_of, check, moments=30): `arguments_of(folder)` gives the command line that
    works in `folder`, `check(folder, finished)` asserts that nothing corrupt can be loaded there and, if `finished`,
    that the result is that of the undisturbed run. Half of the moments are points in time, half are right before a
    change of the file system (where a checkpoint is half written). Every third time the run is killed twice before it
    may finish. Returns how many runs were really cut short.
    """

    def kill_at_random_moments(entry, arguments_of, check, folders, moments=30, seed=0, **options):
        draw = random.Random(seed)
        for name in ("undisturbed", "warm"):  # the first run also fills caches: its time says little of later ones
            folder = folders(name)
            undisturbed = run_command(entry, arguments_of(folder), **options)
            assert undisturbed.code == 0, undisturbed.output[-3000:]
            check(folder, True)
        killed = 0
        for moment in range(moments):
            folder = folders(f"killed_{moment}")
            for _ in range(2 if moment % 3 == 2 else 1):
                if moment % 2:
                    when = {"kill_after": draw.uniform(0.05, 1) * undisturbed.seconds}
                else:
                    when = {"kill_before_change": draw.randrange(undisturbed.changes)}
                run = run_command(entry, arguments_of(folder), **when, **options)
                assert run.code in (-signal.SIGKILL, 0), f"{when}: exit code {run.code}\n{run.output[-3000:]}"
                killed += run.code != 0
                check(folder, False)
            run = run_command(entry, arguments_of(folder), **options)
            assert run.code == 0, f"after {when}: {run.output[-3000:]}"
            check(folder, True)
        return killed

    return kill_at_random_moments
