"""Makes transformers' Auto classes and pipelines find the parts of a saved model, in every process with this package.

Each Auto class learns of ours when it is imported itself: until then neither it nor ours costs anything.
"""

from .post_import import when_imported

__all__ = ["register"]


def _register_configurations() -> None:
    from transformers import AutoConfig

    from .configuration_avsegformer import AVSegFormerConfig, VGGishConfig

    AutoConfig.register(AVSegFormerConfig.model_type, AVSegFormerConfig)
    AutoConfig.register(VGGishConfig.model_type, VGGishConfig)


def _register_models() -> None:
    from transformers import AutoModel

    from .configuration_avsegformer import AVSegFormerConfig, VGGishConfig
    from .modeling_avsegformer import AVSegFormerForSegmentation
    from .modeling_vggish import VGGishModel

    AutoModel.register(AVSegFormerConfig, AVSegFormerForSegmentation)  # a checkpoint is of use for its masks
    AutoModel.register(VGGishConfig, VGGishModel)


def _register_image_processor() -> None:
    from transformers import AutoImageProcessor

    from .configuration_avsegformer import AVSegFormerConfig
    from .image_processing_avsegformer import AVSegFormerImageProcessor

    AutoImageProcessor.register(AVSegFormerConfig, image_processor_classes={"torchvision": AVSegFormerImageProcessor})


def _register_feature_extractor() -> None:
    from transformers import AutoFeatureExtractor

    from .configuration_avsegformer import AVSegFormerConfig
    from .feature_extraction_vggish import VGGishFeatureExtractor

    AutoFeatureExtractor.register(AVSegFormerConfig, VGGishFeatureExtractor)


def _register_processor() -> None:
    from transformers import AutoProcessor

    from .configuration_avsegformer import AVSegFormerConfig
    from .processing_avsegformer import AVSegFormerProcessor

    AutoProcessor.register(AVSegFormerConfig, AVSegFormerProcessor)


def _register_pipeline() -> None:
    from transformers import AutoModel
    from transformers.pipelines import PIPELINE_REGISTRY

    from .pipeline_avsegformer import AudioVisualSegmentationPipeline

    PIPELINE_REGISTRY.register_pipeline(
        "audio-visual-segmentation", AudioVisualSegmentationPipeline, pt_model=AutoModel, type="multimodal"
    )


def register() -> None:
    """Has each part registered when the module of transformers that looks for it is imported."""
    when_imported("transformers.models.auto.configuration_auto", _register_configurations)
    when_imported("transformers.models.auto.modeling_auto", _register_models)
    when_imported("transformers.models.auto.image_processing_auto", _register_image_processor)
    when_imported("transformers.models.auto.feature_extraction_auto", _register_feature_extractor)
    when_imported("transformers.models.auto.processing_auto", _register_processor)
    when_imported("transformers.pipelines", _register_pipeline)
