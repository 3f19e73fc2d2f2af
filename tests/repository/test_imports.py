"""What importing a package loads, and that registrations are there when they are asked for."""

import subprocess
import sys

import pytest

HEAVY = (
    "accelerate av datasets evaluate librosa matplotlib pandas PIL pyarrow scipy soundfile timm torchaudio torchvision"
    " transformers torch._dynamo sympy"
)
# What a program may import first: either way our classes must be known to the Auto classes afterwards.
FIRST = ["from transformers import AutoModel, AutoProcessor, pipeline", "import modeling_avsegformer"]
KNOWN = """
import os, sys
import torch, torchvision, accelerate, timm
for first in sys.argv[1:]:
    if os.fork():
        assert os.wait()[1] == 0, first
        continue
    exec(first)
    import modeling_avsegformer
    # `python -m` of a module that its package has imported is warned of
    assert "modeling_avsegformer.convert_original_checkpoint" not in sys.modules
    from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoModel, AutoProcessor
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.pipelines import PIPELINE_REGISTRY
    from modeling_avsegformer import *
    assert type(AutoConfig.for_model("avsegformer")) is AVSegFormerConfig
    assert AutoModel._model_mapping[AVSegFormerConfig] is AVSegFormerForSegmentation
    assert AutoModel._model_mapping[VGGishConfig] is VGGishModel
    assert AVSegFormerImageProcessor in IMAGE_PROCESSOR_MAPPING[AVSegFormerConfig].values()
    assert FEATURE_EXTRACTOR_MAPPING[AVSegFormerConfig] is VGGishFeatureExtractor
    assert PROCESSOR_MAPPING[AVSegFormerConfig] is AVSegFormerProcessor
    assert "audio-visual-segmentation" in PIPELINE_REGISTRY.get_supported_tasks()
    os._exit(0)
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_importing_the_metrics_loads_nothing_heavy():
    code = "import sys, torch; before = set(sys.modules); import evaluate_metrics; print(*set(sys.modules) - before)"
    names = set(run(code).split())
    assert "evaluate_metrics" in names and not names & set(HEAVY.split())


@pytest.mark.slow
def test_the_auto_classes_know_our_parts_whatever_is_imported_first():
    run(KNOWN, *FIRST)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["import avsbench_robust_dataset", "import avsbench_robust_dataset.builder", "pass"])
def test_datasets_knows_the_builder_whatever_is_imported_first(first):
    code = f"{first}; import datasets; import avsbench_robust_dataset; from datasets import packaged_modules as known"
    assert run(code + "; print(known._PACKAGED_DATASETS_MODULES['avsbench_robust'][0])").split() == [
        "avsbench_robust_dataset.builder"
    ]
