"""The trainer and the evaluator with a lesson that the project does not have, for `benchmark_recipes.py`.

    python benchmarks/recipe_variants.py gate train --subset demo --output_dir runs/gate
    python benchmarks/recipe_variants.py gate evaluate --model runs/gate --output_dir runs/gate/eval

`gate`: the mask's probability is multiplied by the similarity's, whose cosine gets a learned scale and offset, in
training and in use. The similarity's loss is computed from the scaled one.
`mixtures`: half of the off-screen items hear two sounds of other categories at once, as loud as each other.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from transformers import initialization as init

from avs_engine import commands, epochs, sounds
from avsbench_robust_dataset.conditions import mix
from modeling_avsegformer import modeling_avsegformer as modeling

FIRST_SCALE = 10.0  # of the cosine
MIXED_SHARE = 0.5
BETWEEN = " + "  # the keys of two sounds


def gated(logits: torch.Tensor, similarity: torch.Tensor) -> torch.Tensor:
    """The logits (B, K, H, W) of the product of both probabilities; `similarity` (B, T) are logits, T >= K."""
    gate = similarity[:, : logits.shape[1], None, None].float()
    log_product = F.logsigmoid(logits.float()) + F.logsigmoid(gate)
    return log_product - torch.log(-torch.expm1(log_product.clamp(max=-1e-6)))


class GatedHead(modeling.SimilarityHead):
    """The similarity as a logit: its cosine with a learned scale and offset."""

    def __init__(self, config, image_channels: int):
        super().__init__(config, image_channels)
        self.scale = torch.nn.Linear(1, 1)

    def forward(self, audio_tokens: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        return FIRST_SCALE * self.scale(super().forward(audio_tokens, pooled)[..., None])[..., 0]


def use_gate() -> None:
    model = modeling.AVSegFormerForSegmentation
    init_weights, forward, loss = model._init_weights, model.forward, modeling.avsegformer_loss

    def init_gated(self, module):
        init_weights(self, module)
        if isinstance(module, GatedHead):
            init.ones_(module.scale.weight)
            init.zeros_(module.scale.bias)

    def gated_forward(self, *args, **kwargs):
        result = forward(self, *args, **kwargs)
        result.logits = gated(result.logits, result.similarity)
        return result

    def gated_loss(logits, mask_features, similarity, *args):
        return loss(gated(logits, similarity), mask_features, similarity, *args)

    modeling.SimilarityHead, modeling.avsegformer_loss = GatedHead, gated_loss
    model._init_weights, model.forward = init_gated, gated_forward


def use_mixtures() -> None:
    choose, compute = epochs.TrainingClips._sound, sounds.Sounds.__getitem__

    def choose_two(self, condition: str, visible: list[int], rng: np.random.Generator) -> str:
        key = choose(self, condition, visible, rng)
        if condition == "off_screen" and rng.random() < MIXED_SHARE:
            key += BETWEEN + choose(self, condition, visible, rng)
        return key

    def compute_mixed(self, key: str) -> torch.Tensor:
        if BETWEEN not in key:
            return compute(self, key)
        if key not in self.features:
            places = [self._places[one] for one in key.split(BETWEEN)]
            first, second = (self._audio[condition][index]["audio"] for condition, index in places)
            mixed = mix(first["array"], second["array"], 0.0)
            row = {"array": mixed, "sampling_rate": first["sampling_rate"]}
            features = self.processor(audio=[row], conditions=["off_screen"]).input_features
            with torch.no_grad():
                self.features[key] = self.encoder(features)[0].float()
        return self.features[key]

    epochs.TrainingClips._sound, sounds.Sounds.__getitem__ = choose_two, compute_mixed


VARIANTS = {"gate": use_gate, "mixtures": use_mixtures}
PROGRAMS = {"train": commands.train, "evaluate": commands.evaluate}

if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    PROGRAMS[sys.argv[2]](sys.argv[3:])
