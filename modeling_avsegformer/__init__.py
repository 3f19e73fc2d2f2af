"""AVSegFormer for the Hugging Face ecosystem: configuration, model, processor, and their Auto classes."""

from importlib import import_module
from typing import TYPE_CHECKING

from . import registration

if TYPE_CHECKING:
    from .configuration_avsegformer import AVSegFormerConfig, VGGishConfig
    from .convert_original_checkpoint import convert_original_state_dict
    from .feature_extraction_vggish import VGGishFeatureExtractor
    from .image_processing_avsegformer import AVSegFormerImageProcessor
    from .modeling_avsegformer import (
        AVSegFormerForSegmentation,
        AVSegFormerImageEmbeddings,
        AVSegFormerModel,
        AVSegFormerModelOutput,
        AVSegFormerOutput,
        AVSegFormerPreTrainedModel,
    )
    from .modeling_vggish import VGGishModel, VGGishOutput
    from .pipeline_avsegformer import AudioVisualSegmentationPipeline
    from .processing_avsegformer import AVSegFormerProcessor

__all__ = [
    "AVSegFormerConfig",
    "AVSegFormerForSegmentation",
    "AVSegFormerImageEmbeddings",
    "AVSegFormerImageProcessor",
    "AVSegFormerModel",
    "AVSegFormerModelOutput",
    "AVSegFormerOutput",
    "AVSegFormerPreTrainedModel",
    "AVSegFormerProcessor",
    "AudioVisualSegmentationPipeline",
    "VGGishConfig",
    "VGGishFeatureExtractor",
    "VGGishModel",
    "VGGishOutput",
    "convert_original_state_dict",
]

# Imported when they are first asked for: transformers' model code takes seconds. The names above again, by module.
_NAMES = {
    "configuration_avsegformer": ["AVSegFormerConfig", "VGGishConfig"],
    "convert_original_checkpoint": ["convert_original_state_dict"],
    "feature_extraction_vggish": ["VGGishFeatureExtractor"],
    "image_processing_avsegformer": ["AVSegFormerImageProcessor"],
    "modeling_avsegformer": [
        "AVSegFormerForSegmentation",
        "AVSegFormerImageEmbeddings",
        "AVSegFormerModel",
        "AVSegFormerModelOutput",
        "AVSegFormerOutput",
        "AVSegFormerPreTrainedModel",
    ],
    "modeling_vggish": ["VGGishModel", "VGGishOutput"],
    "pipeline_avsegformer": ["AudioVisualSegmentationPipeline"],
    "processing_avsegformer": ["AVSegFormerProcessor"],
}


def __getattr__(name: str):
    for module, names in _NAMES.items():
        if name in names:
            globals()[name] = getattr(import_module(f".{module}", __name__), name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


registration.register()
