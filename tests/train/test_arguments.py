"""The scripts' options: `--help` answers at once and shows defaults."""

import subprocess
import sys

import pytest

from avs_engine import training_arguments
from modeling_avsegformer.configuration_avsegformer import LOSS_TYPES

HELP = """
import sys
from avs_engine.commands import {command}
try:
    {command}(["--help"])
except SystemExit as end:
    assert end.code == 0
print("LOADED", *sorted({{"torch", "transformers", "accelerate", "evaluate"}} & set(sys.modules)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (
            "train",
            ["--epochs EPOCHS default: 30 (s4), 60 (ms3), 10 (demo)", "0.5 (listen), 0.1 (paper)", "(default: 42)"],
        ),
        ("train", ["steps in which the learning rate rises (default: 0)", "(default: listen)"]),
        ("evaluate", ["positive, silence, noise, off_screen", "clips per process (default: 4)", "(default: test)"]),
    ],
)
def test_help_shows_defaults_and_does_not_wait_for_torch(command, shown):
    code = HELP.format(command=command)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert text.endswith("LOADED")
    for words in shown:
        assert words in text


def test_loss_types_are_those_of_the_configuration():
    assert training_arguments.LOSS_TYPES == LOSS_TYPES
