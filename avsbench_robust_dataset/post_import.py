"""Runs a function when a library has been imported: registration that costs nothing where the library is not used."""

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder

__all__ = ["when_imported"]


class _Watch(MetaPathFinder):
    """Finds the modules of the libraries and of this package as the other finders do, and counts those half done.

    Functions are called when there are none: they import what may be half done, the library's and ours.
    """

    def __init__(self):
        self.libraries = {__package__}
        self.functions: dict[str, Callable[[], None]] = {}  # module -> what to call
        self.half_done = 0

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] not in self.libraries:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._counting(spec.loader.exec_module)
        return spec

    def _counting(self, execute):
        def exec_module(module):
            self.half_done += 1
            try:
                execute(module)
            finally:
                self.half_done -= 1
            self.call()

        return exec_module

    def call(self) -> None:
        while self.half_done == 0 and (name := next((n for n in self.functions if n in sys.modules), None)):
            self.functions.pop(name)()
        if not self.functions and self in sys.meta_path:
            sys.meta_path.remove(self)


_watch = _Watch()


def when_imported(name: str, function: Callable[[], None]) -> None:
    """Calls `function` once: now if the module `name` is imported, else at the end of the import that brings it."""
    if _watch not in sys.meta_path:
        sys.meta_path.insert(0, _watch)
    _watch.libraries.add(name.partition(".")[0])
    _watch.functions[name] = function
    _watch.call()
