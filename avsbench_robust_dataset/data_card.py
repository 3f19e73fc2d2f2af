"""The data card of an exported folder: made from its content, and read to tell such a folder from any other."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from datasets import Audio
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from .builder import AvsbenchRobust
from .subsets import SPLITS, SUBSETS

logger = logging.getLogger(__name__)

TAG = "avsbench-robust"
FORBIDDEN = (
    "AVSBench's frames, masks and sounds come from YouTube clips and are handed out by its authors on request; they "
    "must not be published without permission."
)


def make_card(configs: MetadataConfigs, infos: DatasetInfosDict) -> DatasetCard:
    for name, config in configs.items():
        config.pop("default", None)
        if name == AvsbenchRobust.DEFAULT_CONFIG_NAME:
            config["default"] = True
    of_others = {"license_name": "avsbench", "license_link": "https://github.com/OpenNLPLab/AVSBench"}
    terms: dict[str, Any] = {} if is_free(infos) else of_others
    data = DatasetCardData(
        pretty_name="AVSBench-Robust",
        license="apache-2.0" if is_free(infos) else "other",
        task_categories=["image-segmentation"],
        tags=[TAG, "audio-visual-segmentation", "avsbench"],
        **terms,
    )
    infos.to_dataset_card_data(data)
    configs.to_dataset_card_data(data)
    counts: dict[str, str] = {}
    for name, info in sorted(infos.items()):
        splits = [info.splits.get(f"{split}_positive") for split in SPLITS]
        counts[name] = " / ".join(str(split.num_examples if split else 0) for split in splits)
    wav = [name for name in counts if isinstance(infos[name].features["audio"], Audio)]
    array = [name for name in counts if name not in wav]
    return DatasetCard.from_template(
        data,
        template_path=str(Path(__file__).with_name("data_card.md")),
        is_free=is_free(infos),
        forbidden=FORBIDDEN,
        subset=next((name for name in SUBSETS if name in configs), None),
        infos=dict(sorted(infos.items())),
        configs=configs,
        counts=counts,
        wav=wav,
        array=array,
    )


def is_free(subsets: Iterable[str]) -> bool:
    """Whether nothing in it is AVSBench's."""
    return set(subsets) <= {"demo"}


def read_card(folder: Path) -> DatasetCard:
    """The card of a folder that `export` wrote.

    Raises:
        FileExistsError: it is something else, or holds something else too, or lacks files.
    """
    what = f"Expected {folder} not to exist, or to be what `avs-data export` wrote"
    advice = "Choose another folder, or remove this one."
    if not folder.is_dir():
        raise FileExistsError(f"{what}, got a file. {advice}")
    if not (folder / "README.md").is_file():
        raise FileExistsError(f"{what}, got a folder without its README.md. {advice}")
    card = parse_card((folder / "README.md").read_text(encoding="utf-8"), str(folder / "README.md"))
    if card is None:
        raise FileExistsError(f"{what}, got another README.md there. {advice}")
    infos = DatasetInfosDict.from_dataset_card_data(card.data)
    expected = {"README.md", *infos}
    # What git and the Hub's client put beside a download.
    strangers = sorted({path.name for path in folder.iterdir()} - expected - {".gitattributes", ".cache"})
    strangers += [
        path.name for name in infos for path in (folder / name).glob("*") if path.suffix != ".parquet" or path.is_dir()
    ]
    if strangers:
        raise FileExistsError(f"{what}, but it also holds {', '.join(strangers[:3])}. {advice}")
    for name, info in infos.items():
        size = sum(path.stat().st_size for path in (folder / name).glob("*.parquet"))
        if size != info.download_size:
            raise FileExistsError(
                f"Expected {info.download_size} bytes in {folder / name}, as its card says, got {size}. Remove "
                f"{folder} and export every subset again."
            )
    return card


def parse_card(text: str, name: str) -> DatasetCard | None:
    """The card, None if `export` did not write it."""
    try:
        card = DatasetCard(text)
        configs = MetadataConfigs.from_dataset_card_data(card.data)
    except (ValueError, yaml.YAMLError) as error:
        logger.warning("The front matter of %s cannot be read: %s", name, error)
        return None
    return card if TAG in (card.data.get("tags") or []) and configs and set(configs) <= set(SUBSETS) else None
