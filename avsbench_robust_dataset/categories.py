"""Which names the benchmark knows, which semantic group each belongs to, and which groups contrast least.

Groups: music, human, animal, device. The 23 single-source categories and their groups are those of the AVSBench-Robust
release; the 71 object names are those of AVSS (AVSBench-semantic, `label2idx.json`), of which the release groups the
ones that occur in MS3. The rest of AVSS is grouped here by the same reading: what plays music, what speaks, what is
alive, and everything else, `background` included, as device.

Source: https://arxiv.org/abs/2502.00358 (AVSBench-Robust), https://arxiv.org/abs/2301.13190 (AVSS)
"""


def _by_name(groups: dict[str, str]) -> dict[str, str]:
    """Turns {group: "name name …"} into {name: group}."""
    return {name: group for group, names in groups.items() for name in names.split()}


# S4: category -> group; 6 + 3 + 6 + 8 categories
SINGLE_SOURCE_GROUPS = _by_name(
    {
        "music": "playing_acoustic_guitar playing_glockenspiel playing_piano playing_tabla playing_ukulele "
        "playing_violin",
        "human": "baby_laughter female_singing male_speech",
        "animal": "cat_meowing coyote_howling dog_barking horse_clip-clop lions_roaring mynah_bird_singing",
        "device": "ambulance_siren cap_gun_shooting chainsawing_trees driving_buses helicopter lawn_mowing race_car "
        "typing_on_computer_keyboard",
    }
)

# AVSS: object -> group. `keyboard` is the one people type on: AVSS renames S4's typing_on_computer_keyboard to it.
OBJECT_GROUPS = _by_name(
    {
        "music": "accordion bassoon cello clarinet drum erhu flute guitar guzheng handpan harmonica harp marimba "
        "piano pipa saxophone sitar sorna tabla trombone trumpet tuba ukulele violin",
        "human": "baby boy girl man woman",
        "animal": "bird cat dog donkey duck elephant goose hen horse leopard lion parrot pig sheep squirrel tiger "
        "wolf",
        "device": "background airplane axe bell boat bus car clipper clock emergency-car frying-food gun hair-dryer "
        "helicopter keyboard missile-rocket motorcycle mower saw tank tractor train truck utv vacuum-cleaner",
    }
)

# AVSS: object of a single-source clip (label v1s) -> S4's name of the same category; one to one in AVSS's metadata.csv
CATEGORY_OF_OBJECT = {
    "baby": "baby_laughter",
    "bird": "mynah_bird_singing",
    "bus": "driving_buses",
    "car": "race_car",
    "cat": "cat_meowing",
    "dog": "dog_barking",
    "emergency-car": "ambulance_siren",
    "guitar": "playing_acoustic_guitar",
    "gun": "cap_gun_shooting",
    "helicopter": "helicopter",
    "horse": "horse_clip-clop",
    "keyboard": "typing_on_computer_keyboard",
    "lion": "lions_roaring",
    "man": "male_speech",
    "marimba": "playing_glockenspiel",
    "mower": "lawn_mowing",
    "piano": "playing_piano",
    "saw": "chainsawing_trees",
    "tabla": "playing_tabla",
    "ukulele": "playing_ukulele",
    "violin": "playing_violin",
    "wolf": "coyote_howling",
    "woman": "female_singing",
}

# group of the picture -> the group whose sound contrasts least with it. In the S4 release device's counterpart is
# "vehicle", a group without members; in the MS3 release it is music.
LEAST_SUITABLE_SINGLE = {"music": "human", "human": "music", "animal": "human"}
LEAST_SUITABLE_MULTI = {"music": "human", "human": "music", "animal": "human", "device": "music"}
