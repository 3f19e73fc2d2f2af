"""Publishing a model: what arrives on a loopback Hub, and what a user reads when it does not.

The Hub here is `loopback_hub.py`: this proves the client side.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import ViTImageProcessor

from avs_engine.hub import push_checkpoint
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor

CODE = {
    "backbone_avsegformer.py",
    "configuration_avsegformer.py",
    "log_mel.py",
    "loss_avsegformer.py",
    "modeling_avsegformer.py",
    "modeling_vggish.py",
    "pipeline_avsegformer.py",
    "processing_avsegformer.py",
}
CHECKPOINT = {"README.md", "config.json", "model.safetensors", "processor_config.json"}


def results(subset: str = "s4", g_miou: float = 0.75, **settings) -> dict:
    return {
        "subset": subset,
        "split": "test",
        "settings": {"seed": 42, "conditions": ["positive", "silence", "off_screen"]} | settings,
        "versions": {"torch": "2.11.0"},
        "scores": {"miou_positive": 0.8125, "miou_silence": 0.25, "fpr_off_screen": 0.0625, "g_miou": g_miou},
        "intervals": {"g_miou": [0.7, 0.8]},
        "extra_conditions": {"unseen": {"miou": 0.125, "f_score": 0.5, "fpr": 0.03125}},
    }


def published(hub, name: str = "me/x") -> list[list]:
    """The commits after the first, which is empty."""
    return hub.repositories()[f"models/{name}"]["commits"][1:]


def card_of(hub, name: str = "me/x") -> ModelCard:
    return ModelCard(hub.read(name, "README.md").decode())


def scores_on(card: ModelCard) -> dict[tuple[str, str], float]:
    return {(r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results or []}


def test_one_commit_has_weights_processor_code_and_card(client, model, processor):
    info = push_checkpoint(model, "x", processor=processor)
    (commit,) = published(client)
    assert set(commit[2]) == CODE | CHECKPOINT
    assert info.oid == commit[0] and not client.repositories()["models/me/x"]["private"]

    config = json.loads(client.read("me/x", "config.json"))
    assert config["auto_map"] == {
        "AutoConfig": "configuration_avsegformer.AVSegFormerConfig",
        "AutoModel": "modeling_avsegformer.AVSegFormerForSegmentation",
    }
    required = Path(__file__).parents[2].joinpath("setup.cfg").read_text(encoding="utf-8")
    for package, oldest in re.findall(r"`(\w+)` ([\d.]+)", card_of(client).text.split("or newer")[0]):
        assert f"{package} >={oldest}," in required  # what the card says is needed
    card = card_of(client)
    assert card.data.library_name == "transformers" and "audio-visual-segmentation" in card.data.tags
    assert "backbone `test_resnet`" in card.text and 'from_pretrained("me/x"' in card.text
    assert f"{model.num_parameters():,} parameters" in card.text
    for heading in ("## Use", "## Training", "## Robustness", "## Limits", "## Licence", "## Citation"):
        assert heading in card.text
    loaded = AVSegFormerForSegmentation.from_pretrained("me/x")
    assert all(torch.equal(ours, model.state_dict()[name]) for name, ours in loaded.state_dict().items())
    assert AVSegFormerProcessor.from_pretrained("me/x").image_processor.size == processor.image_processor.size


def test_scores_of_several_evaluations_meet_in_one_card(client, model, processor):
    push_checkpoint(model, "x", processor=processor, results=results())
    push_checkpoint(model, "x", processor=processor, results=results("ms3", 0.5))
    push_checkpoint(model, "x", processor=processor, results=results(g_miou=0.625))  # in place of the first
    card = card_of(client)
    scores = scores_on(card)
    assert scores["s4", "g_miou"] == 0.625 and scores["ms3", "g_miou"] == 0.5
    assert scores["s4", "miou_unseen"] == 0.125 and len(scores) == 2 * 7
    assert len(card.data.eval_results) == len(scores)
    assert card.data.model_name == "x"
    names = {result.metric_type: result.metric_name for result in card.data.eval_results}
    assert names["fpr_off_screen"] == "FPR, off-screen sound" and names["miou_unseen"] == "mIoU, unseen"
    assert card.text.count("### s4, test split") == 1 and card.text.count("### ms3, test split") == 1
    assert "| **G**, all negatives | 0.6250 [0.7000, 0.8000] |  |  |" in card.text
    assert "| silence | 0.2500 |  |  |" in card.text
    weights = [entry for entry in client.log() if entry.startswith("PUT /__lfs")]
    assert len(weights) == 1  # the same weights were sent once


def test_scores_of_other_weights_go(client, model, processor):
    push_checkpoint(model, "x", processor=processor, results=results())
    model.model.query_embed.weight.data += 1
    push_checkpoint(model, "x", processor=processor)
    assert scores_on(card_of(client)) == {}


def test_what_somebody_wrote_into_the_card_stays(client, model, processor, tmp_path):
    push_checkpoint(model, "x", processor=processor)
    edited = client.read("me/x", "README.md").decode().replace("## Limits", "## Thanks\n\nTo all.\n\n## Limits")
    HfApi().upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id="me/x")
    push_checkpoint(model, "x", results=results())
    card = card_of(client)
    assert "## Thanks" in card.text and scores_on(card)["s4", "g_miou"] == 0.75


def test_training_run_is_on_the_card(client, model, processor, tmp_path):
    model.save_pretrained(tmp_path / "run")
    processor.save_pretrained(tmp_path / "run")
    state = {
        "settings": {"subset": "s4", "negative_ratio": 0.25, "negative_conditions": {"silence": 1.0}, "augment": None},
        "versions": {"torch": "2.11.0"},
        "data": "ab12",
        "command": "train_accelerate.py --subset s4",
        "step": 40,
        "best": {"g_miou": 0.5, "step": 30},
    }
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps(state))
    push_checkpoint(AVSegFormerForSegmentation.from_pretrained(tmp_path / "run"), "me/x")
    text = card_of(client).text
    assert "`s4`, 40 steps; the weights are those of the best validation G-mIoU (0.5000), after step 30" in text
    assert "train_accelerate.py --subset s4" in text and "| negative_ratio | 0.25 |" in text
    assert "| negative_conditions | silence 1.0 |" in text and "augment" not in text
    assert "Versions: torch 2.11.0. SHA-256 of clips and sounds: `ab12`" in text
    size = json.loads(client.read("me/x", "processor_config.json"))["image_processor"]["size"]
    assert size == {"height": 64, "width": 96}  # the processor of the run came along

    # whatever the settings say, it is text
    state["settings"]["data_dir"] = "a|b\n<script>`c`"
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps(state))
    push_checkpoint(AVSegFormerForSegmentation.from_pretrained(tmp_path / "run"), "me/y")
    assert r"| data_dir | a\|b &lt;script&gt;\`c\` |" in card_of(client, "me/y").text.splitlines()

    # trained on in Python: neither the run's command nor its best validation is true of these weights
    model = AVSegFormerForSegmentation.from_pretrained(tmp_path / "run")
    model.model.query_embed.weight.data += 1
    push_checkpoint(model, "me/x")
    assert "train_accelerate.py" not in card_of(client).text


def test_conversion_is_on_the_card(client, model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "conversion.json").write_text(json.dumps({"file": "S4_pvt.pth", "sha256": "ab12", "image_size": 512}))
    push_checkpoint(AVSegFormerForSegmentation.from_pretrained(tmp_path), "me/x", processor=processor)
    text = card_of(client).text
    assert "Converted from the original checkpoint S4_pvt.pth (SHA-256 ab12) without further training." in text


def test_processor_that_is_there_stays(client, model, processor):
    processor.push_to_hub("me/x")
    push_checkpoint(model, "me/x")
    size = json.loads(client.read("me/x", "processor_config.json"))["image_processor"]["size"]
    assert size == {"height": 64, "width": 96}
    push_checkpoint(model, "me/y")
    size = json.loads(client.read("me/y", "processor_config.json"))["image_processor"]["size"]
    assert size == {"height": 224, "width": 224}


def test_shards_replace_one_file(client, model, processor):
    push_checkpoint(model, "x", processor=processor)
    push_checkpoint(model, "x", processor=processor, max_shard_size="100KB")
    files = published(client)[-1][2]
    assert "model.safetensors" not in files and "model.safetensors.index.json" in files
    assert sum(name.endswith(".safetensors") for name in files) > 2
    loaded = AVSegFormerForSegmentation.from_pretrained("me/x")
    assert all(torch.equal(ours, model.state_dict()[name]) for name, ours in loaded.state_dict().items())


def test_large_file_goes_in_parts(start_hub, client, model, processor, monkeypatch):
    large = start_hub("--chunk_size", "100000")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", large.endpoint)
    large.fail("PUT", r"/__lfs/.*/2", "drop", times=1)  # once: the client itself tries again
    push_checkpoint(model, "x", processor=processor)
    parts = [entry for entry in large.log() if entry.startswith("PUT /__lfs")]
    weights = large.read("me/x", "model.safetensors")
    assert len(parts) == -(-len(weights) // 100_000) + 1 and len(parts) > 3
    assert weights[:8] != bytes(8)


def test_lost_connection_to_the_storage_of_large_files(client, model, processor, monkeypatch):
    """Xet, by which the real Hub takes large files, has errors of its own."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
    client.fail("GET", "/cas", "drop")
    client.fail("POST", "/cas", "drop")
    with pytest.raises(ConnectionError, match=r"me/x was not published: .*Repeat the same call"):
        push_checkpoint(model, "me/x", processor=processor)
    assert published(client) == [] and any("/cas" in entry for entry in client.log())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    push_checkpoint(model, "me/x", processor=processor)
    assert len(published(client)) == 1


