"""What the model learns from: which sound with which masks, how gradients add up, and which model is kept."""

import json

import pytest
import torch
from accelerate import Accelerator

from avs_engine import scoring
from avs_engine.clips import evenly_spaced, load_splits
from avs_engine.epochs import build_clips
from avs_engine.models import build_model
from avs_engine.sounds import Sounds
from avs_engine.step import train_batch
from avs_engine.training import load_data
from avs_engine.training_arguments import parse_args
from modeling_avsegformer import AVSegFormerForSegmentation
from modeling_avsegformer.loss_avsegformer import avsegformer_loss
from train_accelerate import main


@pytest.fixture
def arguments(demo_tree, tiny_model) -> list[str]:
    """Eight clips, two at a time."""
    arguments = ["--subset", "demo", "--data_dir", demo_tree, "--model", tiny_model, "--cpu", "--batch_size", "2"]
    return [*arguments, "--frames_per_clip", "2", "--logging_steps", "1", "--recipe", "paper"]


@pytest.mark.parametrize(
    ("negatives", "validated"),
    [(["silence", "timbre"], ["silence"]), (["timbre"], ["silence", "off_screen"])],
)
def test_the_best_model_is_chosen_by_the_benchmarks_conditions_on_evenly_spaced_clips(
    negatives, validated, arguments, demo_tree, tmp_path
):
    more = ["--negative_conditions", *negatives, "--validation_clips", "2", "--output_dir", str(tmp_path)]
    training, validation, _ = load_data(parse_args([*arguments, *more]), Accelerator(cpu=True))
    assert list(training) == ["positive", *negatives] and list(validation) == ["positive", *validated]
    everything = load_splits("demo", demo_tree, 42, "validation", ["positive"])
    clip_ids = everything["positive"]["clip_id"][:]
    expected = [clip_ids[place] for place in evenly_spaced(len(clip_ids), 2)]
    assert expected != clip_ids[:2]
    assert all(split["clip_id"][:] == expected for split in validation.values())


def test_negative_items_hear_their_own_condition_and_have_empty_masks(arguments, demo_tree, tmp_path):
    negatives = ["silence", "noise", "off_screen"]
    more = ["--negative_ratio", "0.75", "--negative_conditions", *negatives, "--output_dir", str(tmp_path)]
    args = parse_args([*arguments, *more])
    splits = load_splits("demo", demo_tree, 42, "train", ["positive", *negatives])
    network, processor, _ = build_model(args, load_weights=True)
    sounds = Sounds(processor, splits, network.eval().get_audio_embeddings)
    items = build_clips(args, splits, sounds.keys)
    items.frames_per_clip = None
    found = set()
    for index, (condition, clip) in enumerate(items.plan):
        item = items[index]
        heard, own = (torch.tensor(splits[name][clip]["audio"]["array"]) for name in (condition, "positive"))
        features = processor(audio=[heard.numpy()], sampling_rate=16000).input_features
        expected = network.get_audio_embeddings(features)[0].detach()
        torch.testing.assert_close(sounds.stacked([item["sound"]])[0], expected, rtol=1e-4, atol=1e-5)
        assert item["masks"].any() == (condition == "positive") == bool(item["audio_label"])
        assert torch.equal(heard, own) == (condition == "positive")
        found.add(condition)
    assert found == {"positive", *negatives}


def test_an_epoch_ends_with_its_last_clip(arguments, tmp_path):
    more = ["--epochs", "2", "--gradient_accumulation_steps", "3", "--negative_ratio", "0", "--validation_every", "0"]
    main([*arguments, *more, "--output_dir", str(tmp_path)])
    lines = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["epoch"]) for line in lines] == [(1, 0), (2, 0), (3, 1), (4, 1)]


def test_gradients_are_clipped_once_a_step(write_model):
    """Twice the mean of two batches' gradients would be another direction if each were clipped by itself."""
    model = AVSegFormerForSegmentation.from_pretrained(write_model("test_convnext", dropout=0.0)).train()
    draw = torch.Generator().manual_seed(1)
    batches = [
        {
            "pixel_values": torch.randn(1, 2, 3, 64, 64, generator=draw) * scale,
            "audio_embeddings": torch.rand(1, 2, 128, generator=draw),
            "labels": (torch.rand(1, 2, 64, 64, generator=draw) > threshold).long(),
            "audio_labels": torch.tensor([1.0]),
        }
        for scale, threshold in ((0.1, 0.99), (3.0, 0.2))
    ]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for batch in batches:
        (model(**batch, num_masks=torch.tensor(2.0)).loss / 2).backward()
    used = [parameter for parameter in learning if parameter.grad is not None]
    norm = torch.nn.utils.clip_grad_norm_(learning, 0.01)
    assert norm > 0.1, "nothing would be clipped"
    expected = [-parameter.grad for parameter in used]
    before = [parameter.detach().clone() for parameter in used]
    model.zero_grad()

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = accelerator.prepare(torch.optim.SGD(learning, lr=1.0))
    for batch in batches:
        train_batch(accelerator, model, optimizer, batch | {"clips": ["a"]}, 0.01, 0)
    moved = torch.cat([(now.detach() - old).flatten() for now, old in zip(used, before, strict=True)])
    torch.testing.assert_close(moved, torch.cat([step.flatten() for step in expected]), rtol=1e-3, atol=2e-6)
    assert moved.norm() == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize(("scores", "best"), [([0.5, 0.25], 0), ([0.25, 0.5], 1), ([0.5, 0.5], 0)])
def test_the_model_of_the_best_validation_is_kept(scores, best, arguments, tmp_path, monkeypatch):
    left = list(scores)
    monkeypatch.setattr(scoring, "evaluate_model", lambda *_: {"g_miou": left.pop(0)})
    main([*arguments, "--epochs", "2", "--negative_ratio", "0", "--output_dir", str(tmp_path)])
    kept = (tmp_path / "model.safetensors").read_bytes()
    of_epochs = [tmp_path / f"checkpoints/epoch_{epoch}/model.safetensors" for epoch in (1, 2)]
    models = [path.read_bytes() for path in of_epochs]
    assert not left and models[0] != models[1]
    state = json.loads((tmp_path / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["best"] == {"g_miou": scores[best], "epoch": best, "step": 4 * (best + 1)}
    assert (kept == (tmp_path / "last/model.safetensors").read_bytes()) == (best == 1)


@pytest.mark.parametrize("weight", [0.0, 0.25, 3.0])
def test_the_weight_of_the_similarity_loss(weight, arguments, tmp_path):
    """On the command line, in the configuration and in the loss."""
    args = parse_args([*arguments, "--similarity_weight", str(weight), "--output_dir", str(tmp_path)])
    network, _, _ = build_model(args, load_weights=True)
    assert network.config.similarity_weight == weight
    draw = torch.Generator().manual_seed(0)
    logits, features = torch.randn(2, 3, 8, 8, generator=draw), torch.rand(6, 4, 4, 4, generator=draw)
    similarity = torch.rand(2, 3, generator=draw).requires_grad_()
    labels = torch.ones(2, 3, 8, 8)
    loss, parts = avsegformer_loss(logits, features, similarity, labels, torch.tensor([1.0, 0.0]), network.config)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(similarity, torch.tensor([[1.0] * 3, [0.0] * 3]))
    rest = network.config.mask_weight * parts["mask"] + network.config.mix_weight * parts["mix"]
    assert loss.item() == pytest.approx((rest + weight * expected).item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, similarity, retain_graph=True)
    (unweighted,) = torch.autograd.grad(expected, similarity)
    torch.testing.assert_close(gradient, weight * unweighted)
