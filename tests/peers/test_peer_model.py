"""transformers' own tests of models and configurations, run on ours."""

import copy
import unittest
from unittest.mock import patch

import torch
from transformers import PreTrainedModel
from transformers_tests import test_modeling_common
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, find_parent_traceback, floats_tensor

from modeling_avsegformer import (
    AVSegFormerConfig,
    AVSegFormerForSegmentation,
    AVSegFormerModel,
    VGGishConfig,
    VGGishModel,
)
from modeling_avsegformer.modeling_avsegformer import AVSegFormerPreTrainedModel


class VGGishTester:
    batch_size = 2
    is_training = True

    def get_config(self):
        return VGGishConfig(num_frames=16, num_mel_bins=16, conv_channels=[4, 4, 6, 8], fc_size=16, embedding_size=8)

    def prepare_config_and_inputs_for_common(self):
        return self.get_config(), {"input_features": floats_tensor([self.batch_size, 1, 16, 16])}


class AVSegFormerTester:
    batch_size = 2
    num_frames = 2
    image_size = 32
    is_training = True

    def get_config(self):
        return AVSegFormerConfig(
            backbone="test_resnet",
            audio_config=VGGishTester().get_config(),
            hidden_size=32,
            num_attention_heads=4,
            norm_groups=8,
            num_queries=8,
            query_generator_layers=1,
            query_generator_ffn_size=32,
            encoder_layers=2,
            encoder_ffn_size=32,
            decoder_layers=2,
            decoder_ffn_size=32,
            mask_mlp_size=32,
            prediction_channels=[16, 8],
        )

    def prepare_config_and_inputs_for_common(self):
        clips = (self.batch_size, self.num_frames)
        return self.get_config(), {
            "pixel_values": floats_tensor([*clips, 3, self.image_size, self.image_size]),
            "input_features": floats_tensor([*clips, 1, 16, 16]),
        }


NO_HIDDEN_STATES = (
    "no `output_hidden_states`: the layers' states have different shapes; what others may want of them has a name in "
    "the output"
)
NO_TOKEN_EMBEDDINGS = "no input embeddings: frames and spectrograms are not tokens"
LOADING_OF_UPSTREAM = patch.object(
    AVSegFormerPreTrainedModel, "from_pretrained", classmethod(PreTrainedModel.from_pretrained.__func__)
)


class PeerModelTests(ModelTesterMixin):
    """Upstream's tests, with what holds for both of our models."""

    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True  # upstream reads a model's age from a header we do not have

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_outputs_equivalence(self):
        """Upstream's test without its second half, which asks for hidden states."""
        check_outputs_equivalence(self)

    @unittest.skip(NO_HIDDEN_STATES)
    def test_hidden_states_output(self):
        pass

    @unittest.skip(NO_HIDDEN_STATES)
    def test_retain_grad_hidden_states_attentions(self):
        pass

    @unittest.skip(NO_TOKEN_EMBEDDINGS)
    def test_model_get_set_embeddings(self):
        pass


class PeerAVSegFormerTest(PeerModelTests, unittest.TestCase):
    all_model_classes = (AVSegFormerModel, AVSegFormerForSegmentation)
    has_attentions = False  # the deformable ones have no matrix over all pairs, and the others' is not kept

    def setUp(self):
        self.model_tester = AVSegFormerTester()
        self.config_tester = ConfigTester(
            self, config_class=AVSegFormerConfig, has_text_modality=False, common_properties=["hidden_size"]
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        if return_labels and model_class is AVSegFormerForSegmentation:
            tester = self.model_tester
            size = (tester.batch_size, tester.num_frames, tester.image_size, tester.image_size)
            inputs |= {"labels": torch.ones(size), "audio_labels": torch.ones(tester.batch_size)}
        return inputs

    # The bare model has no loss; upstream leaves such models out by a list of their names.

    def test_training(self):
        with patch.object(self, "all_model_classes", (AVSegFormerForSegmentation,)):
            super().test_training()

    def check_training_gradient_checkpointing(self, *args, **kwargs):
        with patch.object(self, "all_model_classes", (AVSegFormerForSegmentation,)):
            super().check_training_gradient_checkpointing(*args, **kwargs)

    # Where upstream loads no weights at all: with upstream's loading, because ours refuses that.

    def test_model_weights_reload_no_missing_tied_weights(self):
        with LOADING_OF_UPSTREAM:
            super().test_model_weights_reload_no_missing_tied_weights()

    def test_can_init_all_missing_weights(self):
        """timm initialises its own weights; upstream lets them differ in its wrappers of timm, and so does ours."""

        def in_upstreams_words(*arguments):
            weight, module, parent = find_parent_traceback(*arguments)
            return weight, module, "TimmWrapperPreTrainedModel" if parent == "TimmFeatures" else parent

        with LOADING_OF_UPSTREAM, patch.object(test_modeling_common, "find_parent_traceback", in_upstreams_words):
            super().test_can_init_all_missing_weights()


class PeerVGGishTest(PeerModelTests, unittest.TestCase):
    all_model_classes = (VGGishModel,)
    has_attentions = False

    def setUp(self):
        self.model_tester = VGGishTester()
        self.config_tester = ConfigTester(
            self, config_class=VGGishConfig, has_text_modality=False, common_properties=["embedding_size"]
        )

    @unittest.skip("an encoder without a loss of its own; it learns as a part of AVSegFormer")
    def test_training(self):
        pass


def check_outputs_equivalence(test):
    config, inputs = test.model_tester.prepare_config_and_inputs_for_common()
    for model_class in test.all_model_classes:
        model = model_class(copy.deepcopy(config)).eval()
        for labels in (False, True):
            arguments = test._prepare_for_class(inputs, model_class, return_labels=labels)
            with torch.no_grad():
                as_tuple, as_dict = (model(**arguments, return_dict=wanted) for wanted in (False, True))
            test.assertIs(type(as_tuple), tuple)
            torch.testing.assert_close(as_tuple, as_dict.to_tuple())
