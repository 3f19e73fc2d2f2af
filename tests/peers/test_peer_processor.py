"""transformers' own tests of image processors, feature extractors and processors, run on ours."""

import unittest

import numpy as np
import torch
from transformers_tests.test_feature_extraction_common import FeatureExtractionSavingTestMixin
from transformers_tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from transformers_tests.test_processing_common import ProcessorTesterMixin

from modeling_avsegformer import AVSegFormerImageProcessor, AVSegFormerProcessor, VGGishFeatureExtractor


class AVSegFormerImageProcessingTester(ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(parent, size={"height": 18, "width": 20}, do_resize=True, do_normalize=True)

    def _get_image_processing_classes(self):
        return {"torchvision": AVSegFormerImageProcessor}


class PeerImageProcessingTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = AVSegFormerImageProcessingTester


class PeerFeatureExtractionTest(FeatureExtractionSavingTestMixin, unittest.TestCase):
    feature_extraction_class = VGGishFeatureExtractor
    feat_extract_dict = {"sampling_rate": 16000, "feature_size": 64, "num_seconds": 3, "front_end": "vggish"}


class PeerProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = AVSegFormerProcessor

    @classmethod
    def _setup_image_processor(cls):
        return AVSegFormerImageProcessor()

    @classmethod
    def _setup_feature_extractor(cls):
        return VGGishFeatureExtractor()

    def prepare_text_inputs(self, batch_size=None, modalities=None):
        """None: the processor reads no text, and says so if it is given any."""

    def prepare_videos_inputs(self, batch_size=None):
        """None: frames come once, as images or as videos, and here they come as images."""

    def prepare_audio_inputs(self, batch_size=None):
        """Upstream's 1000 samples are too short for one VGGish example, and refused."""
        return [np.random.default_rng(0).uniform(-1, 1, 16000)] * (batch_size or 1)

    def test_subprocessor_defaults_1_images(self):
        """As upstream, up to the axis of the clips: the image processor sees frames, the model clips of them."""
        processor = self.get_processor()
        image = self.prepare_images_inputs()
        alone = processor.image_processor(image, return_tensors="pt")["pixel_values"]
        together = processor(images=image, return_tensors="pt")["pixel_values"]
        self.assertEqual(together.shape, (1, *alone.shape))
        torch.testing.assert_close(together[0], alone)
