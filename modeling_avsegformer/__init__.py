"""AVSegFormer for the Hugging Face ecosystem: configuration, model, processor, pipeline, and their Auto classes."""

from importlib.metadata import PackageNotFoundError, version

from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import is_av_available

from .configuration_avsegformer import AVSegFormerConfig as AVSegFormerConfig
from .configuration_avsegformer import VGGishConfig as VGGishConfig
from .modeling_avsegformer import AVSegFormerForSegmentation as AVSegFormerForSegmentation
from .modeling_avsegformer import AVSegFormerImageEmbeddings as AVSegFormerImageEmbeddings
from .modeling_avsegformer import AVSegFormerModel as AVSegFormerModel
from .modeling_avsegformer import AVSegFormerModelOutput as AVSegFormerModelOutput
from .modeling_avsegformer import AVSegFormerOutput as AVSegFormerOutput
from .modeling_avsegformer import AVSegFormerPreTrainedModel as AVSegFormerPreTrainedModel
from .modeling_vggish import VGGishModel as VGGishModel
from .modeling_vggish import VGGishOutput as VGGishOutput
from .original_state_dict import convert_original_state_dict as convert_original_state_dict
from .pipeline_avsegformer import AudioVisualSegmentationPipeline as AudioVisualSegmentationPipeline
from .processing_avsegformer import AVSegFormerImageProcessor as AVSegFormerImageProcessor
from .processing_avsegformer import AVSegFormerProcessor as AVSegFormerProcessor
from .processing_avsegformer import VGGishFeatureExtractor as VGGishFeatureExtractor

try:
    __version__ = version("avsbench-robust")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "unknown"

# `Auto….from_pretrained` and `pipeline("audio-visual-segmentation")` find the parts of a saved model.
AutoConfig.register(AVSegFormerConfig.model_type, AVSegFormerConfig)
AutoConfig.register(VGGishConfig.model_type, VGGishConfig)
AutoModel.register(AVSegFormerConfig, AVSegFormerForSegmentation)  # a checkpoint is used for its masks
AutoModel.register(VGGishConfig, VGGishModel)
AutoImageProcessor.register(AVSegFormerConfig, image_processor_classes={"torchvision": AVSegFormerImageProcessor})
AutoFeatureExtractor.register(AVSegFormerConfig, VGGishFeatureExtractor)
AutoProcessor.register(AVSegFormerConfig, AVSegFormerProcessor)
_pipeline_class = AudioVisualSegmentationPipeline
if is_av_available():  # it also takes videos
    from .video.pipeline import VideoSegmentationPipeline as _pipeline_class
PIPELINE_REGISTRY.register_pipeline(
    "audio-visual-segmentation", _pipeline_class, pt_model=AutoModel, type="multimodal"
)
