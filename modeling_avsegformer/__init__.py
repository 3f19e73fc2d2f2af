"""AVSegFormer for the Hugging Face ecosystem: configuration, model, processor, pipeline, and their Auto classes."""

from importlib.metadata import PackageNotFoundError, version

from . import registration
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

registration.register()
