"""Configurations of AVSegFormer and of its audio encoder, VGGish.

A `config.json` may come from a stranger: every size has a bound, and only arguments that shape the network reach timm.
"""

import math
from collections.abc import Mapping

from huggingface_hub.dataclasses import strict
from transformers.utils.versions import require_version

# Before anything of transformers that has changed: configurations and checkpointing fail with other errors there. A
# checkpoint's code imports this file first.
require_version("transformers>=5.23", "AVSegFormer needs it: pip install --upgrade 'transformers>=5.23,<6'")

from transformers import PreTrainedConfig  # noqa: E402

LOSS_TYPES = ("bce_dice", "dice", "bce")

# Field -> smallest and largest value, far beyond published models.
VGGISH_BOUNDS = {
    "num_frames": (16, 4096),
    "num_mel_bins": (16, 1024),
    "conv_channels": (1, 4096),
    "fc_size": (1, 16384),
    "embedding_size": (1, 16384),
}
AVSEGFORMER_BOUNDS = {
    "num_frames": (1, 4096),
    "hidden_size": (1, 8192),
    "num_attention_heads": (1, 256),
    "num_points": (1, 64),
    "norm_groups": (1, 8192),
    "num_queries": (1, 10_000),
    "mask_mlp_size": (1, 32768),
    "prediction_channels": (1, 4096),
    "dropout": (0, 1),
}
for _part in ("query_generator", "encoder", "decoder"):
    AVSEGFORMER_BOUNDS |= {f"{_part}_layers": (0, 100), f"{_part}_ffn_size": (1, 32768)}
AVSEGFORMER_BOUNDS |= dict.fromkeys(("bce_weight", "mask_weight", "mix_weight", "similarity_weight"), (0, 1e6))
# The arguments of timm's models that shape the network. Others open files or set what the model sets itself.
RATES = [
    f"{name}_rate" for name in ("drop", "drop_path", "drop_block", "proj_drop", "attn_drop", "pos_drop", "patch_drop")
]
SWITCHES = ["qkv_bias", "linear", "strict_img_size", "dynamic_img_size", "always_partition"]  # true or false
BACKBONE_BOUNDS: dict[str, tuple[float, float]] = {"in_chans": (3, 3), "num_heads": (1, 256)}
for _names, _bounds in (
    (("img_size", "embed_dim", "embed_dims", "dims", "channels"), (1, 8192)),
    (("window_size", "cardinality", "base_width", "stem_width"), (1, 1024)),
    (("depths", "layers"), (1, 100)),
    (("patch_size", "sr_ratios", "kernel_sizes"), (1, 64)),
    (("mlp_ratio", "mlp_ratios"), (0, 64)),
    ((*RATES, *SWITCHES), (0, 1)),
):
    BACKBONE_BOUNDS |= dict.fromkeys(_names, _bounds)
MAX_NUMBERS = 16  # in a list; one for each stage


def _check_bounds(values: Mapping, bounds: Mapping[str, tuple[float, float]], where: str = "") -> None:
    """Raises ValueError where a number, or one of a list of numbers, lies outside its bounds or is NaN."""
    for name, (low, high) in bounds.items():
        if name not in values:
            continue
        several = isinstance(values[name], list | tuple)
        numbers = values[name] if several else [values[name]]
        if len(numbers) > MAX_NUMBERS:
            raise ValueError(f"Expected at most {MAX_NUMBERS} numbers in `{where}{name}`, got {len(numbers)}.")
        for number in numbers:
            if not isinstance(number, int | float) or math.isnan(number) or not low <= number <= high:
                between = f"{low}" if low == high else f"between {low} and {high}"
                what = "numbers" if several else "a number"
                raise ValueError(f"Expected {what} {between} for `{where}{name}`, got {repr(number)[:50]}.")


def _check_backbone_kwargs(kwargs: Mapping) -> None:
    """Raises ValueError for an argument of timm that is not among `BACKBONE_BOUNDS`, or outside its bounds."""
    for name in kwargs:
        if name not in BACKBONE_BOUNDS:
            raise ValueError(
                f"Expected only arguments that shape the network in `backbone_kwargs` ({', '.join(BACKBONE_BOUNDS)}), "
                f"got {str(name)[:50]!r}. Pretrained weights come from `from_backbone_pretrained`, a saved model's "
                "from `from_pretrained`."
            )
    _check_bounds(kwargs, BACKBONE_BOUNDS, "backbone_kwargs.")


