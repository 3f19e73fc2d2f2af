"""Sounds are encoded when a step needs them, with the same bits whatever came before."""

import pytest
import torch
from safetensors.torch import load_file

from avs_engine import sounds
from avs_engine.clips import load_splits
from avs_engine.sounds import Sounds
from avsbench_robust_dataset.conditions import CONDITIONS
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor
from train_accelerate import main


@pytest.fixture
def arguments(demo_tree, tiny_model) -> list[str]:
    arguments = ["--subset", "demo", "--data_dir", demo_tree, "--model", tiny_model, "--cpu", "--batch_size", "2"]
    return [
        *arguments,
        "--recipe",
        "paper",
        "--frames_per_clip",
        "2",
        "--logging_steps",
        "1",
        "--validation_every",
        "0",
    ]


def test_bits_do_not_depend_on_what_is_asked_for_first(demo_tree, tiny_model, monkeypatch):
    monkeypatch.setattr(sounds, "SOUND_BATCH", 3)
    splits = load_splits("demo", demo_tree, 42, "train", CONDITIONS)
    encoder = AVSegFormerForSegmentation.from_pretrained(tiny_model).eval().get_audio_embeddings
    processor = AVSegFormerProcessor.from_pretrained(tiny_model)
    whole, later = Sounds(processor, splits, encoder), Sounds(processor, splits, encoder)
    whole.prepare()
    keys = list(whole.features)
    assert not later.features
    for key in reversed(keys):
        assert torch.equal(later[key], whole[key])
    items = [(keys[0], [4, 1]), (keys[7], [0, 0])]
    expected = torch.stack([whole[key][seconds] for key, seconds in items])
    assert torch.equal(later.stacked(items), expected)


def test_a_step_encodes_what_it_hears(arguments, tmp_path, monkeypatch):
    """Two items a step, two sounds at most: with three sounds a batch, at most six of the set pass the encoder."""
    monkeypatch.setattr(sounds, "SOUND_BATCH", 3)
    encoded = []
    encode = AVSegFormerForSegmentation.get_audio_embeddings

    def count(self, input_features):
        encoded.append(len(input_features))
        return encode(self, input_features)

    monkeypatch.setattr(AVSegFormerForSegmentation, "get_audio_embeddings", count)
    main([*arguments, "--max_steps", "1", "--output_dir", str(tmp_path)])
    assert 1 <= len(encoded) <= 2 and sum(encoded) <= 6


@pytest.mark.slow
def test_a_resumed_run_hears_the_audio_encoder_of_its_checkpoint(arguments, tiny_model, tmp_path):
    """Its weights came from a file, which the resumed run does not read."""
    torch.manual_seed(3)
    model = AVSegFormerForSegmentation.from_pretrained(tiny_model)
    for parameter in model.get_audio_encoder().parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(model.get_audio_encoder().state_dict(), tmp_path / "vggish.pth")
    arguments = [*arguments, "--vggish_weights", str(tmp_path / "vggish.pth"), "--checkpointing_steps", "1"]
    main([*arguments, "--max_steps", "2", "--output_dir", str(tmp_path / "whole")])
    main([*arguments, "--max_steps", "1", "--output_dir", str(tmp_path / "resumed")])
    (tmp_path / "vggish.pth").unlink()
    resume = ["--max_steps", "2", "--resume_from_checkpoint", "latest"]
    main([*arguments, *resume, "--output_dir", str(tmp_path / "resumed")])
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
