"""AVSegFormer's visual backbone: four feature maps of a timm model."""

from urllib.error import URLError

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from .configuration_avsegformer import AVSegFormerConfig

logger = logging.get_logger(__name__)

BACKBONE_STRIDES = [4, 8, 16, 32]


class TimmFeatures(PreTrainedModel):
    """The four feature maps of a timm model, with strides 4, 8, 16 and 32.

    A `PreTrainedModel` of its own so that timm's initialisation is kept: the parent's `post_init` would replace it.
    """

    config_class = AVSegFormerConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"

    def __init__(self, config: AVSegFormerConfig):
        super().__init__(config)
        self.timm_model = _create_timm_features(config, pretrained=False)
        self.channels: list[int] = self.timm_model.feature_info.channels()
        self.channels_last = str(getattr(self.timm_model, "output_fmt", "NCHW")).endswith("NHWC")  # Swin and its kin
        self.frozen = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        # After a start on the meta device, buffers that no checkpoint fills hold nothing.
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
        elif getattr(module, "running_mean", None) is not None:  # a batch norm
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)

    def freeze(self, freeze: bool) -> None:
        self.frozen = freeze
        self.requires_grad_(not freeze)
        self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        if self.frozen:
            self.timm_model.eval()
        return self

    def load_pretrained(self) -> bool:
        import timm
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        name = self.config.backbone
        if not timm.is_model_pretrained(name):
            raise ValueError(f"Expected a backbone with pretrained weights in timm {timm.__version__}, got {name!r}.")
        try:
            pretrained = _create_timm_features(self.config, pretrained=True)
        except (LocalEntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled, URLError) as error:
            logger.warning(
                f"The pretrained weights of the backbone {name!r} could not be fetched ({type(error).__name__}): it "
                "keeps its random initialisation. Connect to the Hub, or load a checkpoint."
            )
            return False
        self.timm_model.load_state_dict(pretrained.state_dict())
        return True

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """The maps `(N, channels[i], H / stride, W / stride)`, finest first, of `pixel_values (N, 3, H, W)`."""
        maps = self.timm_model(pixel_values)
        return [feature.permute(0, 3, 1, 2) for feature in maps] if self.channels_last else list(maps)


def _create_timm_features(config: AVSegFormerConfig, pretrained: bool) -> nn.Module:
    """The last four feature levels of `config.backbone`; errors name timm's version and what would do."""
    import timm

    name = config.backbone
    if not timm.is_model(name):
        from difflib import get_close_matches

        close = get_close_matches(name, timm.list_models(), n=3) or ["pvt_v2_b5", "resnet50"]
        raise ValueError(
            f"Expected a model of timm {timm.__version__} as `backbone`, got {name!r}. Close names: "
            f"{', '.join(close)}. A newer timm may know it: `pip install -U timm`."
        )
    # The original's rates: linear from 0 to 0.1 over the blocks.
    defaults = {"drop_path_rate": 0.1} if name.startswith("pvt_v2") else {}
    kwargs = defaults | (config.backbone_kwargs or {})
    levels = len(BACKBONE_STRIDES)
    try:
        features = timm.create_model(
            name, pretrained=pretrained, features_only=True, out_indices=tuple(range(-levels, 0)), **kwargs
        )
        found = f"strides {features.feature_info.reduction()}"
    except (AssertionError, IndexError, AttributeError) as error:  # what timm raises for too few or no levels
        found = f"no four levels ({error})"
    if found != f"strides {BACKBONE_STRIDES}":
        raise ValueError(
            f"Expected a backbone with feature maps of strides {BACKBONE_STRIDES}, but timm {timm.__version__} gives "
            f"{found} for {name!r} with {kwargs}. pvt_v2_b5, resnet50 and convnext_tiny have them."
        )
    return features
