"""AVSegFormer: the masks of the objects that are heard, frame by frame.

Papers: AVSegFormer, https://arxiv.org/abs/2307.01146; the similarity head, AVSBench-Robust; the deformable encoder,
Deformable DETR, https://arxiv.org/abs/2010.04159. It reproduces the released models without what those never use.
Shapes: B clips of T frames, N = B * T, C = `hidden_size`, Q queries, S tokens of the three coarse feature maps.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention
from transformers.utils import ModelOutput, can_return_tuple

from .backbone_avsegformer import BACKBONE_STRIDES, TimmFeatures
from .configuration_avsegformer import AVSegFormerConfig
from .loss_avsegformer import avsegformer_loss
from .modeling_vggish import VGGishModel, encoder_weights
from .pipeline_avsegformer import AudioVisualSegmentationPipeline

try:
    from ms_deform_attn import ms_deform_attn
except ImportError:
    # A checkpoint's code can run alone (`trust_remote_code`), without the package of compiled backends.
    ms_deform_attn = None

SMALLEST_IMAGE = 32  # pixels, so that the coarsest feature map has one


@dataclass
class AVSegFormerImageEmbeddings(ModelOutput):
    """
    All that depends on the frames alone; give it back to the model in place of `pixel_values`.

    memory (`Tensor` of shape `(B, T, S, C)`): encoded tokens of the maps with strides 8, 16 and 32, in this order.
    mask_features (`Tensor` of shape `(B, T, C, H / 4, W / 4)`): before the sound gates their channels.
    pooled (`Tensor` of shape `(B, T, channels)`): the backbone's last map, averaged over its positions.
    image_size (`tuple[int, int]`): (H, W) of `pixel_values`, the size of the logits.
    """

    memory: Tensor | None = None
    mask_features: Tensor | None = None
    pooled: Tensor | None = None
    image_size: tuple[int, int] | None = None


@dataclass
class AVSegFormerModelOutput(ModelOutput):
    """
    queries (`Tensor` of shape `(B * T, Q, C)`): audio queries that have seen the image.
    mask_features (`Tensor` of shape `(B * T, C, H / 4, W / 4)`): gated by the sound; not negative.
    audio_tokens (`Tensor` of shape `(B * T, 1, C)`): the sound of each frame.
    image_embeddings (`AVSegFormerImageEmbeddings`): what the model made of the frames alone.
    """

    queries: Tensor | None = None
    mask_features: Tensor | None = None
    audio_tokens: Tensor | None = None
    image_embeddings: AVSegFormerImageEmbeddings | None = None


@dataclass
class AVSegFormerOutput(ModelOutput):
    """
    loss (`Tensor` of shape `()`, *optional*, with `labels` or `audio_labels`): the weighted sum of `loss_dict`.
    loss_dict (`dict[str, Tensor]`, *optional*): the losses before weighting: "mask", "mix" (with `labels`) and
        "similarity" (with `audio_labels`).
    logits (`Tensor` of shape `(B, T, H, W)`): a pixel sounds where its logit is above 0.
    similarity (`Tensor` of shape `(B, T)`, *optional*, with the similarity head): cosine of sound and image.
    mask_features (`Tensor` of shape `(B * T, C, H / 4, W / 4)`): gated by the sound; not negative.
    """

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    similarity: Tensor | None = None
    mask_features: Tensor | None = None


class AVSegFormerPreTrainedModel(PreTrainedModel):
    """Initialisation as the original's head, and loading that refuses another backbone's weights."""

    config_class = AVSegFormerConfig
    config: AVSegFormerConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "audio")
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer", "QueryGeneratorLayer", "VGGishModel", "TimmFeatures"]

    def _initialize_weights(self, module, is_custom_code: bool = False):
        # For foreign code the base class passes over modules without tensors of their own. Ours set their children's,
        # with functions that spare what was loaded.
        super()._initialize_weights(module)

    @torch.no_grad()
    def _init_weights(self, module):
        # Children come before their parents: a parent that wants something else overwrites them.
        if isinstance(module, nn.Linear | nn.Conv2d):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                _init_bias_by_fan_in(module)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)  # queries, keys and values as one matrix, as the original
            if module.in_proj_bias is not None:
                init.zeros_(module.in_proj_bias)
                init.zeros_(module.out_proj.bias)
        elif isinstance(module, nn.Embedding):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, DeformableAttention):
            module.init_weights()
        elif isinstance(module, Encoder):
            init.normal_(module.level_embed)
        elif isinstance(module, AVSegFormerModel | SimilarityHead):
            init.kaiming_uniform_(module.audio_projection.weight, a=math.sqrt(5))  # as torch
            _init_bias_by_fan_in(module.audio_projection)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """`PreTrainedModel.from_pretrained`, but ValueError, never a silent re-initialisation, where the weights are
        damaged, incomplete or of another backbone. A head may be new (fine-tuning), or left out by the bare model."""
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except (SafetensorError, UnpicklingError) as error:
            raise ValueError(
                f"Expected the weights of an AVSegFormer in {pretrained_model_name_or_path}, but a file is damaged or "
                f"holds more than tensors: {str(error).splitlines()[0]} Fetch or save it again."
            ) from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):  # transformers' advice where shapes disagree
                raise
            raise ValueError(
                f"Expected weights that fit the given configuration in {pretrained_model_name_or_path}, but some have "
                "other shapes (listed in the log): they are of another backbone or of other sizes. Leave the "
                "configuration out to use the checkpoint's own."
            ) from error
        wrong = sorted(
            key
            for key in [*info["missing_keys"], *info["unexpected_keys"]]
            if not key.startswith(("mask_head.", "similarity_head."))
        )
        if wrong:
            raise ValueError(
                f"Expected the weights of an AVSegFormer with the backbone {model.config.backbone!r} in "
                f"{pretrained_model_name_or_path}, but {len(wrong)} tensors are missing or unknown, e.g. "
                f"{', '.join(wrong[:3])}. Load the checkpoint with its own configuration, or choose another one."
            )
        model._freeze_audio_encoder()  # loading makes every parameter learn again
        return (model, info) if output_loading_info else model

    def freeze_backbone(self, freeze: bool = True) -> None:
        """Freezes the visual backbone, or lets it learn again: weights, BatchNorm statistics and drop path."""
        self.get_backbone().freeze(freeze)

    def load_pretrained_backbone(self) -> bool:
        """Loads timm's ImageNet weights into the backbone; where they cannot be reached, warns, returns False and
        leaves the backbone as it is. Raises ValueError where timm has none."""
        return self.get_backbone().load_pretrained()

    def load_backbone_weights(self, path: str | Path) -> dict[str, str]:
        """See `encoder_weights.load_backbone_weights`."""
        return encoder_weights().load_backbone_weights(self.get_backbone().timm_model, path)

    def load_vggish_weights(self, path_or_hub_id: str | Path, filename: str | None = None) -> dict[str, str]:
        """See `encoder_weights.load_vggish_weights`."""
        return self.get_audio_encoder().load_vggish_weights(path_or_hub_id, filename)

    @classmethod
    def from_backbone_pretrained(cls, config: AVSegFormerConfig, vggish: str | Path | None = None):
        """A new model with timm's weights in the backbone, as far as `load_pretrained_backbone` reaches them, and
        VGGish's from `vggish`, if given (see `load_vggish_weights`)."""
        model = cls(config)
        model.load_pretrained_backbone()
        if vggish is not None:
            model.load_vggish_weights(vggish)
        return model

    def _freeze_audio_encoder(self) -> None:
        if self.config.freeze_audio_encoder:
            self.get_audio_encoder().requires_grad_(False)

    def get_input_embeddings(self) -> None:
        """None: neither frames nor spectrograms are tokens. FSDP asks for it."""
        return None

    def get_backbone(self) -> TimmFeatures:
        return self.base_model.backbone

    def get_audio_encoder(self) -> VGGishModel:
        return self.base_model.audio_encoder


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention: each query looks at a few points of each level that it chooses itself.

    Source: Deformable DETR, section 4.1, https://arxiv.org/abs/2010.04159
    """

    def __init__(self, config: AVSegFormerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_levels = len(BACKBONE_STRIDES) - 1
        self.num_points = config.num_points
        self.backend = config.deform_attn_backend
        samples = self.num_heads * self.num_levels * self.num_points
        self.sampling_offsets = nn.Linear(config.hidden_size, samples * 2)
        self.attention_weights = nn.Linear(config.hidden_size, samples)
        self.value_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.output_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def init_weights(self) -> None:
        """Each head looks in its own direction, one pixel further with each point."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)  # on the unit square, (heads, 2)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * steps[:, None]  # (heads, 1, points, 2)
        init.zeros_(self.sampling_offsets.weight)
        init.copy_(self.sampling_offsets.bias, offsets.expand(-1, self.num_levels, -1, -1).flatten())
        init.zeros_(self.attention_weights.weight)
        for layer in (self.attention_weights, self.value_proj, self.output_proj):
            init.zeros_(layer.bias)

    def forward(
        self,
        queries: Tensor,
        values: Tensor,
        reference_points: Tensor,
        level_sizes: Tensor,
        spatial_shapes: list[tuple[int, int]],
    ) -> Tensor:
        """What the queries see, `(N, S, C)`.

        queries (`Tensor` of shape `(N, S, C)`): tokens with their positions; they choose points and weights.
        values (`Tensor` of shape `(N, S, C)`): tokens, level after level, row after row.
        reference_points (`Tensor` of shape `(S, 2)`): (x, y) of each token in [0, 1].
        level_sizes (`Tensor` of shape `(levels, 2)`): (width, height) of each level.
        spatial_shapes (`list[tuple[int, int]]`): (height, width) of each level.
        """
        batch, tokens, _ = queries.shape
        grid = (batch, tokens, self.num_heads, self.num_levels, self.num_points)
        # At least float32: bfloat16 cannot tell neighbouring pixels of a large map apart.
        dtype = reference_points.dtype
        offsets = self.sampling_offsets(queries).view(*grid, 2).to(dtype)  # in pixels of each level
        locations = reference_points[None, :, None, None, None] + offsets / level_sizes[:, None]
        # The softmax runs over the points of all levels together.
        weights = self.attention_weights(queries).view(batch, tokens, self.num_heads, -1)
        weights = weights.softmax(-1, dtype=dtype).view(grid)
        values = self.value_proj(values).view(batch, tokens, self.num_heads, -1)
        if ms_deform_attn is not None:
            sampled = ms_deform_attn(values, spatial_shapes, locations, weights, backend=self.backend)
        else:  # transformers' formulation takes one dtype
            attention = MultiScaleDeformableAttention()
            sampled = attention(values.to(dtype), None, spatial_shapes, None, locations, weights, 64).to(values.dtype)
        return self.output_proj(sampled)


