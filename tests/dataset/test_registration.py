"""Registration rests on private parts of `datasets`. These tests fail loudly when those change."""

import inspect

import datasets
import evaluate
import pytest
from datasets import load_dataset, load_dataset_builder, packaged_modules
from datasets.load import DatasetModule, PackagedDatasetModuleFactory

from avsbench_robust_dataset import AvsbenchRobust, registration
from evaluate_metrics import avs_robust_metric


def test_datasets_still_has_the_parts_that_registration_uses():
    assert datasets.__version__.split(".")[0] == "5", "read registration.py against this release of datasets"
    module, code = packaged_modules._PACKAGED_DATASETS_MODULES["csv"]
    assert module == "datasets.packaged_modules.csv.csv" and isinstance(code, str)
    assert list(inspect.signature(inspect.unwrap(PackagedDatasetModuleFactory.get_module)).parameters) == ["self"]
    assert list(inspect.signature(DatasetModule).parameters)[:3] == ["module_path", "hash", "builder_kwargs"]
    factory = PackagedDatasetModuleFactory("avsbench_robust", data_dir="somewhere")
    assert factory.name == "avsbench_robust" and factory.data_files is None


def test_the_module_names_the_builder_and_no_data_files():
    module = PackagedDatasetModuleFactory("avsbench_robust").get_module()
    assert module.module_path == "avsbench_robust_dataset.builder"
    assert not module.builder_kwargs["data_files"] and module.builder_kwargs["dataset_name"] == "avsbench_robust"


def test_registering_twice_wraps_once():
    wrapped = PackagedDatasetModuleFactory.get_module
    registration.register()
    assert PackagedDatasetModuleFactory.get_module is wrapped


def test_other_builders_load_as_before(tmp_path):
    (tmp_path / "a.csv").write_text("x\n1\n2\n")
    ds = load_dataset("csv", data_files=str(tmp_path / "a.csv"), cache_dir=str(tmp_path / "cache"))
    assert ds["train"]["x"][:] == [1, 2]


def test_the_working_directory_is_not_searched(write_s4, tmp_path, monkeypatch):
    """Without the guard `datasets` would take any file here for the dataset's."""
    write_s4(tmp_path / "tree")
    (tmp_path / "train.csv").write_text("x\n1\n")
    folders = []
    for place in (tmp_path, tmp_path / "tree"):
        monkeypatch.chdir(place)
        builder = load_dataset_builder(
            "avsbench_robust", "s4", data_dir=str(tmp_path / "tree"), cache_dir=str(tmp_path / "cache")
        )
        assert isinstance(builder, AvsbenchRobust)
        assert builder.config.data_files is None
        folders.append(builder.cache_dir)
    assert folders[0] == folders[1]


def test_data_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="as `data_dir`"):
        load_dataset("avsbench_robust", "s4", data_files={"train": "x.csv"})
    with pytest.raises(ValueError, match="as `data_dir`"):
        AvsbenchRobust(config_name="s4", data_files={"train": "x.csv"}, cache_dir=str(tmp_path))


def test_the_metric_s_path_is_of_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metric = evaluate.load(avs_robust_metric(), cache_dir=str(tmp_path))
    assert metric.name == "avs_robust" and "conditions" in metric.features
