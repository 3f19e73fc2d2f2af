"""The commands `avs-train` and `avs-evaluate`. Imports that take seconds, as torch's, come after the arguments."""

import sys
from collections.abc import Sequence

from avsbench_robust_dataset.files import OutputError, printable

from . import evaluation_arguments, training_arguments


def train(argv: Sequence[str] | None = None) -> None:
    """Trains a model; `argv` are the arguments, None reads the command line."""
    args = training_arguments.parse_args(argv)
    from .training import run_training

    run_training(args)


def evaluate(argv: Sequence[str] | None = None) -> None:
    """Scores a model; `argv` are the arguments, None reads the command line."""
    args = evaluation_arguments.parse_args(argv)
    from .evaluation import run_evaluation

    run_evaluation(args)


def _print_error(command: str, error: Exception) -> None:
    for line in "\n".join([f"{command}: error: {error}", *getattr(error, "__notes__", [])]).split("\n"):
        print(printable(line), file=sys.stderr)


def train_cli() -> None:
    """Runs `train` and prints errors that the user can fix without a traceback; the exit code is then 2."""
    try:
        train()
    except (OSError, ValueError, FloatingPointError) as error:
        _print_error("avs-train", error)
        raise SystemExit(2) from None


def evaluate_cli() -> None:
    """Runs `evaluate` and prints errors that the user can fix without a traceback; the exit code is then 2.

    An exception with notes comes from scoring or from the user's module, and keeps its traceback.
    """
    try:
        evaluate()
    except (OSError, ValueError, ModuleNotFoundError) as error:
        notes = getattr(error, "__notes__", [])
        no_such_module = isinstance(error, ModuleNotFoundError) and f"importing {error.name!r} for" in "".join(notes)
        if notes and not no_such_module and not isinstance(error, OutputError):
            raise
        _print_error("avs-evaluate", error)
        raise SystemExit(2) from None
