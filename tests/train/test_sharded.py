"""FSDP and DeepSpeed, as configs/accelerate/ sets them up, train as DDP does: on two CPU processes.

accelerate offers neither on a CPU, so a small script makes it believe in GPUs whose place the CPU takes.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.run
from accelerate.commands.launch import launch_command, launch_command_parser
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
CPUS_FOR_GPUS = """
import sys

import accelerate.accelerator
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType

def on_the_cpu(enabled=False, settings=None):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)

if sys.argv.pop(1) == "fsdp":
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    accelerate.accelerator.get_mixed_precision_context_manager = on_the_cpu
else:
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_CPU)

from avs_engine.commands import train

train()
"""


@pytest.fixture
def arguments(demo_tree, tiny_model):
    """Four steps of two micro-batches; the backbone is frozen in the first epoch of two; gradients are clipped."""
    arguments = ["--subset", "demo", "--data_dir", demo_tree, "--model", tiny_model, "--batch_size", "2"]
    arguments += ["--recipe", "paper"]
    arguments += ["--max_steps", "4", "--gradient_accumulation_steps", "2", "--max_grad_norm", "0.1"]
    arguments += ["--freeze_backbone_epochs", "1", "--weight_decay", "0", "--negative_ratio", "0.3"]
    return [*arguments, "--logging_steps", "1", "--checkpointing_steps", "2", "--keep_checkpoints", "0"]


@pytest.fixture
def launch_config(environment, fork_run, monkeypatch, tmp_path):
    """launch_config(name, precision, *arguments): two processes by a file of configs/accelerate/; code and output.

    `accelerate launch` reads the file; the processes that it would start are forked, in the environment that it gives.
    """
    script = tmp_path / "cpus_for_gpus.py"
    script.write_text(CPUS_FOR_GPUS)

    def launch(name: str, precision: str, *arguments) -> tuple[int, str]:
        command = ["--num_processes", "2", "--config_file", str(ROOT / f"configs/accelerate/{name}.yaml")]
        command += ["--mixed_precision", precision, str(script)]
        given = {}
        with monkeypatch.context() as patch:
            patch.setattr(torch.distributed.run, "run", lambda _: given.update(os.environ))
            launch_command(launch_command_parser().parse_args(command))
        given = {variable: value for variable, value in given.items() if os.environ.get(variable) != value}
        tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # DeepSpeed asks for ninja
        settings = given | environment | {"DS_ACCELERATOR": "cpu", "PATH": tools}
        log = tmp_path / "sharded.txt"
        log.unlink(missing_ok=True)
        run = fork_run(script, [name, *arguments], log, tmp_path, settings, processes=2)
        output, _ = run.communicate(timeout=600)
        return run.returncode, output

    return launch


def losses(run: Path) -> list[float]:
    lines = map(json.loads, (run / "train_log.jsonl").read_text(encoding="utf-8").splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "rel"),
    [
        ("fsdp", "no", 1e-5),
        ("fsdp", "bf16", 2e-3),
        ("deepspeed_zero2", "no", 1e-5),
        ("deepspeed_zero2", "bf16", 0.03),  # it adds up gradients in bfloat16
    ],
)
def test_shared_out_training_is_that_of_ddp(name, precision, rel, arguments, launch, launch_config, tmp_path):
    if name == "deepspeed_zero2":
        pytest.importorskip("deepspeed", reason="pip install deepspeed ninja")
        # It has one count of AdamW's steps, of which those of the frozen backbone would be a part.
        arguments = [*arguments, "--freeze_backbone_epochs", "0"]
    run, ddp = tmp_path / "run", tmp_path / "ddp"
    arguments = [*arguments, "--validation_every", "0"]
    launch("train_accelerate.py", *arguments, "--mixed_precision", precision, "--output_dir", ddp, processes=2)
    code, output = launch_config(name, precision, *arguments, "--output_dir", run)
    assert code == 0 and "in 2 process(es)" in output, output
    assert losses(run) == pytest.approx(losses(ddp), rel=rel)
    weights = load_file(run / "last/model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values() if tensor.is_floating_point())
    if precision == "bf16":
        return

    shutil.rmtree(run / "checkpoints/step_4")
    log, model = (run / "train_log.jsonl").read_bytes(), (run / "last/model.safetensors").read_bytes()
    resume = ["--output_dir", run, "--resume_from_checkpoint", "latest"]
    code, output = launch_config(name, precision, *arguments, *resume)
    assert code == 0 and "step_2: epoch 1, step 2." in output, output
    assert (run / "train_log.jsonl").read_bytes() == log
    assert (run / "last/model.safetensors").read_bytes() == model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [("fsdp", "no", "Expected --validation_every 0 with FSDP"), ("deepspeed_zero2", "fp16", "got fp16")],
)
def test_what_cannot_be_shared_out(name, precision, message, arguments, launch_config, tmp_path):
    if name == "deepspeed_zero2":
        pytest.importorskip("deepspeed", reason="pip install deepspeed ninja")
    code, output = launch_config(name, precision, *arguments, "--output_dir", tmp_path / "run")
    assert code != 0 and message in output
    assert not (tmp_path / "run").exists()
