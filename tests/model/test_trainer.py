"""transformers' `Trainer` trains the model, evaluates it and saves what loads again."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor


class Clips(torch.utils.data.Dataset):
    """Two frames with a bright square each; it is the mask of the clips that are heard, the others' are empty."""

    def __init__(self, number: int):
        generator = torch.Generator().manual_seed(0)
        self.pixel_values = torch.randn(number, 2, 3, 32, 32, generator=generator) / 4
        self.pixel_values[..., 8:24, 8:24] += 2
        self.audio_labels = torch.arange(number) % 2.0
        self.input_features = self.audio_labels[:, None, None, None, None].expand(-1, 2, 1, 96, 64) * 4 - 2
        self.labels = torch.zeros(number, 2, 32, 32)
        self.labels[1::2, :, 8:24, 8:24] = 1

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        names = ("pixel_values", "input_features", "labels", "audio_labels")
        return {name: getattr(self, name)[index] for name in names}


def pixel_accuracy(prediction):
    logits, similarity = prediction.predictions
    assert logits.shape == (5, 2, 32, 32) and similarity.shape == (5, 2)
    masks, audio_labels = prediction.label_ids
    assert audio_labels.tolist() == [0, 1, 0, 1, 0]
    return {"pixel_accuracy": float(np.mean((logits > 0) == (masks > 0)))}


@pytest.mark.slow
def test_trainer(make_config, tmp_path):
    # With other seeds the validation loss still jumps at step 40, by an amount that hangs on a library's rounding.
    torch.manual_seed(2)
    # A frozen encoder of random weights would tell loud from silent all the same; learning makes it quicker.
    model = AVSegFormerForSegmentation(make_config(dropout=0.0, freeze_audio_encoder=False))
    arguments = TrainingArguments(
        output_dir=tmp_path / "run",
        max_steps=40,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=2,  # three batches, the last one smaller
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        logging_steps=10,
        save_steps=20,
        activation_checkpointing=True,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    data = dict(train_dataset=Clips(4), eval_dataset=Clips(5), processing_class=AVSegFormerProcessor())
    trainer = Trainer(model, arguments, compute_metrics=pixel_accuracy, **data)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < 0.4 * losses[0]
    assert after["eval_loss"] < 0.3 * before["eval_loss"]
    assert after["eval_pixel_accuracy"] > 0.95 > before["eval_pixel_accuracy"]  # marking nothing gives 0.9

    trainer.save_model(tmp_path / "saved")
    saved = AutoModel.from_pretrained(tmp_path / "saved")
    assert isinstance(saved, AVSegFormerForSegmentation)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "saved"), AVSegFormerProcessor)
    for name, value in model.state_dict().items():
        assert torch.equal(saved.state_dict()[name], value), name

    # From the checkpoint in the middle on, the same end.
    torch.manual_seed(1)
    again = AVSegFormerForSegmentation(make_config(dropout=0.0, freeze_audio_encoder=False))
    resumed = Trainer(again, arguments, train_dataset=Clips(4))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-20"))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)
