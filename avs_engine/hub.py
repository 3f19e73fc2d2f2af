"""Publishes a trained or scored model on the Hub."""

import argparse
import json
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, ModelCard, RepoFile
from transformers.utils import logging

from avsbench_robust_dataset.files import sha256, write_whole
from avsbench_robust_dataset.hub_access import check_hub_access, explained
from evaluate_metrics.entry import evaluation_results, hub_entry, partial_reasons
from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor

from .model_card import MARKER, model_card, plain, with_results
from .predict import noted

logger = logging.get_logger(__name__)

# Files of an earlier upload with other shards or other code, which from_pretrained would read.
OUTDATED = ["*.safetensors", "*.safetensors.index.json", "pytorch_model*", "*.py"]


def publish(model: str | Path, repo_id: str, args: argparse.Namespace, results_file: Path | None = None) -> None:
    """Publishes a `from_pretrained` folder or Hub id with its processor and its scores; one process calls this.

    Raises:
        PermissionError, ConnectionError, ValueError: as `push_checkpoint`, with a note that says how to repeat it.
    """
    again = f"push_checkpoint(AVSegFormerForSegmentation.from_pretrained({str(model)!r}), {repo_id!r}"
    again += ", private=True" if args.hub_private else ""
    again += f", results=json.load(open({str(results_file)!r}))" if results_file else ""
    with noted(f"All that was computed is saved. To publish it later, in Python: {again})"):
        network = AVSegFormerForSegmentation.from_pretrained(model)
        processor = AVSegFormerProcessor.from_pretrained(model)
        commit = push_checkpoint(
            network,
            repo_id,
            processor,
            results=json.loads(results_file.read_text(encoding="utf-8")) if results_file else None,
            private=args.hub_private or None,
            token=args.hub_token,
            commit_message="Upload AVSegFormer and its robustness scores" if results_file else "Upload AVSegFormer",
        )
    print(f"published: {commit.commit_url}")


def push_checkpoint(
    model,
    repo_id: str,
    processor: AVSegFormerProcessor | None = None,
    *,
    results: dict | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    max_shard_size: int | str = "5GB",
) -> CommitInfo:
    """Publishes the model with its processor, its card and its code in one commit: everything arrives or nothing.

    Files that the Hub has are not sent again. A card that describes exactly these weights is kept with all edits.

    Args:
        model (`AVSegFormerForSegmentation`)
        repo_id (`str`): `user/name`, or `name` in your account.
        processor (`AVSegFormerProcessor`, *optional*): if not given, the one beside the weights that the model was
            loaded from; else the repository keeps its processor or receives the default one.
        results (`dict`, *optional*): the content of an evaluation's `results.json`; becomes the card's
            `model-index` and a table, and, of a whole split, an entry in `.eval_results`.
        private (`bool`, *optional*): True never writes to a public repository.
        token (`str`, *optional*): one that may write; if not given, that of `hf auth login` or `HF_TOKEN`.
        revision (`str`, *optional*): a branch, which is created if it does not exist.
        commit_message, create_pr, max_shard_size: as in `PreTrainedModel.push_to_hub`.

    Raises:
        PermissionError: the token is missing, invalid or may not write there.
        ConnectionError: the connection was lost or the Hub failed; repeat the call.
        ValueError: an invalid repository name, a public repository with `private=True`, or a model, a processor or
            results of another kind.
    """
    _check_class("model", model, "AVSegFormerForSegmentation")
    if processor is not None:
        _check_class("processor", processor, "AVSegFormerProcessor")
    if results is not None:
        evaluation_results(results)  # raises, before anything is on the Hub
    repo_id = check_hub_access(repo_id, token)
    api = HfApi(token=token)
    with explained(repo_id):
        _open_repository(api, repo_id, private, revision)
        tree = api.list_repo_tree(repo_id, revision=revision)
        files = [file for file in tree if isinstance(file, RepoFile)]
        there = {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
        with tempfile.TemporaryDirectory(prefix="avsegformer-") as temporary:
            folder = Path(temporary)
            model.save_pretrained(folder, max_shard_size=max_shard_size)
            processor = processor or _processor_of(model, repo_id, there)
            if processor is not None:
                processor.save_pretrained(folder)
            card = _card(model, repo_id, folder, there, revision, api)
            if results is not None:
                card = with_results(card, results)
                if reasons := partial_reasons(results):  # of a partial evaluation the card alone tells
                    logger.warning(f"No entry in .eval_results, for benchmarks: it is one {'; '.join(reasons)}.")
                else:
                    path, content = hub_entry(results)
                    write_whole(folder / path, content.encode())
            card.save(folder / "README.md")
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or "Upload AVSegFormer",
                revision=revision,
                create_pr=create_pr,
                delete_patterns=OUTDATED,
            )