def test_private(client, model, processor):
    push_checkpoint(model, "secret", processor=processor, private=True)
    assert client.repositories()["models/me/secret"]["private"]
    push_checkpoint(model, "open", processor=processor)
    with pytest.raises(ValueError, match="me/open exists and is public. Make it private"):
        push_checkpoint(model, "open", processor=processor, results=results(), private=True)
    assert len(published(client, "me/open")) == 1


def test_transformers_own_push_to_hub_carries_the_code(client, model, processor, tmp_path):
    """Model and processor are published by their own `push_to_hub`, or by `save_pretrained`, in two commits."""
    folder = tmp_path / "two-steps"
    processor.save_pretrained(folder, push_to_hub=True, repo_id="me/parts", private=True)
    assert client.repositories()["models/me/parts"]["private"]
    assert "processor_config.json" in published(client, "me/parts")[-1][2]
    model.save_pretrained(folder, push_to_hub=True, commit_message="First")
    processor.push_to_hub("me/two-steps")
    first, second = published(client, "me/two-steps")
    assert first[1] == "First" and set(second[2]) >= CODE | CHECKPOINT - {"README.md"}
    loaded = AVSegFormerForSegmentation.from_pretrained("me/two-steps").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def test_branch_and_pull_request(client, model, processor):
    push_checkpoint(model, "me/x", processor=processor, revision="dev")
    assert published(client) == []
    loaded = AVSegFormerForSegmentation.from_pretrained("me/x", revision="dev").state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())
    processor.push_to_hub("me/x", revision="dev")
    info = push_checkpoint(model, "me/x", processor=processor, create_pr=True)
    assert info.pr_url.endswith("/me/x/discussions/1") and published(client) == []


