"""What a reader should know of the data behind the scores, in one sentence each: masks, draw, mute clips."""

from collections.abc import Mapping, Sequence

__all__ = ["data_notes"]

SHOWN = 5  # mute clips that a sentence names
UNDER = {"positive": "their own sound", "off_screen": "their off-screen sound", "unseen": "their unseen sound"}


def data_notes(results: Mapping) -> list[str]:
    """Plain sentences on what `results.json` says of its data; what it does not say is left out.

    Args:
        results: with `subset`, `annotation`, `draw` and `mute_clips` where they are known.
    """
    notes = [_annotation(results)] if results.get("annotation") else []
    if results.get("draw"):
        notes.append(_draw(results["draw"]))
    if results.get("mute_clips"):
        notes.append(_mute(results["mute_clips"]))
    return notes


def _annotation(results: Mapping) -> str:
    if results.get("subset") == "demo":
        return "Masks: those that were drawn with the synthetic clips (layout of AVSBench-object)."
    other = {"object": "semantic", "semantic": "object"}[results["annotation"]]
    return (
        f"Masks: AVSBench-{results['annotation']}'s; scores on AVSBench-{other}'s masks, another annotation, are not "
        "comparable with these."
    )


def _draw(draw: Mapping) -> str:
    auc, unused, clips = draw["sound_auc"], draw["sounds_unused"], draw["clips"]
    if not unused:
        return (
            f"Off-screen draw: each of the split's {clips} sounds is heard once with its own picture and once off "
            f"screen, so that which sound it is tells nothing by itself (AUC {auc:.2f})."
        )
    return (
        f"Off-screen draw: {unused} of the {clips} sounds of the split are never heard off screen and "
        f"{draw['sounds_reused']} more than once (at most {draw['most_uses']} times), so that a model that only "
        f"recognises the sound and never looks at the picture tells off-screen from positive sound with an AUC of "
        f"{auc:.2f} (0.50 is guessing)."
    )


def _mute(mute: Mapping[str, Sequence[str]]) -> str:
    found = [
        f"{len(clips)} in {UNDER.get(condition, condition)} ({_names(clips)})"
        for condition, clips in mute.items()
        if clips
    ]
    if not found:
        return "Mute clips: none; every clip hears something in each recorded sound."
    return f"Mute clips, which hear silence in place of a recorded sound: {', '.join(found)}."


def _names(clips: Sequence[str]) -> str:
    return ", ".join(clips[:SHOWN]) + (f" and {len(clips) - SHOWN} more" if len(clips) > SHOWN else "")
