"""Registers this package's classes with transformers' Auto classes and its pipeline."""

from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import is_av_available

from .configuration_avsegformer import AVSegFormerConfig, VGGishConfig
from .modeling_avsegformer import AVSegFormerForSegmentation
from .modeling_vggish import VGGishModel
from .pipeline_avsegformer import AudioVisualSegmentationPipeline
from .processing_avsegformer import AVSegFormerImageProcessor, AVSegFormerProcessor, VGGishFeatureExtractor


def register() -> None:
    """Makes `Auto….from_pretrained` and `pipeline("audio-visual-segmentation")` find the parts of a saved model.

    The pipeline also takes videos where PyAV is installed.
    """
    AutoConfig.register(AVSegFormerConfig.model_type, AVSegFormerConfig)
    AutoConfig.register(VGGishConfig.model_type, VGGishConfig)
    AutoModel.register(AVSegFormerConfig, AVSegFormerForSegmentation)  # a checkpoint is used for its masks
    AutoModel.register(VGGishConfig, VGGishModel)
    AutoImageProcessor.register(AVSegFormerConfig, image_processor_classes={"torchvision": AVSegFormerImageProcessor})
    AutoFeatureExtractor.register(AVSegFormerConfig, VGGishFeatureExtractor)
    AutoProcessor.register(AVSegFormerConfig, AVSegFormerProcessor)
    pipeline_class = AudioVisualSegmentationPipeline
    if is_av_available():
        from .video.pipeline import VideoSegmentationPipeline

        pipeline_class = VideoSegmentationPipeline
    PIPELINE_REGISTRY.register_pipeline(
        "audio-visual-segmentation", pipeline_class, pt_model=AutoModel, type="multimodal"
    )
