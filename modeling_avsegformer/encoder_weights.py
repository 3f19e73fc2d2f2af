"""Loads pretrained weights of the two encoders from the files in which other projects publish them."""

import hashlib
import re
from pathlib import Path

from torch import Tensor, nn

from .checkpoint_reader import read_tensors

# Original name in a backbone to that of timm's features-only model, which has "_" where its whole model has ".".
BACKBONE_RULES = [
    (r"patch_embed1\.", r"patch_embed."),
    (r"patch_embed([2-4])\.", lambda m: f"stages_{int(m[1]) - 1}.downsample."),
    (
        r"block([1-4])\.(\d+)\.(mlp\.dwconv\.)?(?:dwconv\.)?",
        lambda m: f"stages_{int(m[1]) - 1}.blocks.{m[2]}.{m[3] or ''}",
    ),
    (r"norm([1-4])\.", lambda m: f"stages_{int(m[1]) - 1}.norm."),
    (r"layer([34])_1\.", r"layer\1."),
    (r"(conv1|bn1|layer1|layer2)\.", r"\1."),
]
# ResNet's second branch, which AVSBench and AVSegFormer create but never use.
SECOND_BRANCH = re.compile(r"layer[34]_2\.")
VGGISH_PARENT = re.compile(r"(.+\.)(?=(?:features|embeddings)\.\d)")
PARENTS = re.compile(r"(model\.backbone\.timm_model\.|encoder_backbone\.|backbone\.|model\.)")


def load_backbone_weights(timm_model: nn.Module, path: str | Path) -> dict[str, str]:
    """Load a backbone's weights from a file into timm's features-only model.

    Args:
        timm_model: as `timm.create_model(…, features_only=True)` gives it.
        path: a `.pth` (no code of it is run) or `.safetensors` file with timm's names or those of the original PVT-v2
            and ResNet files; also a whole checkpoint of AVSBench or AVSegFormer, of which the backbone is read.

    Returns:
        `dict`: "source", the file's name, and "sha256", its digest.

    Raises:
        FileNotFoundError: no such file.
        ValueError: tensors are missing, have another shape, or belong to a larger backbone; the message names them.
    """
    given = read_tensors(path)
    if any(PARENTS.match(name) for name in given):  # a checkpoint of more than the backbone
        given = {name: tensor for name, tensor in given.items() if PARENTS.match(name)}
    own = timm_model.state_dict()
    own_names = {_joined(name): name for name in own}
    found = {}
    for name, tensor in given.items():
        name = PARENTS.sub("", name, count=1)
        if not SECOND_BRANCH.match(name):
            name = _joined(timm_backbone_name(name) or name)
            found[own_names.get(name, name)] = tensor
    # An unused classifier is fine, but an additional block of a stage belongs to another backbone.
    parts = {name.split(".")[0] for name in own_names}
    found = {name: tensor for name, tensor in found.items() if name in own or name.split(".")[0] in parts}
    # torchvision's files do not count batches.
    found = {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")} | found
    check_fit(
        found,
        own,
        f"the weights of this backbone in {path}, by timm's names or the original's",
        f"The file has e.g. {', '.join(list(given)[:3])}. Choose the backbone that the file belongs to.",
    )
    timm_model.load_state_dict(found)
    return _provenance(Path(path))


def check_fit(tensors: dict[str, Tensor], expected: dict[str, Tensor], what: str, advice: str) -> None:
    """Raises ValueError where names or shapes are not as expected; the message names the first three."""
    other_shape = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    missing = [name for name in expected if name not in tensors]
    too_many = sorted(tensors.keys() - expected.keys())
    for problem, names in (("missing", missing), ("of another shape", other_shape), ("too many", too_many)):
        if names:
            raise ValueError(f"Expected {what}, but {len(names)} are {problem}, e.g. {', '.join(names[:3])}. {advice}")


def timm_backbone_name(name: str) -> str | None:
    """The name in timm's features-only model of an original PVT-v2's or ResNet's tensor; None if it is unknown."""
    return renamed(name, BACKBONE_RULES)


def renamed(name: str, rules: list) -> str | None:
    """The name by the first rule, a pair of a regular expression and its replacement, that matches its beginning."""
    for pattern, replacement in rules:
        new_name, count = re.subn(rf"^{pattern}", replacement, name)
        if count:
            return new_name
    return None


def _joined(name: str) -> str:
    """One name for timm's whole model (`stages.0.norm`) and its features-only model (`stages_0.norm`)."""
    return re.sub(r"_(\d+)\.", r".\1.", name)


def load_vggish_weights(encoder: nn.Module, path_or_hub_id: str | Path, filename: str | None = None) -> dict[str, str]:
    """Load VGGish's published weights into an audio encoder.

    Args:
        encoder (`VGGishModel`)
        path_or_hub_id: a `.pth` (no code of it is run) or `.safetensors` file with the keys `features.*` and
            `embeddings.*`, also of a larger model; a folder that `save_pretrained` wrote; or the id of a Hub
            repository.
        filename: the file to take from the folder or the Hub repository; `model.safetensors` if not given.

    Returns:
        `dict`: "source", the file's name or the Hub id, and "sha256", the digest of the file.

    Raises:
        FileNotFoundError: neither a file nor a repository that can be reached.
        ValueError: the file holds other weights; the message names the first that do not fit.
    """
    path, source = Path(path_or_hub_id), None
    if path.is_dir():
        path = path / (filename or "model.safetensors")
    elif not path.is_file():
        path, source = _download(str(path_or_hub_id), filename or "model.safetensors"), str(path_or_hub_id)
    given = read_tensors(path)
    parent = next((match[0] for name in given if (match := VGGISH_PARENT.match(name))), "")  # of a larger model
    given = {name.removeprefix(parent): tensor for name, tensor in given.items() if name.startswith(parent)}
    # torchvggish files may carry the PCA of the post-processing, which AVSBench leaves out.
    given = {name: tensor for name, tensor in given.items() if not name.startswith("pproc.")}
    check_fit(
        given,
        encoder.state_dict(),
        f"VGGish weights that fit this configuration in {path}",
        f"The file has e.g. {', '.join(list(given)[:3])}. Use the published vggish-10086976.pth with the default "
        "`VGGishConfig`, or the configuration the weights were saved with.",
    )
    encoder.load_state_dict(given)
    return _provenance(path, source)


def _provenance(path: Path, source: str | None = None) -> dict[str, str]:
    with open(path, "rb") as file:
        return {"source": source or path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _download(repo_id: str, filename: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, filename))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"Expected a file, a folder or the id of a Hub repository, but {repo_id!r} does not exist here and "
            f"{filename} could not be fetched from a repository of that name ({type(error).__name__})."
        ) from error


__all__ = ["load_backbone_weights", "load_vggish_weights"]
