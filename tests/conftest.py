"""A home folder of the suite's own, and what tests of several folders need: a tiny model."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

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


def pytest_report_header():
    return f"home folder: {os.environ[TESTS_HOME]} (removed unless a test fails)"


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