def test_what_cannot_be_published_is_said_before(client, model, processor):
    with pytest.raises(ValueError, match=r"Expected `results` to be the content .*no subset and no split"):
        push_checkpoint(model, "me/x", processor=processor, results={"scores": {"g_miou": 0.5}})
    with pytest.raises(ValueError, match="Expected `processor` to be an AVSegFormerProcessor to publish it, got ViT"):
        push_checkpoint(model, "me/x", processor=ViTImageProcessor())
    with pytest.raises(ValueError, match="Expected `model` to be an AVSegFormerForSegm.*got AVSegFormerModel"):
        push_checkpoint(model.model, "me/x")
    assert client.repositories() == {}


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/__lfs/"), ("POST", "/commit/"), ("POST", "/preupload/"), ("GET", "/api/whoami-v2")],
)
@pytest.mark.parametrize("how", ["drop", 503])
def test_lost_connection_leaves_nothing_half_and_may_be_repeated(client, model, processor, method, path, how):
    client.fail(method, path, how)
    with pytest.raises(ConnectionError, match="me/x was not published: .*Repeat the same call"):
        push_checkpoint(model, "me/x", processor=processor)
    assert client.repositories().get("models/me/x", {"commits": [0]})["commits"][1:] == []  # nothing, or empty
    client.heal()
    push_checkpoint(model, "me/x", processor=processor)
    (commit,) = published(client)
    assert CHECKPOINT <= set(commit[2])


def test_repeating_changes_nothing(client, model, processor):
    for _ in range(2):
        push_checkpoint(model, "me/x", processor=processor, results=results())
    assert len(published(client)) == 1


def test_tokens(client, model, processor, monkeypatch):
    with pytest.raises(PermissionError, match=r"refused the token for x \(401\).*hf auth login"):
        push_checkpoint(model, "x", processor=processor, token="hf_wrong")
    with pytest.raises(PermissionError, match=r"may not write to other/x \(403\). Name a repository of your own"):
        push_checkpoint(model, "other/x", processor=processor)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="Expected a token to publish x, but there is none"):
        push_checkpoint(model, "x", processor=processor)
    push_checkpoint(model, "x", processor=processor, token="hf_fake")
    assert CHECKPOINT <= set(published(client)[-1][2])


def test_names(client, model):
    with pytest.raises(ValueError, match="Expected the name of a Hub repository, as `user/name`, got 'a/b/c'"):
        push_checkpoint(model, "a/b/c")


def test_offline(client, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        push_checkpoint(model, "me/x")
