"""`avs-segment`: masks of what is heard, drawn on your own video.

    avs-segment clip.mp4 -o out.mp4 --model runs/s4                       # the mask over the video, with its sound
    avs-segment clip.mp4 -o out.mp4 --model runs/s4 --audio other.wav     # what the model does with another sound
    avs-segment clip.mp4 -o panels.mp4 --model runs/s4 --conditions       # own sound, silence, noise, others
    avs-segment clip.mp4 --masks masks.webm --model runs/s4               # transparent masks: .webm, .mov or a folder

The model runs on `--masks_per_second` frames a second, each with the second of sound around it; between them masks are
interpolated. For each sound the command says how much of the picture is marked and how similar the model finds sound
and picture, from -1 to 1.
"""

import argparse
import signal
import sys
from pathlib import Path

from tqdm.auto import tqdm
from transformers.utils import is_av_available

from .. import __version__

DEMO = Path("outputs/demo")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="avs-segment",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("video", type=Path, help="any video that FFmpeg reads")
    parser.add_argument(
        "-o", "--output", type=Path, help="video to write: .mp4, .mov, .mkv or .webm; replaced if there"
    )
    parser.add_argument(
        "--masks", type=Path, help="transparent masks to write: .webm, .mov, or a new folder of PNG files"
    )
    parser.add_argument("--model", help=f"folder or Hub id; default: the model that `make demo` leaves in {DEMO}")
    parser.add_argument(
        "--audio", type=Path, help="the model hears this file instead, repeated; also the output's sound"
    )
    parser.add_argument(
        "--conditions",
        action="store_true",
        help="five panels side by side: own sound, silence, noise, off-screen (--audio, else a siren), unseen",
    )
    parser.add_argument(
        "--unseen",
        metavar="KIND",
        help="the model hears a sound that no training uses: alarm, wail, rain, engine, choir, clock, animal, sweeps, "
        "bells, guitar; with --conditions: the fifth panel's (default there: bells)",
    )
    parser.add_argument("--masks_per_second", type=float, default=4.0, help="how often the model looks (default: 4)")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability of a mask's pixels (default: 0.5)")
    parser.add_argument("--device", help="cpu, cuda, ...; default: an accelerator if there is one")
    args = parser.parse_args(arguments)
    if args.output is None and args.masks is None:
        parser.error("expected -o out.mp4, --masks masks.webm or both: nothing to write")
    if args.conditions and args.output is None:
        parser.error("expected -o panels.mp4 with --conditions")
    if arguments is None:  # run as a command: `kill` cleans up like Ctrl-C
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
    try:
        return segment_video(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"avs-segment: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("avs-segment: stopped, nothing was written", file=sys.stderr)
        return 130


class _Bar(tqdm):
    """Stops at the next frame if Python lost the interrupt while it freed an object."""

    stopped = False

    def update(self, n=1):
        if self.stopped:
            raise KeyboardInterrupt
        return super().update(n)


def _stop(number, frame):
    _Bar.stopped = True
    raise KeyboardInterrupt


def segment_video(args: argparse.Namespace) -> int:
    if not is_av_available():
        raise ImportError("Expected PyAV, which reads and writes videos: pip install av")
    from .explain import trained_on, verdict
    from .video import check_mask_output, check_suffix, read_info

    # Before the model, which takes longer to load.
    info = read_info(args.video)
    if args.output is not None:
        check_suffix(args.output)
    if args.masks is not None:
        check_mask_output(args.masks)
    if not info.has_audio and (args.conditions or (args.audio, args.unseen) == (None, None)):
        print(f"avs-segment: {args.video} has no sound; the model hears silence in its place", file=sys.stderr)

    segment = load_pipeline(args.model, args.device)
    heard = segment.write(
        args.video,
        output=None if args.conditions else args.output,
        panels=args.output if args.conditions else None,
        masks=args.masks,
        condition="positive" if args.conditions else None,
        audio=args.audio,
        unseen=args.unseen or ("bells" if args.conditions else None),
        threshold=args.threshold,
        masks_per_second=args.masks_per_second,
        progress=_Bar,
    )
    for path in (args.masks, args.output) if args.conditions else (args.output, args.masks):
        if path is not None:
            print(f"wrote {path}")
    for sound in heard.values():
        print(f"{sound.label}: {sound}", file=sys.stderr)
    if args.conditions:
        print(verdict(heard), file=sys.stderr)
    print(trained_on(segment.model.name_or_path), file=sys.stderr)
    return 0


def load_pipeline(model: str | None, device: str | None = None):
    """The pipeline with a model of this project: a folder or Hub id, or the first robust model of the demo.

    Raises ValueError where there is no such model or device, or it is another kind of model.
    """
    import torch
    from transformers import AutoConfig, pipeline

    from ..configuration_avsegformer import AVSegFormerConfig

    if model is None:
        found = sorted(DEMO.glob("robust_seed*/last/config.json"))
        if not found:
            raise ValueError(
                f"Expected --model, a folder or a Hub id, since {DEMO} holds no model. `make demo` trains a small one "
                "there; `python -m modeling_avsegformer.convert_original_checkpoint` makes one of released weights."
            )
        model = str(found[0].parent)
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected a model's folder (with config.json) or a Hub id for --model, got {model!r}. "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    if not isinstance(config, AVSegFormerConfig):
        raise ValueError(f"Expected an AVSegFormer model, but {model} is a model of type {config.model_type!r}.")
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"Expected a device of this machine for --device, got {device!r}. {reason}") from error
    return pipeline("audio-visual-segmentation", model=model, device=device)


if __name__ == "__main__":
    sys.exit(main())
