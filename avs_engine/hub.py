"""The Hub's arguments, which both scripts share, and the upload of a trained or scored model."""

import argparse
import json
from pathlib import Path

from modeling_avsegformer import AVSegFormerForSegmentation, AVSegFormerProcessor

from .predict import Noted


def add_hub_arguments(parser: argparse.ArgumentParser) -> None:
    hub = parser.add_argument_group("Hub")
    hub.add_argument("--push_to_hub", action="store_true", help="publish model, processor, card, code")
    hub.add_argument("--hub_model_id", help="user/name; default: your user name and the model's folder")
    hub.add_argument("--hub_private", action="store_true", help="never to a public repository")
    hub.add_argument("--hub_token", help="with write permission; default: HF_TOKEN, or that of `hf auth login`")


def publish(model: str | Path, repo_id: str, args: argparse.Namespace, results_file: Path | None = None) -> None:
    """Publishes a `from_pretrained` folder or Hub id with its processor and its scores; for one process.

    Raises:
        PermissionError, ConnectionError, ValueError: with a note how to repeat what failed.
    """
    again = f"AVSegFormerForSegmentation.from_pretrained({str(model)!r}).push_to_hub({repo_id!r}"
    again += ", private=True" if args.hub_private else ""
    again += f", results=json.load(open({str(results_file)!r}))" if results_file else ""
    with Noted(f"All that was computed is saved. To publish it later, in Python: {again})"):
        network = AVSegFormerForSegmentation.from_pretrained(model)
        processor = AVSegFormerProcessor.from_pretrained(model)
        commit = network.push_to_hub(
            repo_id,
            processor=processor,
            results=json.loads(results_file.read_text(encoding="utf-8")) if results_file else None,
            private=args.hub_private or None,
            token=args.hub_token,
            commit_message="Upload AVSegFormer and its robustness scores" if results_file else "Upload AVSegFormer",
        )
    print(f"published: {commit.commit_url}")
