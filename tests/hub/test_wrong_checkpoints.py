"""Folders and Hub ids that hold something else: each error says what, and what to do."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, ViTImageProcessor, Wav2Vec2FeatureExtractor

from modeling_avsegformer import (
    AVSegFormerConfig,
    AVSegFormerForSegmentation,
    AVSegFormerImageProcessor,
    AVSegFormerProcessor,
)


def test_unknown_hub_id(client):
    with pytest.raises(OSError, match="me/nothing is not a local folder and is not a valid model identifier"):
        AVSegFormerForSegmentation.from_pretrained("me/nothing")
    with pytest.raises(
        FileNotFoundError, match=r"AVSegFormer processor.*but me/nothing has none or cannot be reached"
    ):
        AVSegFormerProcessor.from_pretrained("me/nothing")


def test_checkpoint_of_another_model(tmp_path):
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    message = r"Expected a checkpoint of AVSegFormer .*got one of 'bert' \(\['BertModel'\]\). Name another folder"
    with pytest.raises(ValueError, match=message):
        AVSegFormerForSegmentation.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        AVSegFormerConfig.from_pretrained(tmp_path)


def test_missing_and_unexpected_keys(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    for name in [name for name in tensors if "audio_encoder.embeddings" in name]:
        tensors[name.replace("embeddings", "embedding")] = tensors.pop(name)
    save_file(tensors, weights, metadata={"format": "pt"})
    message = "but 12 tensors are missing or unknown, e.g. model.audio_encoder.embedding.*choose another one"
    with pytest.raises(ValueError, match=message):
        AVSegFormerForSegmentation.from_pretrained(tmp_path)

    model.save_pretrained(tmp_path)
    tensors = load_file(weights)
    del tensors["model.query_embed.weight"]
    save_file(tensors | {"epoch": torch.ones(1)}, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="2 tensors are missing or unknown, e.g. epoch, model.query_embed.weight"):
        AVSegFormerForSegmentation.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", [lambda weights: weights[:-100], lambda weights: b"\xff" * 8 + weights[8:]])
def test_damaged_weights(model, tmp_path, damage):
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(
        ValueError, match=f"Expected the weights of an AVSegFormer in {tmp_path}, but a file is damaged"
    ):
        AVSegFormerForSegmentation.from_pretrained(tmp_path)


def test_processor_of_another_model(tmp_path):
    for name, part in (("vit", ViTImageProcessor()), ("wav2vec2", Wav2Vec2FeatureExtractor())):
        part.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=f"Expected the folder .* AVSegFormer processor .*{name} has another"):
            AVSegFormerProcessor.from_pretrained(tmp_path / name)
    message = (
        "`image_processor` to be AVSegFormerImageProcessor, got ViTImageProcessor, which belongs to another model"
    )
    with pytest.raises(ValueError, match=message):
        AVSegFormerProcessor(ViTImageProcessor())
    with pytest.raises(ValueError, match="`feature_extractor` to be VGGishFeatureExtractor, got Wav2Vec2"):
        AVSegFormerProcessor(AVSegFormerImageProcessor(), Wav2Vec2FeatureExtractor())
    parts = {"image_processor_type": "CLIPImageProcessor"}, {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}
    config = {"processor_class": "CLIPProcessor", "image_processor": parts[0], "feature_extractor": parts[1]}
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="got CLIPImageProcessor"):
        AVSegFormerProcessor.from_pretrained(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has none .*AVSegFormerProcessor\(\)` makes the default one"):
        AVSegFormerProcessor.from_pretrained(tmp_path / "empty")