class EncoderLayer(GradientCheckpointingLayer):
    """Deformable self-attention and a feed-forward network, normalised after each."""

    def __init__(self, config: AVSegFormerConfig):
        super().__init__()
        self.self_attn = DeformableAttention(config)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.linear1 = nn.Linear(config.hidden_size, config.encoder_ffn_size)
        self.linear2 = nn.Linear(config.encoder_ffn_size, config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        reference_points: Tensor,
        level_sizes: Tensor,
        spatial_shapes: list[tuple[int, int]],
    ) -> Tensor:
        attended = self.self_attn(tokens + positions, tokens, reference_points, level_sizes, spatial_shapes)
        tokens = self.norm1(tokens + self.dropout(attended))
        hidden = self.linear2(self.dropout(F.gelu(self.linear1(tokens))))
        return self.norm2(tokens + self.dropout(hidden))


class Encoder(nn.Module):
    """Deformable layers over the tokens of the maps with strides 8, 16 and 32."""

    def __init__(self, config: AVSegFormerConfig):
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(len(BACKBONE_STRIDES) - 1, config.hidden_size))
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The memory `(N, S, C)` of maps `(N, C, h, w)`, finest first."""
        spatial_shapes = [(feature.shape[-2], feature.shape[-1]) for feature in maps]
        tokens = torch.cat([feature.flatten(2).transpose(1, 2) for feature in maps], 1)
        # Kept for the next call: made anew, they are a hundred small kernels, and copying the sizes waits for the GPU.
        kept = type(tokens) is Tensor and not torch.compiler.is_compiling()
        constants = grid_constants if kept else grid_constants.__wrapped__
        sines, references, sizes = constants(tuple(spatial_shapes), tokens.shape[-1], tokens.dtype, tokens.device)
        positions = torch.cat([sine + embedding for sine, embedding in zip(sines, self.level_embed, strict=True)])
        for layer in self.layers:
            tokens = layer(tokens, positions, references, sizes, spatial_shapes)
        return tokens


@functools.lru_cache(maxsize=16)
def grid_constants(
    spatial_shapes: tuple[tuple[int, int], ...], channels: int, dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], Tensor, Tensor]:
    """What the encoder needs to know of the maps' sizes (height, width), for tokens of `dtype`.

    Returns:
        the sine positions of each level, `(height * width, channels)`; the reference points of all, `(S, 2)`; the
        (width, height) of each level, `(levels, 2)`. The last two are at least float32.
    """
    with torch.inference_mode(False):  # a call with gradients may be the next one
        sines = [sine_positions(*shape, channels, device).to(dtype) for shape in spatial_shapes]
        dtype = torch.promote_types(dtype, torch.float32)
        references = torch.cat([reference_points(*shape, device) for shape in spatial_shapes]).to(dtype)
        sizes = [(width, height) for height, width in spatial_shapes]
        return sines, references, torch.tensor(sizes, dtype=dtype, device=device)


def sine_positions(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Sine and cosine of the row (first half of the channels) and the column, counted from 1 and not normalised.

    Returns:
        `Tensor` of shape `(height * width, channels)`, float32

    Source: DETR, https://arxiv.org/abs/2005.12872; temperature 10000.
    """
    half = channels // 2
    index = torch.arange(half, dtype=torch.float32, device=device)
    periods = 10000 ** (2 * (index // 2) / half)
    rows = torch.arange(1, height + 1, dtype=torch.float32, device=device)[:, None] / periods
    columns = torch.arange(1, width + 1, dtype=torch.float32, device=device)[:, None] / periods
    # even channels sine, odd channels cosine
    rows, columns = (
        torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], -1).flatten(1) for angles in (rows, columns)
    )
    rows = rows[:, None].expand(height, width, half)
    columns = columns[None].expand(height, width, half)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def reference_points(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """The centres (x, y) of a grid's cells in [0, 1], row after row; `Tensor` of shape `(height * width, 2)`."""
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def laid_out_by_token(sequences: Tensor) -> Tensor:
    """`(N, L, C)`, equal, where no gradient is needed in the memory order of `(L, N, C)`.

    `nn.MultiheadAttention` projects a transposed view, which PyTorch multiplies by a copy of the weight for each of
    L tokens where no gradient is needed: in bfloat16 on a CPU half of the time of queries, decoder and mask head.
    """
    if torch.is_grad_enabled():
        return sequences
    return sequences.transpose(0, 1).contiguous().transpose(0, 1)


class QueryGeneratorLayer(GradientCheckpointingLayer):
    """Queries attend to each other and to the one audio token; no dropout, no biases in the attention."""

    def __init__(self, config: AVSegFormerConfig):
        super().__init__()
        size, heads = config.hidden_size, config.num_attention_heads
        self.self_attn = nn.MultiheadAttention(size, heads, bias=False, batch_first=True)
        # With a single key the softmax is 1: the rows of in_proj_weight for queries and keys have no influence. They
        # are kept so that the original's weights fit.
        self.cross_attn = nn.MultiheadAttention(size, heads, bias=False, batch_first=True)
        hidden = config.query_generator_ffn_size
        self.ffn = nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(size), nn.LayerNorm(size), nn.LayerNorm(size)

    def forward(self, queries: Tensor, audio_tokens: Tensor) -> Tensor:
        queries = laid_out_by_token(queries)
        queries = self.norm1(queries + self.self_attn(queries, queries, queries, need_weights=False)[0])
        # With one key every query gets the token's value, so it is computed once, with the token as the query.
        heard = self.cross_attn(audio_tokens, audio_tokens, audio_tokens, need_weights=False)[0]
        queries = self.norm2(queries + heard)
        return self.norm3(queries + self.ffn(queries))


class QueryGenerator(nn.Module):
    """Learned queries that take in the sound of their frame."""

    def __init__(self, config: AVSegFormerConfig):
        super().__init__()
        self.query = nn.Embedding(config.num_queries, config.hidden_size)
        self.layers = nn.ModuleList(QueryGeneratorLayer(config) for _ in range(config.query_generator_layers))

    def forward(self, audio_tokens: Tensor) -> Tensor:
        """Queries `(N, Q, C)` of audio tokens `(N, 1, C)`."""
        queries = self.query.weight.expand(audio_tokens.shape[0], -1, -1)
        for layer in self.layers:
            queries = layer(queries, audio_tokens)
        return queries


class DecoderLayer(GradientCheckpointingLayer):
    """Queries attend to each other and to the whole memory, neither with positions, as the original."""

    def __init__(self, config: AVSegFormerConfig):
        super().__init__()
        size, heads, dropout = config.hidden_size, config.num_attention_heads, config.dropout
        self.self_attn = nn.MultiheadAttention(size, heads, dropout=dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(size)
        self.cross_attn = nn.MultiheadAttention(size, heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(size)
        self.linear1 = nn.Linear(size, config.decoder_ffn_size)
        self.linear2 = nn.Linear(config.decoder_ffn_size, size)
        self.norm3 = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        queries = laid_out_by_token(queries)
        attended = self.self_attn(queries, queries, queries, need_weights=False)[0]
        queries = laid_out_by_token(self.norm1(queries + self.dropout(attended)))
        attended = self.cross_attn(queries, memory, memory, need_weights=False)[0]
        queries = self.norm2(queries + self.dropout(attended))
        hidden = self.linear2(self.dropout(F.gelu(self.linear1(queries))))
        return self.norm3(queries + self.dropout(hidden))


class PixelDecoder(nn.Module):
    """Mask features at a quarter of the image's size, from the finest encoded level and the finest backbone map."""

    def __init__(self, config: AVSegFormerConfig):
        super().__init__()
        size, groups = config.hidden_size, config.norm_groups
        self.lateral_conv = nn.Sequential(nn.Conv2d(size, size, 1), nn.GroupNorm(groups, size))
        self.out_conv = nn.Sequential(
            nn.Conv2d(size, size, 3, padding=1), nn.GroupNorm(groups, size), nn.ReLU(inplace=True)
        )

    def forward(self, encoded: Tensor, fine: Tensor) -> Tensor:
        """`(N, C, H / 4, W / 4)` from `encoded (N, C, H / 8, W / 8)` and `fine (N, C, H / 4, W / 4)`."""
        upsampled = F.interpolate(encoded, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        return self.out_conv(upsampled + self.lateral_conv(fine))


class AudioGate(nn.Module):
    """The sound looks at all pixels and then weighs the channels of the mask features."""

    def __init__(self, config: AVSegFormerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.kv_proj = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=False)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, mask_features: Tensor, audio_tokens: Tensor) -> Tensor:
        """Gated features `(N, C, h, w)` of `mask_features (N, C, h, w)` and `audio_tokens (N, 1, C)`."""
        pixels = mask_features.flatten(2).transpose(1, 2)  # (N, h * w, C)
        query, key, value = (
            tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, heads, ·, C / heads)
            for tensor in (self.q_proj(audio_tokens), *self.kv_proj(pixels).chunk(2, -1))
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        gate = self.proj(attended).sigmoid()  # (N, 1, C)
        return mask_features * gate.transpose(1, 2)[..., None]


class AVSegFormerModel(AVSegFormerPreTrainedModel):
    """Both encoders and the transformer, without the heads: audio queries and gated mask features."""

    def __init__(self, config: AVSegFormerConfig):
        super().__init__(config)
        size = config.hidden_size
        self.backbone = TimmFeatures(config)
        self.audio_encoder = VGGishModel(config.audio_config)
        self.audio_projection = nn.Linear(config.audio_config.embedding_size, size)
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, size, 1), nn.GroupNorm(config.norm_groups, size))
            for channels in self.backbone.channels
        )
        self.encoder = Encoder(config)
        self.pixel_decoder = PixelDecoder(config)
        self.query_generator = QueryGenerator(config)
        self.query_embed = nn.Embedding(config.num_queries, size)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.audio_gate = AudioGate(config)
        self._freeze_audio_encoder()
        self.post_init()

    def train(self, mode: bool = True):
        super().train(mode)
        if self.config.freeze_audio_encoder:
            self.audio_encoder.eval()
        return self

    def get_image_embeddings(
        self, pixel_values: Tensor, frames_to_segment: int | None = None
    ) -> AVSegFormerImageEmbeddings:
        """All that depends on the frames alone: backbone, deformable encoder and pixel decoder, most of the work.

        Args:
            pixel_values (`Tensor` of shape `(B, T, 3, H, W)`): H and W at least 32; multiples of 4 avoid a last
                resize of the logits.
            frames_to_segment (`int`, *optional*): K, as in `AVSegFormerForSegmentation.forward`. `memory` and
                `mask_features` then are of the first K frames, `pooled` is of all.

        """
        _check_pixel_values(pixel_values)
        if frames_to_segment is not None and not 1 <= frames_to_segment <= pixel_values.shape[1]:
            raise ValueError(
                f"Expected `frames_to_segment` from 1 to the {pixel_values.shape[1]} frames of a clip, got "
                f"{frames_to_segment}."
            )
        clips, height, width = pixel_values.shape[:2], pixel_values.shape[-2], pixel_values.shape[-1]
        images = pixel_values.flatten(0, 1).to(self.audio_projection.weight.dtype)
        maps = self.backbone(images)
        pooled = maps[-1].mean((-2, -1)).unflatten(0, clips)
        if frames_to_segment is not None:
            clips = (clips[0], frames_to_segment)
            maps = [feature.unflatten(0, pooled.shape[:2])[:, :frames_to_segment].flatten(0, 1) for feature in maps]
        fine, *coarse = (project(feature) for project, feature in zip(self.input_projections, maps, strict=True))
        memory = self.encoder(coarse)
        rows, columns = coarse[0].shape[-2:]
        encoded = memory[:, : rows * columns].transpose(1, 2).unflatten(2, (rows, columns))
        return AVSegFormerImageEmbeddings(
            memory=memory.unflatten(0, clips),
            mask_features=self.pixel_decoder(encoded, fine).unflatten(0, clips),
            pooled=pooled,
            image_size=(height, width),
        )

    def get_audio_embeddings(self, input_features: Tensor) -> Tensor:
        """The VGGish embeddings of each second, `(B, T, embedding_size)`; constant where the encoder is frozen.

        Args:
            input_features (`Tensor` of shape `(B, T, 1, 96, 64)`): log-mel examples, time before mel.
        """
        if input_features.ndim != 5 or input_features.shape[1] == 0:
            raise ValueError(
                "Expected `input_features` of shape (clips, frames, 1, time, mel) with at least one frame, got "
                f"{tuple(input_features.shape)}."
            )
        if not self.config.freeze_audio_encoder:
            return self.audio_encoder(input_features, return_dict=True).embeddings
        with torch.no_grad():
            return self.audio_encoder(input_features, return_dict=True).embeddings

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        image_embeddings: AVSegFormerImageEmbeddings | None = None,
        audio_embeddings: Tensor | None = None,
        frames_to_segment: int | None = None,
    ) -> AVSegFormerModelOutput:
        """See `AVSegFormerForSegmentation.forward`."""
        image = _exactly_one("pixel_values", pixel_values, "image_embeddings", image_embeddings)
        audio = _exactly_one("input_features", input_features, "audio_embeddings", audio_embeddings)
        image_shape = (image if image_embeddings is None else image.pooled).shape
        if audio.shape[:2] != image_shape[:2]:
            raise ValueError(
                "Expected as many clips and frames of sound as of images, but the images begin with "
                f"{tuple(image_shape[:2])} and the sound with {tuple(audio.shape[:2])}. `AVSegFormerProcessor` makes "
                "them agree if one call gets both; alone, its feature extractor makes `num_seconds` seconds."
            )
        if image_embeddings is None:
            image_embeddings = self.get_image_embeddings(pixel_values, frames_to_segment)
        if audio_embeddings is None:
            audio_embeddings = self.get_audio_embeddings(input_features)

        audio_tokens = self.audio_projection(
            audio_embeddings.flatten(0, 1)[:, None].to(self.audio_projection.weight.dtype)
        )  # (N, 1, C)
        memory = laid_out_by_token(image_embeddings.memory.flatten(0, 1))
        segmented = audio_tokens.unflatten(0, audio.shape[:2])[:, : image_embeddings.memory.shape[1]].flatten(0, 1)
        queries = self.query_generator(segmented) + self.query_embed.weight
        for layer in self.decoder:
            queries = layer(queries, memory)
        return AVSegFormerModelOutput(
            queries=queries,
            mask_features=self.audio_gate(image_embeddings.mask_features.flatten(0, 1), segmented),
            audio_tokens=audio_tokens,
            image_embeddings=image_embeddings,
        )


