"""VGGish, the audio encoder: one second of log-mel spectrogram to 128 numbers.

Paper: https://arxiv.org/abs/1609.09430; weights that fit: `vggish-10086976.pth` of https://github.com/harritaylor/torchvggish
(keys `features.*`, `embeddings.*`), read by `VGGishModel.load_vggish_weights`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_avsegformer import VGGishConfig

CONVOLUTIONS_PER_STAGE = (1, 1, 2, 2)  # VGG configuration "A" without its last stage


@dataclass
class VGGishOutput(ModelOutput):
    """
    embeddings (`Tensor` of shape `(..., embedding_size)`): not negative, the last layer is a ReLU.
    feature_map (`Tensor` of shape `(..., conv_channels[-1], num_frames / 16, num_mel_bins / 16)`): what the
        convolutions give.
    """

    embeddings: Tensor | None = None
    feature_map: Tensor | None = None


class VGGishModel(PreTrainedModel):
    """The VGGish network without its PCA post-processing, as AVSBench uses it."""

    config_class = VGGishConfig
    config: VGGishConfig
    base_model_prefix = "vggish"
    main_input_name = "input_features"
    input_modalities = ("audio",)

    def __init__(self, config: VGGishConfig):
        super().__init__(config)
        layers: list[nn.Module] = []
        channels = 1
        for width, depth in zip(config.conv_channels, CONVOLUTIONS_PER_STAGE, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(channels * (config.num_frames // 16) * (config.num_mel_bins // 16), config.fc_size),
            nn.ReLU(),
            nn.Linear(config.fc_size, config.fc_size),
            nn.ReLU(),
            nn.Linear(config.fc_size, config.embedding_size),
            nn.ReLU(),
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Conv2d | nn.Linear):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)

    @can_return_tuple
    def forward(self, input_features: Tensor) -> VGGishOutput:
        """Describes each second of sound; raises ValueError for another shape.

        Args:
            input_features (`Tensor` of shape `(..., 1, num_frames, num_mel_bins)`): log-mel examples, time before mel.
        """
        expected = (1, self.config.num_frames, self.config.num_mel_bins)
        if tuple(input_features.shape[-3:]) != expected:
            raise ValueError(
                f"Expected `input_features` of shape (..., {', '.join(map(str, expected))}), got "
                f"{tuple(input_features.shape)}."
            )
        leading = input_features.shape[:-3]
        maps = self.features(input_features.reshape(-1, *expected).to(self.features[0].weight.dtype))
        # The published weights expect time, mel, channel in this order.
        embeddings = self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))
        return VGGishOutput(
            embeddings=embeddings.reshape(*leading, -1), feature_map=maps.reshape(*leading, *maps.shape[1:])
        )

    def load_vggish_weights(self, path_or_hub_id: str | Path, filename: str | None = None) -> dict[str, str]:
        """See `encoder_weights.load_vggish_weights`."""
        return encoder_weights().load_vggish_weights(self, path_or_hub_id, filename)


def encoder_weights():
    """The module that reads weights of other projects; a checkpoint does not carry it."""
    try:
        from modeling_avsegformer import encoder_weights
    except ImportError as error:
        raise ImportError(
            "Reading weights of other projects needs this project's package: clone the project and run "
            "`pip install .` in it."
        ) from error
    return encoder_weights


__all__ = ["VGGishModel", "VGGishOutput"]
