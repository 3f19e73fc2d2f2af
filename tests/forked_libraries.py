"""What the process has imported and made that commands are forked from (`forked` of conftest.py).

Not a test module. No thread may start here: a forked process has one only.
"""
# ruff: noqa: F401

# Those that `avs_engine` and the libraries behind it import only when they are needed:
import PIL.JpegImagePlugin
import PIL.PngImagePlugin
import scipy.io
import sklearn.preprocessing
import timm
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import avs_engine.commands
import avs_engine.evaluation
import avs_engine.training

get_checkpoint_conversion_mapping("avsegformer")  # transformers compiles a thousand patterns once in a process
