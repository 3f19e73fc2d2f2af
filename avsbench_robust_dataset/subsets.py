"""What the subsets differ in, as data: one row each for `s4`, `ms3` and `demo`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .categories import LEAST_SUITABLE_MULTI, LEAST_SUITABLE_SINGLE, OBJECT_GROUPS, SINGLE_SOURCE_GROUPS

FRAMES_PER_CLIP = 5  # one a second
SAMPLING_RATE = 16000  # Hz
SAMPLES = 5 * SAMPLING_RATE  # a clip
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # name in `datasets` -> name in the CSV and in paths
LAYOUTS = ("object", "semantic")  # AVSBench-object and AVSBench-semantic, the two downloads


@dataclass(frozen=True)
class Clip:
    """One row of a subset's table.

    Attributes:
        clip_id: unique in the subset.
        split: as in the CSV: train, val or test.
        category: S4: the class; MS3: the objects joined by "_", "" where AVSS's metadata does not know the clip.
        labels: S4: the class alone; MS3: its objects, in AVSS's order.
        source_video: clips of one source video never lend each other their sound.
        uid: AVSBench-semantic's name of the clip's folder; "" in the other layout.
    """

    clip_id: str
    split: str
    category: str
    labels: tuple[str, ...]
    source_video: str
    uid: str = ""


@dataclass(frozen=True)
class Subset:
    """Where a subset lies in a download and which rule its off-screen sounds follow.

    Attributes:
        layout: one of `LAYOUTS`. `folder` to `wav` are of "object".
        folder: folder of the subset in the download; `table` and `media` lie in it.
        id_column, category_column: columns of `table`; without a category column the labels are AVSS's objects.
        frame, mask, wav: paths below `media` for {split}, {category}, {clip_id} and {number} from 1.
        silent_mask: such a path of the masks of objects that are visible and do not sound, which some clips have; None
            if the subset has none.
        train_masks: annotated frames of a training clip, the first ones; elsewhere all five are annotated.
        groups: label -> semantic group; the table of known labels.
        least_suitable: group of the picture -> group whose sounds contrast least with it.
        least_suitable_is_rule: whether such a sound breaks the rule (S4) or is only avoided where that is free (MS3).
        clip_suffix: what to take off a clip id to get its source video.
        avss_label: the subset's `label` in AVSBench-semantic's table and its folder there; None if it is not in it.
    """

    name: str
    folder: str
    table: str
    id_column: str
    category_column: str | None
    media: str
    frame: str
    mask: str
    wav: str
    train_masks: int
    groups: Mapping[str, str]
    least_suitable: Mapping[str, str]
    least_suitable_is_rule: bool
    clip_suffix: str
    avss_label: str | None = None
    layout: str = "object"
    silent_mask: str | None = None

    def source_video(self, clip_id: str) -> str:
        return re.sub(self.clip_suffix, "", clip_id) or clip_id

    def groups_of(self, clip: Clip) -> tuple[str, ...]:
        """The clip's semantic groups, sorted. A label that the table does not know is a group of its own."""
        return tuple(sorted({self.groups.get(label, label) for label in clip.labels}))

    def masks_of(self, split: str) -> int:
        """Number of masks of a clip of a split (CSV name)."""
        return self.train_masks if split == "train" else FRAMES_PER_CLIP


_S4 = Subset(
    name="s4",
    folder="Single-source",
    table="s4_meta_data.csv",
    id_column="name",
    category_column="category",
    media="s4_data",
    frame="visual_frames/{split}/{category}/{clip_id}/{clip_id}_{number}.png",
    mask="gt_masks/{split}/{category}/{clip_id}/{clip_id}_{number}.png",
    wav="audio_wav/{split}/{category}/{clip_id}.wav",
    train_masks=1,
    groups=SINGLE_SOURCE_GROUPS,
    least_suitable=LEAST_SUITABLE_SINGLE,
    least_suitable_is_rule=True,
    clip_suffix="",  # every S4 clip is of another video
    avss_label="v1s",
)
SUBSETS = {
    "s4": _S4,
    "ms3": Subset(
        name="ms3",
        folder="Multi-sources",
        table="ms3_meta_data.csv",
        id_column="video_id",
        category_column=None,
        media="ms3_data",
        frame="visual_frames/{clip_id}/{clip_id}.mp4_{number}.png",  # no split level here
        mask="gt_masks/{split}/{clip_id}/{clip_id}_{number}.png",
        wav="audio_wav/{split}/{clip_id}.wav",
        train_masks=FRAMES_PER_CLIP,
        groups=OBJECT_GROUPS,
        least_suitable=LEAST_SUITABLE_MULTI,
        least_suitable_is_rule=False,
        clip_suffix=r"_\d+$",
        avss_label="v1m",
    ),
    # Written by `avs-data demo` in S4's layout, with all five masks in train too, and with masks of silent objects.
    "demo": replace(
        _S4,
        name="demo",
        train_masks=FRAMES_PER_CLIP,
        avss_label=None,
        silent_mask="silent_masks/{split}/{category}/{clip_id}/{clip_id}_{number}.png",
    ),
}