def upsampled_conv(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`conv2d(interpolate(features, scale_factor=4, mode="bilinear"), weight, bias, padding=1)` without the large map.

    Both steps are linear: channels are mixed at the small size, once for each tap of the kernel, and a matrix product
    a direction upsamples, shifts and adds the taps. A third of the arithmetic and memory; equal up to rounding.

    features (`Tensor` of shape `(N, channels, h, w)`), weight (`Tensor` of shape `(out, channels, 3, 3)`), bias
    (`Tensor` of shape `(out,)`). Returns `(N, out, 4 * h, 4 * w)`.
    """
    batch, channels, height, width = features.shape
    mix = weight.permute(2, 0, 3, 1).reshape(-1, channels)  # of (row of the tap, out, column of the tap)
    mixed = (mix @ features.flatten(2)).view(batch, 3, -1, 3, height, width)
    mixed = mixed.permute(0, 2, 1, 4, 3, 5).reshape(batch, -1, 3 * height, 3 * width)
    rows, columns = (_upsample_taps(size, mixed) for size in (height, width))
    return rows.T @ (mixed @ columns) + bias[:, None, None]


def _upsample_taps(size: int, like: Tensor) -> Tensor:
    """`(3 * size, 4 * size)`: to output i, tap d of the kernel brings the upsampled line at i + d - 1, 0 outside."""
    upsample = F.interpolate(torch.eye(size, device=like.device)[None], scale_factor=4, mode="linear")[0]
    padded = F.pad(upsample, (1, 1)).to(like.dtype)  # eighths: exact in bfloat16 too
    return torch.cat([padded[:, tap : tap + 4 * size] for tap in range(3)])


class MaskHead(nn.Module):
    """Logits at four times the mask features' size, from the features and the queries' maps over them."""

    def __init__(self, config: AVSegFormerConfig):
        super().__init__()
        size, hidden = config.hidden_size, config.mask_mlp_size
        wide, narrow = config.prediction_channels
        self.mlp = nn.Sequential(
            nn.Conv2d(config.num_queries, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, size, 1),
        )
        # No activation between the first convolution and the upsampling, as the original.
        self.reduce = nn.Conv2d(size, wide, 3, padding=1)
        self.predict = nn.Sequential(
            nn.Conv2d(wide, narrow, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(narrow, 1, 1, bias=False)
        )

    def forward(self, queries: Tensor, mask_features: Tensor) -> Tensor:
        """Logits `(N, 4 * h, 4 * w)` of `queries (N, Q, C)` and `mask_features (N, C, h, w)`."""
        query_maps = (queries @ mask_features.flatten(2)).unflatten(2, mask_features.shape[-2:])  # (N, Q, h, w)
        features = self.reduce(mask_features + self.mlp(query_maps))
        return self.predict[1:](upsampled_conv(features, self.predict[0].weight, self.predict[0].bias))[:, 0]


class SimilarityHead(nn.Module):
    """The cosine between a frame and its sound, both as vectors of the backbone's last width."""

    def __init__(self, config: AVSegFormerConfig, image_channels: int):
        super().__init__()
        self.audio_projection = nn.Linear(config.hidden_size, image_channels)

    def forward(self, audio_tokens: Tensor, pooled: Tensor) -> Tensor:
        """`(B, T)` in [-1, 1] of `audio_tokens (B * T, 1, C)` and `pooled (B, T, image_channels)`."""
        audio = self.audio_projection(audio_tokens[:, 0]).unflatten(0, pooled.shape[:2])
        return F.cosine_similarity(audio, pooled, dim=-1, eps=1e-8)


class AVSegFormerForSegmentation(AVSegFormerPreTrainedModel):
    """AVSegFormer: clips of any number of frames, independent of each other, and their sound to one mask a frame."""

    _auto_class = "AutoModel"  # checkpoints carry their code, for `trust_remote_code=True`
    # transformers saves the files that this file imports, so a checkpoint contains its pipeline too.
    pipeline_class = AudioVisualSegmentationPipeline

    def __init__(self, config: AVSegFormerConfig):
        super().__init__(config)
        self.model = AVSegFormerModel(config)
        self.mask_head = MaskHead(config)
        self.similarity_head = (
            SimilarityHead(config, self.model.backbone.channels[-1]) if config.use_similarity_head else None
        )
        self.post_init()

    def get_image_embeddings(self, pixel_values: Tensor) -> AVSegFormerImageEmbeddings:
        """See `AVSegFormerModel.get_image_embeddings`."""
        return self.model.get_image_embeddings(pixel_values)

    def get_audio_embeddings(self, input_features: Tensor) -> Tensor:
        """See `AVSegFormerModel.get_audio_embeddings`."""
        return self.model.get_audio_embeddings(input_features)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        labels: Tensor | None = None,
        audio_labels: Tensor | None = None,
        image_embeddings: AVSegFormerImageEmbeddings | None = None,
        audio_embeddings: Tensor | None = None,
        frames_to_segment: int | None = None,
        num_masks: Tensor | float | None = None,
    ) -> AVSegFormerOutput:
        """Segment what is heard.

        Args:
            pixel_values (`Tensor` of shape `(B, T, 3, H, W)`): frames, normalised with ImageNet's mean and deviation.
            input_features (`Tensor` of shape `(B, T, 1, 96, 64)`): log-mel examples, one a frame.
            labels (`Tensor` of shape `(B, K, H, W)`, *optional*): masks in [0, 1] of the first K <= T frames, empty
                where the sound does not belong to the clip. S4 has K = 1 in training, MS3 has K = T.
            audio_labels (`Tensor` of shape `(B,)`, *optional*): 1 where the sound belongs to the clip, else 0; for the
                similarity head, without effect where there is none.
            image_embeddings (`AVSegFormerImageEmbeddings`, *optional*): from `get_image_embeddings`, instead of
                `pixel_values`.
            audio_embeddings (`Tensor` of shape `(B, T, embedding_size)`, *optional*): from `get_audio_embeddings`,
                instead of `input_features`.
            frames_to_segment (`int`, *optional*): segment the first K <= T frames only; the logits are of shape
                `(B, K, H, W)`, the similarity stays `(B, T)`. Frames do not see each other: with labels of K frames,
                loss and gradients are those of all T, dropout aside, without the transformer's work on the others.
            num_masks (`Tensor` or `float`, *optional*): by what the sum in the Dice part of the loss "bce_dice" is
                divided, instead of the batch's number of masks that are not empty; see `avsegformer_loss`.

        Returns:
            `AVSegFormerOutput`

        Raises:
            ValueError: shapes that do not agree; the message names both.

        Example:

        ```python
        >>> import torch
        >>> from modeling_avsegformer import AVSegFormerConfig, AVSegFormerForSegmentation, VGGishConfig
        >>> audio = VGGishConfig(conv_channels=[4, 4, 8, 8], fc_size=16)
        >>> config = AVSegFormerConfig(backbone="test_resnet", hidden_size=64, num_attention_heads=4, num_queries=16,
        ...     audio_config=audio, mask_mlp_size=32)
        >>> model = AVSegFormerForSegmentation(config).eval()
        >>> output = model(pixel_values=torch.zeros(2, 5, 3, 64, 64), input_features=torch.zeros(2, 5, 1, 96, 64))
        >>> list(output.logits.shape)
        [2, 5, 64, 64]

        ```"""
        output = self.model(
            pixel_values=pixel_values,
            input_features=input_features,
            image_embeddings=image_embeddings,
            audio_embeddings=audio_embeddings,
            frames_to_segment=frames_to_segment,
            return_dict=True,
        )
        image_embeddings = output.image_embeddings
        clips, image_size = image_embeddings.memory.shape[:2], image_embeddings.image_size
        logits = self.mask_head(output.queries, output.mask_features).unflatten(0, clips)
        if tuple(logits.shape[-2:]) != tuple(image_size):
            # Four times the rounded-up quarter: more than the image where its sides are not multiples of 4.
            logits = F.interpolate(logits, size=image_size, mode="bilinear", align_corners=False)
        similarity = None
        if self.similarity_head is not None:
            similarity = self.similarity_head(output.audio_tokens, image_embeddings.pooled)

        loss = loss_dict = None
        if labels is not None or audio_labels is not None:
            _check_labels(labels, audio_labels, logits, similarity)
            loss, loss_dict = avsegformer_loss(
                logits, output.mask_features, similarity, labels, audio_labels, self.config, num_masks
            )
        return AVSegFormerOutput(
            loss=loss, loss_dict=loss_dict, logits=logits, similarity=similarity, mask_features=output.mask_features
        )


