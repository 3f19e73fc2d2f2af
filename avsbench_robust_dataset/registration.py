"""Makes `load_dataset("avsbench_robust", …)` find the builder.

`datasets` 5 has no public registry: builders are its own packaged modules, data files on disk or on the Hub. So this
adds an entry to its table of packaged modules, and a guard around the one method that would otherwise glob the working
directory for data files of the dataset. Both are private interfaces; the tests of this file fail when they change.
"""

import functools
from typing import Any

from datasets import packaged_modules
from datasets.data_files import DataFilesDict
from datasets.load import DatasetModule, PackagedDatasetModuleFactory

from .saving import register_portable_writers
from .sources import code_digest

NAME = "avsbench_robust"


def register() -> None:
    """Registers the builder under `NAME`, and what saves its rows; a second call changes nothing."""
    register_portable_writers()
    packaged_modules._PACKAGED_DATASETS_MODULES[NAME] = (f"{__package__}.builder", code_digest())
    original = PackagedDatasetModuleFactory.get_module
    if getattr(original, "_knows_avsbench_robust", False):
        return

    @functools.wraps(original)
    def get_module(self):
        if self.name != NAME:
            return original(self)
        if self.data_files is not None:
            raise ValueError(f"Expected no `data_files` for {NAME!r}: pass the folder of AVSBench as `data_dir`.")
        module_path, code = packaged_modules._PACKAGED_DATASETS_MODULES[NAME]
        # Empty, not absent: `load_dataset_builder` asks packaged modules without data files for some.
        return DatasetModule(module_path, code, {"dataset_name": NAME, "data_files": DataFilesDict()})

    wrapped: Any = get_module
    wrapped._knows_avsbench_robust = True
    PackagedDatasetModuleFactory.get_module = wrapped
