"""Frames as AVSegFormer wants them: 224x224, ImageNet's mean and deviation."""

from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling


class AVSegFormerImageProcessor(TorchvisionBackend):
    """Resizes frames with an antialiased bilinear filter (as PIL, within one grey level of 255), scales them to [0, 1]
    and normalises them. `size={"height": …, "width": …}` here or in the call chooses another size."""

    _auto_class = "AutoImageProcessor"  # checkpoints carry their code, for `trust_remote_code=True`
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    do_convert_rgb = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    model_input_names = ["pixel_values"]


__all__ = ["AVSegFormerImageProcessor"]
