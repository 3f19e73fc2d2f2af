"""How many processes to start, and that none outlives the one that started it."""

import multiprocessing
import os
import signal
import threading


def available_cpus() -> int:
    """Processors that this process may use: fewer than the machine has in a container or a batch job."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """The initializer of a pool: a worker whose parent is killed ends, instead of waiting for work forever."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler is not for workers
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
