"""What runs in a process that `fork_run` of conftest.py forked: one command, perhaps cut short by SIGKILL.

Not a test module. It is run through `runpy`, because pytest's importlib mode gives test folders no module name that
another process could import.
"""

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile

# Events of CPython's audit table that change the file system; `open` counts where it is for writing.
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}


def set_environment(changes: dict) -> None:
    """Sets or, where the value is None, removes variables, also those that a library read before the fork."""
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    importlib.import_module("torch").set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tempfile.tempdir = None  # forget the folder before
    if "HF_DATASETS_CACHE" in changes:
        importlib.import_module("datasets").config.HF_DATASETS_CACHE = changes["HF_DATASETS_CACHE"]


def function_of(entry):
    """What `entry`, "module:function" or the path of a script, calls."""
    if not entry.endswith(".py"):
        module, function = entry.split(":")
        return getattr(importlib.import_module(module), function)

    def run_script():
        sys.path[0] = os.path.dirname(entry)  # as Python does
        runpy.run_path(entry, run_name="__main__")

    return run_script


def run(entry, arguments, log, folder, environment, kill_before_change=None, before=""):
    """Calls `function_of(entry)` with `arguments` as the command line; output goes to the file `log`.

    With `kill_before_change=k` the process kills itself right before its k-th change (from 0) of the file system.
    `before` is Python code to run first, for example to limit what the process may do.
    """
    os.setsid()  # one process group with its workers: the harness kills them together, as a power cut does
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    set_environment(environment)
    multiprocessing.set_start_method(None, force=True)  # for its own workers Python's default, not that of the harness
    sys.dont_write_bytecode = True  # only the first run would change these files
    exec(before, {})
    owner, changes = os.getpid(), 0

    def count(event, details):
        nonlocal changes
        writes = event == "open" and isinstance(details[2], int) and details[2] & (os.O_WRONLY | os.O_RDWR)
        if os.getpid() != owner or not (writes or event in CHANGES):
            return
        if changes == kill_before_change:
            os.killpg(0, signal.SIGKILL)
        changes += 1

    sys.argv = [entry.split(":")[0], *arguments]
    main = function_of(entry)
    sys.addaudithook(count)
    try:
        code = main()
    except SystemExit as exit:
        code = exit.code
    of_the_command = changes
    with open(f"{log}.changes", "w", encoding="utf-8") as file:
        file.write(str(of_the_command))
    sys.stdout.flush()
    sys.stderr.flush()
    if isinstance(code, str):
        print(code, file=sys.stderr, flush=True)
        code = 1
    os._exit(code or 0)


run(**globals()["request"])
