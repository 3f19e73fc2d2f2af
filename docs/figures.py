"""Draws the pictures of the documentation.

python docs/figures.py metric                     # docs/images/*.svg of the page about the metric
python docs/figures.py demo --demo outputs/demo   # docs/images/demo.png, from what `make demo` has written
"""

import argparse
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
from datasets import load_dataset
from matplotlib.figure import Figure
from nbclient import NotebookClient
from PIL import Image

import avsbench_robust_dataset  # noqa: F401  (registers the data set)
from avsbench_robust_dataset.conditions import CONDITIONS
from evaluate_metrics.avs_robust.avs_robust import clip_statistics, harmonic_mean
from evaluate_metrics.report.overlay import COLORS, fit_tile, prediction_tile

IMAGES = Path(__file__).parent / "images"
NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
SHOWN = (*CONDITIONS, "unseen")
TITLES = {"positive": "own sound", "off_screen": "off-screen sound", "unseen": "unseen sound"}
ROWS = {"baseline": "trained on matching\nsound only", "robust": "trained by the\nrecipe listen"}
MIDDLE = 2  # index of the frame that is shown, of five; files count from 1
# Text as paths, no date, fixed salt: the same numbers give the same bytes.
STYLE = {"svg.fonttype": "path", "svg.hashsalt": "avs-docs", "font.size": 10}


def save_svg(figure: Figure, name: str) -> None:
    figure.savefig(IMAGES / name, metadata={"Date": None})


def demo_picture(demo: Path, clip_id: str | None) -> None:
    """One test clip of a finished demo, under five sounds, with the masks of the first seed's two models."""
    found = sorted(demo.glob("data_seed*"))
    if len(found) != 1:
        raise FileNotFoundError(f"Expected one folder data_seed… in {demo}, got {len(found)}. Run `make demo`.")
    data_dir = found[0]
    splits = {
        name: load_dataset("avsbench_robust", "demo", data_dir=str(data_dir), split=f"test_{name}", conditions=SHOWN)
        for name in SHOWN
    }
    # Without --clip: the first clip that shows a second object, which is silent.
    silent = sorted(path.name for path in data_dir.glob("Single-source/s4_data/silent_masks/test/*/*"))
    clip_id = clip_id or silent[0]
    index = splits["positive"]["clip_id"][:].index(clip_id)
    clips = {name: split[index] for name, split in splits.items()}
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    axes = figure.subplots(len(ROWS), len(SHOWN))
    for row, (model, label) in zip(axes, ROWS.items(), strict=True):
        for axis, (name, clip) in zip(row, clips.items(), strict=True):
            folder = demo / f"{model}_seed0" / "eval" / "predictions" / name / clip["category"] / clip_id
            probability = np.asarray(Image.open(folder / f"{clip_id}_{MIDDLE + 1}.png"))
            truth = np.asarray(clip["masks"][MIDDLE]) > 0
            color = COLORS[list(ROWS).index(model)]
            axis.imshow(prediction_tile(fit_tile(clip["frames"][MIDDLE]), probability, truth, color))
            axis.set(xticks=[], yticks=[], frame_on=False)
        row[0].set_ylabel(label, fontsize=11)
    for axis, (name, clip) in zip(axes[0], clips.items(), strict=True):
        heard = clip["audio_category"].replace("_", " ") or {"silence": "zeros", "noise": "white"}.get(
            name, "of no trained kind"
        )
        axis.set_title(f"{TITLES.get(name, name)}\n{heard}", fontsize=11)
    pixels = io.BytesIO()
    figure.savefig(pixels, dpi=100)
    Image.open(pixels).convert("RGB").quantize(192).save(IMAGES / "demo.png", optimize=True)  # a third of the bytes
    print(clip_id, {name: clip["audio_source"] for name, clip in clips.items()})


def g_miou_figure() -> None:
    """G-mIoU over N for three models, and the floor over P."""
    axes_pair = Figure(figsize=(8.4, 3.4), layout="constrained").subplots(1, 2)
    left, right = axes_pair
    scores = np.linspace(0, 1, 201)
    for positive, dash in ((0.9, "-"), (0.7, "--"), (0.5, ":")):
        g_miou = harmonic_mean(np.full_like(scores, positive), 1 - scores)
        left.plot(scores, g_miou, dash, color=COLORS[1], label=f"P = {positive}")
        left.plot(positive, harmonic_mean(positive, 1 - positive), "o", color=COLORS[0])
    left.plot([], [], "o", color=COLORS[0], label="a model that never listens: N = P")
    left.set(xlabel="N, mean mIoU under negative sound (lower is better)", ylabel="G-mIoU", xlim=(0, 1), ylim=(0, 1))
    right.plot(scores, harmonic_mean(scores, 1 - scores), color=COLORS[0], label="floor, 2P(1 − P)")
    right.plot(
        scores, harmonic_mean(scores, np.ones_like(scores)), color=COLORS[1], label="silent on negatives, N = 0"
    )
    right.set(xlabel="P, mIoU under the clip's own sound", ylabel="G-mIoU", xlim=(0, 1), ylim=(0, 1))
    for axes in axes_pair:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower left" if axes is left else "upper left")
    save_svg(left.figure, "g_miou.svg")


def f_floor_figure() -> None:
    """F of an empty prediction, measured with the metric, over the share of the frame that the object covers."""
    pixels = 10_000
    shares = np.concatenate([[0.001, 0.005], np.arange(1, 21) / 40])
    floors = []
    for share in shares:
        mask = np.arange(pixels) < share * pixels
        statistics, _ = clip_statistics(np.zeros((1, pixels), np.float32), mask[None])
        floors.append(statistics["f_score"])
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(shares, floors, "o-", color=COLORS[0], markersize=3)
    axes.set(xlabel="share of the frame that the object covers", ylabel="F of a mask that is empty", xlim=(0, 0.5))
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    save_svg(figure, "f_floor.svg")


def run_notebook() -> None:
    """Runs the notebook in an empty folder and stores its results, without the time of day."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, resources=resources, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # progress bars and warnings, which name files of this machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, NOTEBOOK)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["metric", "demo", "notebook"])
    parser.add_argument("--demo", type=Path, default=Path("outputs/demo"), help="folder of a finished demo")
    parser.add_argument("--clip", help="id of the test clip to show; default: the first with two visible objects")
    args = parser.parse_args(argv)
    IMAGES.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        if args.what == "demo":
            demo_picture(args.demo, args.clip)
        elif args.what == "notebook":
            run_notebook()
        else:
            g_miou_figure()
            f_floor_figure()


if __name__ == "__main__":
    main()
