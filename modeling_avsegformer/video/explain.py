"""What a result means: how much is marked, how sure the model is, what it was trained on, whether it listens."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from transformers.utils import cached_file

NOTHING = 0.005  # share of the picture; less is a speck, whatever its colour
MUCH_THE_SAME = 0.5  # of the area with the own sound


@dataclass
class Heard:
    """What a model marked with one sound.

    Attributes:
        label: the sound, for people.
        areas: the share of the picture that is marked, in [0, 1], of each frame.
        similarities: cosine of sound and picture, in [-1, 1], of each frame: trained towards 1 where the sound is that
            of something visible, towards -1 where it is not. NaN without a similarity head.
    """

    label: str
    areas: list[float] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)

    @property
    def area(self) -> float:
        return float(np.mean(self.areas))

    @property
    def similarity(self) -> float | None:
        mean = float(np.mean(self.similarities))
        return None if np.isnan(mean) else mean

    def __str__(self) -> str:
        sure = "" if self.similarity is None else f", similarity {self.similarity:+.2f}"
        return f"{100 * self.area:.1f} % of the picture marked{sure}"


def trained_on(model: str) -> str:
    """A sentence about what a `from_pretrained` folder or Hub id was trained on, as far as its files tell.

    Read from the trainer's `trainer_state.json`, the converter's `conversion.json`, else the model card.
    """
    state, conversion, card = (_read(model, name) for name in ("trainer_state.json", "conversion.json", "README.md"))
    if state and (subset := json.loads(state).get("settings", {}).get("subset")):
        return _of_subset(subset)
    if conversion:
        return (
            f"Converted from the original checkpoint {json.loads(conversion).get('file')}; its file does not say more."
        )
    if found := re.search(r"Trained on the train split of AVSBench-Robust `(\w+)`", card):
        return _of_subset(found[1])
    if found := re.search(r"Converted from the original checkpoint (\S+)", card):
        return f"Converted from the original checkpoint {found[1]}; its card does not say more."
    return "Its files do not say what it was trained on."


def _read(model: str, name: str) -> str:
    path = cached_file(
        model, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return Path(path).read_text(encoding="utf-8") if path else ""


def _of_subset(subset: str) -> str:
    from avsbench_robust_dataset.categories import SINGLE_SOURCE_GROUPS
    from avsbench_robust_dataset.synthetic import DEMO_CATEGORIES

    categories = {"s4": tuple(SINGLE_SOURCE_GROUPS), "demo": DEMO_CATEGORIES}.get(subset, ())
    names = ", ".join(category.replace("_", " ") for category in categories)
    kinds = {
        "s4": f"real videos of {len(categories)} kinds of objects: {names}",
        "demo": f"drawn shapes with synthesised sounds, never a real video: {names}",
        "ms3": "real videos with several sounding objects: people, animals, instruments, vehicles",
    }
    return f"Trained on AVSBench-Robust {subset}" + (f", {kinds[subset]}." if subset in kinds else ".")


def verdict(heard: Mapping[str, Heard]) -> str:
    """A sentence on whether the model listens, of the conditions of one video; "positive" is the own sound;
    "muted", a part of it, does not count."""
    own, others = heard["positive"], {name: heard[name] for name in heard if name not in ("positive", "muted")}
    if own.area < NOTHING:
        marked = [other.label for other in others.values() if other.area >= NOTHING]
        if marked:
            return f"It marks nothing with the clip's own sound, but something with {_listed(marked)}: it is mistaken."
        return (
            "It marks nothing, whatever it hears, not even with the clip's own sound. So this clip does not show "
            "whether it listens: it may never have seen such an object, or the object makes no sound here."
        )
    same = [other.label for other in others.values() if other.area > MUCH_THE_SAME * own.area]
    some = [other.label for other in others.values() if other.area >= NOTHING]
    if not some:
        return "It listens: what it marks with the clip's own sound vanishes with every other sound."
    if not same:
        return f"It listens: of what it marks with the clip's own sound, little is left with {_listed(some)}."
    if len(same) == len(others):
        return "It does not listen: it marks much the same whatever it hears."
    return f"It listens in part: with {_listed(same)} it still marks much of what it marks with the clip's own sound."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
