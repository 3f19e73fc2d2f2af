"""The tables against the counts that the benchmark states."""

from collections import Counter

from avsbench_robust_dataset.categories import (
    LEAST_SUITABLE_MULTI,
    LEAST_SUITABLE_SINGLE,
    OBJECT_GROUPS,
    SINGLE_SOURCE_GROUPS,
)

GROUPS = {"music", "human", "animal", "device"}


def test_s4_has_23_categories_in_groups_of_6_3_6_8():
    assert Counter(SINGLE_SOURCE_GROUPS.values()) == {"music": 6, "human": 3, "animal": 6, "device": 8}


def test_avss_has_71_objects_and_background_is_device():
    assert len(OBJECT_GROUPS) == 71
    assert set(OBJECT_GROUPS.values()) == GROUPS
    assert OBJECT_GROUPS["background"] == "device"


def test_no_object_name_has_the_separator():
    assert not [name for name in OBJECT_GROUPS if "_" in name]


def test_least_suitable_contrasts():
    assert LEAST_SUITABLE_SINGLE == {"music": "human", "human": "music", "animal": "human"}
    assert LEAST_SUITABLE_MULTI == LEAST_SUITABLE_SINGLE | {"device": "music"}
