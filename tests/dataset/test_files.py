import os
import resource
import signal
import subprocess
import sys

import pytest

from avsbench_robust_dataset.files import FolderInUseError, OutputError, only_run_in, write_whole

HOLDER = """
import os, sys, time
from avsbench_robust_dataset.files import only_run_in
with only_run_in(sys.argv[1]):
    child = os.fork()  # as a data loader's worker, which may outlive its parent
    if not child:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def start_holder(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    with only_run_in(tmp_path / "out"):
        with pytest.raises(FolderInUseError, match=rf"process {os.getpid()} on .*another folder.*out") as refused:
            with only_run_in(tmp_path / "out"):
                pass
        assert isinstance(refused.value, OSError)
        with only_run_in(tmp_path / "other"):
            pass
    with only_run_in(tmp_path / "out"):  # free again
        pass


def test_another_process_is_refused_until_the_holder_is_killed(tmp_path):
    holder, child = start_holder(tmp_path)
    try:
        with pytest.raises(FolderInUseError, match=f"process {holder.pid} on"):
            with only_run_in(tmp_path):
                pass
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives, and does not hold the folder
        with only_run_in(tmp_path):
            pass
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


def test_the_folder_is_free_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), only_run_in(tmp_path / "out"):
        raise RuntimeError
    assert not (tmp_path / "out").exists()
    with only_run_in(tmp_path / "out"):
        (tmp_path / "out/results.json").write_text("")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.json"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"a place to write to, but: Not a directory.*file/out"):
        with only_run_in(tmp_path / "file" / "out"):
            pass


def test_a_file_is_written_whole_or_stays(tmp_path):
    path = tmp_path / "results.json"
    write_whole(path, b"old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OutputError, match=r"File too large.*results\.json"):
            write_whole(path, b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    write_whole(path, b"x" * 2000)
    assert path.stat().st_size == 2000


def test_a_name_comes_to_the_disk_after_its_content(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *values, f=function, name=name: (done.append(name), f(*values)))
    write_whole(tmp_path / "results.json", b"content")
    assert done == ["fsync", "replace"] and (tmp_path / "results.json").read_bytes() == b"content"


def test_an_empty_folder_that_was_there_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with only_run_in(tmp_path / name):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_error_of_the_run_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="^no such clip$"), only_run_in(tmp_path / "out"):
        raise FileNotFoundError("no such clip")