@strict
class VGGishConfig(PreTrainedConfig):
    r"""
    The size of the VGGish audio encoder (Hershey et al. 2017, https://arxiv.org/abs/1609.09430).

    The defaults are the published network, 72,141,184 parameters; smaller widths make one that trains on a laptop.

    Args:
        num_frames (`int`, defaults to 96): log-mel frames of one example (0.96 s at a hop of 10 ms); a multiple of 16.
        num_mel_bins (`int`, defaults to 64): mel bands of one frame; a multiple of 16.
        conv_channels (`list[int]`, defaults to `[64, 128, 256, 512]`): widths of the four convolution stages; the
            last two stages have two convolutions, each stage ends in a 2x2 maximum.
        fc_size (`int`, defaults to 4096): width of the two hidden fully connected layers.
        embedding_size (`int`, defaults to 128): numbers that describe one second of sound.

    Raises:
        ValueError: a size that the network cannot have, or outside `VGGISH_BOUNDS`.
    """

    model_type = "avsegformer_vggish"  # not "vggish", which transformers may take one day
    base_config_key = "audio_config"

    num_frames: int = 96
    num_mel_bins: int = 64
    conv_channels: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    fc_size: int = 4096
    embedding_size: int = 128

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        _check_bounds(vars(self), VGGISH_BOUNDS)
        if self.num_frames % 16 or self.num_mel_bins % 16:
            raise ValueError(
                "Expected `num_frames` and `num_mel_bins` to be multiples of 16 (four 2x2 maxima), got "
                f"num_frames={self.num_frames}, num_mel_bins={self.num_mel_bins}."
            )
        if len(self.conv_channels) != 4:
            raise ValueError(f"Expected four widths in `conv_channels`, got {self.conv_channels}.")


