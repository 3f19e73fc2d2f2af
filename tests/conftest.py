"""A home folder of the suite's own; commands without the seconds of a cold start (`fork_run`); a tiny model."""

import atexit
import ctypes
import os
import random
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import chdir, suppress
from pathlib import Path

import psutil
import pytest

TESTS_HOME = "AVS_TESTS_HOME"  # names the folder to the processes that pytest-xdist starts
# What a user may have set, and a library reads before it looks into the home folder.
PREFIXES = ("AVSBENCH_", "HF_", "HUGGING", "TRANSFORMERS_", "XDG_", "TORCH_HOME", "MPLCONFIGDIR", "MS_DEFORM_ATTN_")


def move_home(home: Path) -> None:
    """Makes `home` the home folder of this process and of all that it starts: settings, caches, temporary files."""
    for name in [name for name in os.environ if name.startswith(PREFIXES)]:
        del os.environ[name]
    # A browser that playwright installed is a tool, like a compiler: it stays where it is.
    browsers = Path(os.path.expanduser("~/.cache/ms-playwright"))
    if browsers.is_dir():
        os.environ.setdefault("PLAYWRIGHT_BROWSERS_PATH", str(browsers))
    (home / "tmp").mkdir()
    os.environ |= {TESTS_HOME: str(home), "HOME": str(home), "TMPDIR": str(home / "tmp"), "HF_HUB_OFFLINE": "1"}
    tempfile.tempdir = None  # forget the folder before


def remove_home() -> None:
    shutil.rmtree(os.environ[TESTS_HOME], ignore_errors=True)


# Before a test module imports a library that reads it.
if TESTS_HOME not in os.environ:
    move_home(Path(tempfile.mkdtemp(prefix="avs-tests-")).resolve())
    # Registered this early, it runs after all others: multiprocessing has a folder there to remove.
    atexit.register(remove_home)


def pytest_sessionfinish(exitstatus):
    """Keeps the home folder, where the tests' temporary folders are, if one failed."""
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        atexit.unregister(remove_home)


def pytest_collection_modifyitems(items):
    """What starts commands is slow: the process that they are forked from takes seconds to import its libraries."""
    for item in items:
        if "forked" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
    # Those that wait for a server come first: at the end a second worker would take half of them and start it again.
    items.sort(key=lambda item: "tests/video/test_spaces.py" not in item.nodeid)


@pytest.hookimpl(tryfirst=True)  # before the fixtures, which make models
def pytest_runtest_setup():
    """The same random numbers in each run and in any order: what fails once fails again."""
    random.seed(0)
    for library, seed in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if library in sys.modules:
            getattr(sys.modules[library], seed)(0)


def pytest_report_header():
    return f"home folder: {os.environ[TESTS_HOME]} (removed unless a test fails)"


def living_groups() -> set[int]:
    """The process groups with a process that has not ended."""
    groups = set()
    for process in psutil.process_iter(["status"]):
        if process.info["status"] not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            with suppress(ProcessLookupError):  # it has just ended
                groups.add(os.getpgid(process.pid))
    return groups


class ForkedRun:
    """A running command of one or more processes that write to one log; used as a `subprocess.Popen`."""

    def __init__(self, processes, log: Path):
        self.processes, self.log = processes, log

    @property
    def pid(self) -> int:
        return self.processes[0].pid

    @property
    def returncode(self) -> int | None:
        """None while a process runs; then the first code that is not 0, else 0. A negative one is a signal's."""
        codes = [process.exitcode for process in self.processes]
        return None if None in codes else next(filter(None, codes), 0)

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        """Kills the processes with all that they have started."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:  # ended just now, or has not made its group yet
                process.kill()
            process.join()
        self.wait_for_children()

    def wait_for_children(self, timeout: float = 10) -> None:
        """Waits for what the processes started: killed with them, it may end after them, and it holds their locks."""
        groups = {process.pid for process in self.processes}
        end = time.monotonic() + timeout
        while groups & living_groups() and time.monotonic() < end:
            time.sleep(0.005)

    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """Waits for all processes; gives what they have written."""
        end = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        if self.poll() is None:
            self.kill()
            raise TimeoutError(f"it did not end within {timeout} s:\n{self.output()[-3000:]}")
        return self.output(), None


def as_torchrun(processes: int) -> list[dict[str, str]]:
    """The variables that torchrun gives to each of the processes; none for one."""
    if processes == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [common | rank | {"LOCAL_WORLD_SIZE": str(processes)} for rank in ranks]


@pytest.fixture(scope="session")
def forked():
    """Processes forked from one that has the libraries imported: a start takes milliseconds, not seconds."""
    import multiprocessing.forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forked_libraries"])
    with chdir(Path(__file__).parent):  # where it finds that module
        multiprocessing.forkserver.ensure_running()  # now, in the environment of the session, not of a test
    return context


@pytest.fixture(scope="session")
def fork_run(forked):
    """fork_run(entry, arguments, log, folder, environment, processes=1, **options of `forked_run.py`): a ForkedRun.

    `entry` is "module:function" or the path of a script; in `environment`, None removes a variable.
    """
    script = str(Path(__file__).with_name("forked_run.py"))

    def fork_run(entry, arguments, log, folder, environment=(), processes=1, **options) -> ForkedRun:
        request = {"entry": str(entry), "arguments": [str(argument) for argument in arguments]}
        request |= {"log": str(log), "folder": str(Path(folder).resolve()), **options}
        environment = {"OMP_NUM_THREADS": "1", **dict(environment)}
        requests = [request | {"environment": environment | own} for own in as_torchrun(processes)]
        started = [forked.Process(target=runpy.run_path, args=(script, {"request": each})) for each in requests]
        for process in started:
            process.start()
        return ForkedRun(started, Path(log))

    return fork_run


@pytest.fixture
def unprivileged():
    """During the test, root may write only where another user could."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the low halves, then the high ones
    assert libc.capget(header, before) == 0
    without = type(before)(0, *before[1:3], 0, *before[4:])
    assert libc.capset(header, without) == 0
    yield
    assert libc.capset(header, before) == 0


@pytest.fixture(scope="session")
def write_model(tmp_path_factory):
    """write_model(backbone, size of the frames, changes of the configuration): a `from_pretrained` folder."""
    import torch

    from modeling_avsegformer import (
        AVSegFormerConfig,
        AVSegFormerForSegmentation,
        AVSegFormerImageProcessor,
        AVSegFormerProcessor,
        VGGishConfig,
        VGGishFeatureExtractor,
    )

    def write_model(backbone: str = "test_resnet", size: int = 64, **changes) -> str:
        folder = tmp_path_factory.mktemp("tiny_model")
        torch.manual_seed(0)
        config = AVSegFormerConfig(
            backbone=backbone,
            audio_config=VGGishConfig(conv_channels=[4, 4, 8, 8], fc_size=32),
            hidden_size=32,
            num_attention_heads=4,
            norm_groups=8,
            num_queries=8,
            query_generator_layers=1,
            query_generator_ffn_size=32,
            encoder_layers=1,
            encoder_ffn_size=32,
            decoder_layers=1,
            decoder_ffn_size=32,
            mask_mlp_size=32,
            prediction_channels=[16, 8],
            **changes,
        )
        AVSegFormerForSegmentation(config).save_pretrained(folder)
        image_processor = AVSegFormerImageProcessor(size={"height": size, "width": size})
        AVSegFormerProcessor(image_processor, VGGishFeatureExtractor()).save_pretrained(folder)
        return str(folder)

    return write_model