def _check_class(name: str, value, expected: str) -> None:
    # By name: a checkpoint's own code (`trust_remote_code`) defines these classes once more.
    if expected not in [base.__name__ for base in type(value).__mro__]:
        raise ValueError(f"Expected `{name}` to be an {expected} to publish it, got {type(value).__name__}.")


def _open_repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> None:
    """Creates the repository and the branch if they do not exist; with `private`, refuses a public repository."""
    api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise ValueError(
            f"Expected a private repository, but {repo_id} exists and is public. Make it private in its settings, or "
            "name another. Nothing was uploaded."
        )
    if revision is not None and not revision.startswith("refs/pr/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def _processor_of(model, repo_id: str, there: dict[str, str]) -> AVSegFormerProcessor | None:
    """The processor beside the weights that the model was loaded from; None if only the repository has one; else the
    default."""
    source = model.name_or_path
    if source and (source != repo_id or Path(source).is_dir()):
        try:
            return AVSegFormerProcessor.from_pretrained(source)
        except OSError:
            logger.info(f"There is no processor in {source}.")
    if "processor_config.json" in there:
        logger.warning(f"{repo_id} keeps its processor; give `processor` to replace it.")
        return None
    logger.warning("No `processor` was given: the default one, 224x224 pixels, is published with the model.")
    return AVSegFormerProcessor()


def _card(model, repo_id: str, folder: Path, there: dict[str, str], revision: str | None, api: HfApi) -> ModelCard:
    """A card of exactly these weights: the one on the Hub, the one beside the weights, or a new one.

    A card of other weights contains their results, so it is never reused.
    """
    weights = _weights(folder)
    source = Path(model.name_or_path or "-")
    from_source = source.is_dir() and _weights(source) == weights
    on_hub = {name: digest for name, digest in there.items() if name.endswith(".safetensors")} == weights
    cards = [source / "README.md"] if from_source and (source / "README.md").is_file() else []
    if on_hub and "README.md" in there:
        cards.insert(0, Path(api.hf_hub_download(repo_id, "README.md", revision=revision)))
    for card in (ModelCard.load(file, ignore_metadata_errors=True) for file in cards):
        if MARKER in card.text:
            return card
    training = note = None
    if from_source and (source / "trainer_state.json").is_file():
        training = json.loads((source / "trainer_state.json").read_text(encoding="utf-8"))
    elif from_source and (source / "conversion.json").is_file():
        made_from = json.loads((source / "conversion.json").read_text(encoding="utf-8"))
        file, digest = plain(made_from["file"]), plain(made_from["sha256"])
        note = f"Converted from the original checkpoint {file} (SHA-256 {digest}) without further training."
    base_model = model.name_or_path if getattr(model.config, "_commit_hash", None) else None
    return model_card(model, repo_id, training, note, base_model if base_model != repo_id else None)


def _weights(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 of every safetensors file in a folder."""
    return {path.name: sha256(path) for path in folder.glob("*.safetensors")}