@strict
class AVSegFormerConfig(PreTrainedConfig):
    r"""
    What an AVSegFormer is made of. The defaults are the paper's PVT-v2-b5 model (https://arxiv.org/abs/2307.01146)
    with the similarity head of AVSBench-Robust.

    Args:
        backbone (`str`, defaults to `"pvt_v2_b5"`): a timm model whose last four feature maps have strides 4, 8, 16
            and 32, e.g. `"resnet50"`.
        backbone_kwargs (`dict`, *optional*): further arguments of the timm model that shape the network, such as
            `drop_path_rate` or `depths`; `BACKBONE_BOUNDS` lists them. PVT-v2 gets `drop_path_rate=0.1` unless it
            says otherwise, as in the original.
        num_frames (`int`, defaults to 5): frames of a clip, one a second. The network takes any number; processors
            and data sets read this.
        audio_config (`VGGishConfig`, *optional*): the audio encoder.
        freeze_audio_encoder (`bool`, defaults to `True`): whether the audio encoder keeps its weights.
        hidden_size (`int`, defaults to 256): channels of tokens, queries and mask features.
        num_attention_heads (`int`, defaults to 8): heads of every attention.
        num_points (`int`, defaults to 4): points that a deformable head samples on each level.
        norm_groups (`int`, defaults to 32): groups of the group norms; divides `hidden_size`.
        num_queries (`int`, defaults to 300): audio queries.
        query_generator_layers (`int`, defaults to 6), query_generator_ffn_size (`int`, defaults to 1024): the query
            generator, which mixes the sound into the queries.
        encoder_layers (`int`, defaults to 6), encoder_ffn_size (`int`, defaults to 2048): the deformable encoder
            over the three coarse feature maps.
        decoder_layers (`int`, defaults to 6), decoder_ffn_size (`int`, defaults to 2048): the decoder, in which the
            queries look at the encoded image.
        mask_mlp_size (`int`, defaults to 2048): width of the 1x1 convolutions that turn query maps to mask features.
        prediction_channels (`list[int]`, defaults to `[128, 32]`): widths of the prediction head, before and after
            the 4x upsampling.
        dropout (`float`, defaults to 0.1): in the encoder and the decoder.
        use_similarity_head (`bool`, defaults to `True`): whether the model also says how well sound and image agree.
        loss_type (`str`, defaults to `"bce_dice"`): the loss of a mask. `"dice"` and `"bce"` are the original's;
            dice has no gradient where the target is empty. `"bce_dice"` is `bce_weight` times the first on all pixels
            plus dice on the targets that are not empty.
        bce_weight (`float`, defaults to 5.0): only for `"bce_dice"`.
        mask_weight (`float`, defaults to 1.0), mix_weight (`float`, defaults to 0.1), similarity_weight (`float`,
            defaults to 1.0): factors of the three parts of the loss.
        deform_attn_backend (`str`, defaults to `"auto"`): handed to `ms_deform_attn`.

    Raises:
        ValueError: values that do not go together or lie outside `AVSEGFORMER_BOUNDS`, or a key of `backbone_kwargs`
            that is not allowed.

    Example:

    ```python
    >>> from modeling_avsegformer import AVSegFormerConfig
    >>> AVSegFormerConfig(backbone="resnet50").num_queries
    300

    ```"""

    model_type = "avsegformer"
    keys_to_ignore_at_inference = ["loss_dict", "mask_features"]  # `Trainer.predict` gives logits and similarity
    sub_configs_defaults = {"audio_config": VGGishConfig}

    backbone: str = "pvt_v2_b5"
    backbone_kwargs: dict | None = None
    num_frames: int = 5
    audio_config: dict | PreTrainedConfig | None = None
    freeze_audio_encoder: bool = True
    hidden_size: int = 256
    num_attention_heads: int = 8
    num_points: int = 4
    norm_groups: int = 32
    num_queries: int = 300
    query_generator_layers: int = 6
    query_generator_ffn_size: int = 1024
    encoder_layers: int = 6
    encoder_ffn_size: int = 2048
    decoder_layers: int = 6
    decoder_ffn_size: int = 2048
    mask_mlp_size: int = 2048
    prediction_channels: list[int] | tuple[int, ...] = (128, 32)
    dropout: float | int = 0.1
    use_similarity_head: bool = True
    loss_type: str = "bce_dice"
    bce_weight: float | int = 5.0
    mask_weight: float | int = 1.0
    mix_weight: float | int = 0.1
    similarity_weight: float | int = 1.0
    deform_attn_backend: str = "auto"

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """`PreTrainedConfig.from_dict`, but another `model_type` is a ValueError, not a warning."""
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"Expected a checkpoint of AVSegFormer (model_type {cls.model_type!r}), got one of {model_type!r} "
                f"({config_dict.get('architectures') or 'no architectures named'}). Name another folder or Hub id; "
                "original .pth files go through `python -m modeling_avsegformer.convert_original_checkpoint`."
            )
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        _check_bounds(vars(self), AVSEGFORMER_BOUNDS)
        _check_backbone_kwargs(self.backbone_kwargs or {})
        # Half of the channels encode y, half x, each as (sin, cos) pairs.
        for name, divisor in (
            ("num_attention_heads", self.num_attention_heads),
            ("norm_groups", self.norm_groups),
            ("the sine positions (4)", 4),
        ):
            if self.hidden_size % divisor:
                raise ValueError(
                    f"Expected `hidden_size` to be a multiple of {name}, got hidden_size={self.hidden_size} and "
                    f"{divisor}."
                )
        if self.loss_type not in LOSS_TYPES:
            raise ValueError(f"Expected one of {', '.join(LOSS_TYPES)} for `loss_type`, got {self.loss_type!r}.")
        if len(self.prediction_channels) != 2:
            raise ValueError(f"Expected two widths in `prediction_channels`, got {self.prediction_channels}.")

    @property
    def custom_pipelines(self) -> dict:
        """Where `pipeline` finds its code in a checkpoint's folder; empty where this package has registered it."""
        from transformers.pipelines import PIPELINE_REGISTRY

        if "audio-visual-segmentation" in PIPELINE_REGISTRY.supported_tasks:
            return {}
        implementation = {"impl": "pipeline_avsegformer.AudioVisualSegmentationPipeline", "pt": ["AutoModel"]}
        return {"audio-visual-segmentation": implementation | {"type": "multimodal"}}


AVSegFormerConfig._auto_class = "AutoConfig"  # checkpoints carry their code, for `trust_remote_code=True`

__all__ = ["AVSegFormerConfig", "VGGishConfig"]
