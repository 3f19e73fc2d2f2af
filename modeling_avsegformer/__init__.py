"""AVSegFormer for the Hugging Face ecosystem: configuration, model, processor, and their Auto classes."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_avsegformer import AVSegFormerConfig, VGGishConfig
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

# transformers finds the parts of a saved model by these, in every process that imports this package.
AutoConfig.register(AVSegFormerConfig.model_type, AVSegFormerConfig)
AutoConfig.register(VGGishConfig.model_type, VGGishConfig)
# Not the bare model: a checkpoint is of use for its masks.
AutoModel.register(AVSegFormerConfig, AVSegFormerForSegmentation)
AutoModel.register(VGGishConfig, VGGishModel)
AutoImageProcessor.register(AVSegFormerConfig, image_processor_classes={"torchvision": AVSegFormerImageProcessor})
AutoFeatureExtractor.register(AVSegFormerConfig, VGGishFeatureExtractor)
AutoProcessor.register(AVSegFormerConfig, AVSegFormerProcessor)
PIPELINE_REGISTRY.register_pipeline(
    "audio-visual-segmentation", AudioVisualSegmentationPipeline, pt_model=AutoModel, type="multimodal"
)

# Checkpoints carry their code, so that `trust_remote_code=True` loads them without this package.
AVSegFormerConfig.register_for_auto_class()
AVSegFormerForSegmentation.register_for_auto_class("AutoModel")
AVSegFormerImageProcessor.register_for_auto_class("AutoImageProcessor")
VGGishFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
AVSegFormerProcessor.register_for_auto_class("AutoProcessor")


def __getattr__(name: str):
    # Not imported above: `python -m modeling_avsegformer.convert_original_checkpoint` must find it unimported.
    if name == "convert_original_state_dict":
        from .convert_original_checkpoint import convert_original_state_dict

        return convert_original_state_dict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