def _exactly_one(name: str, value, other_name: str, other_value):
    if (value is None) == (other_value is None):
        got = "neither" if value is None else "both"
        raise ValueError(f"Expected either `{name}` or `{other_name}`, got {got}.")
    return other_value if value is None else value


def _check_pixel_values(pixel_values: Tensor) -> None:
    shape = tuple(pixel_values.shape)
    if len(shape) != 5 or shape[2] != 3 or shape[1] == 0:
        raise ValueError(
            "Expected `pixel_values` of shape (clips, frames, 3, height, width) with at least one frame, got "
            f"{shape}. A single clip needs a leading 1."
        )
    if min(shape[-2:]) < SMALLEST_IMAGE:
        raise ValueError(
            f"Expected frames of at least {SMALLEST_IMAGE}x{SMALLEST_IMAGE} pixels (the coarsest map has stride 32), "
            f"got {shape[-2]}x{shape[-1]}. Enlarge them, e.g. with `AVSegFormerImageProcessor`."
        )


def _check_labels(
    labels: Tensor | None, audio_labels: Tensor | None, logits: Tensor, similarity: Tensor | None
) -> None:
    clips, frames, height, width = logits.shape
    if labels is not None:
        shape = tuple(labels.shape)
        if len(shape) != 4 or shape[0] != clips or not 1 <= shape[1] <= frames:
            raise ValueError(
                f"Expected `labels` of shape ({clips}, K, {height}, {width}) with the masks of the first K frames, "
                f"K from 1 to {frames}, got {shape}."
            )
        if shape[2:] != (height, width):
            raise ValueError(
                f"Expected `labels` at the size of the frames, {height}x{width}, got {shape[2]}x{shape[3]}. Resize "
                "them with the nearest neighbour, as `AVSegFormerProcessor` does with `masks`."
            )
    if audio_labels is not None:
        if tuple(audio_labels.shape) != (clips,):
            raise ValueError(f"Expected `audio_labels` of shape ({clips},), got {tuple(audio_labels.shape)}.")
        if similarity is None and labels is None:
            raise ValueError(
                "Expected `labels`, since `audio_labels` alone train the similarity head, which this model lacks "
                "(`use_similarity_head=False`)."
            )


def _init_bias_by_fan_in(module: nn.Linear | nn.Conv2d) -> None:
    """torch's default: uniform within one over the root of the number of inputs."""
    bound = 1 / math.sqrt(module.weight[0].numel())
    init.uniform_(module.bias, -bound, bound)


__all__ = ["AVSegFormerForSegmentation", "AVSegFormerModel", "AVSegFormerPreTrainedModel"]
__all__ += ["AVSegFormerImageEmbeddings", "AVSegFormerModelOutput", "AVSegFormerOutput"]
