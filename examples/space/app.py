"""Try a model on your own clip, in the browser: its own sound, silence, noise and an off-screen sound.

    python examples/space/app.py --model runs/s4          # then open http://127.0.0.1:7860

As a Space: see README.md beside this file.
"""

import argparse
import os
from pathlib import Path

import gradio as gr

from modeling_avsegformer.video.segment_video import load_pipeline

LABELS = {"own sound": "positive", "silence": "silence", "noise": "noise", "another sound": "off_screen"}
INTRODUCTION = """# Does it listen?

An audio-visual segmentation model marks what is heard. Upload a clip and choose what the model hears: the mask
should be there with the clip's own sound, and vanish with silence, noise, or the sound of something not shown.
"""


def build(model: str | None) -> gr.Blocks:
    """The page, with the model loaded."""
    segment_video = load_pipeline(model)

    # gradio reads the annotations.
    def segment(video: str, condition: str, sound: str | None, progress=gr.Progress(track_tqdm=True)):  # noqa: B008
        if video is None:
            raise gr.Error("Upload a clip first.")
        # Beside the upload: gradio deletes both, see `delete_cache`.
        folder = Path(video).parent
        chosen = LABELS[condition]
        try:
            written = segment_video(
                video,
                output=folder / f"heard_{chosen}.mp4",
                panels=folder / "conditions.mp4",
                condition=chosen,
                audio=sound,
                progress=True,
            )
        except (ValueError, OSError) as error:
            message = str(error)
            for path in filter(None, (video, sound)):
                message = message.replace(path, Path(path).name)  # the server's folders help nobody
            raise gr.Error(message) from error
        return str(written["output"]), str(written["panels"])

    with gr.Blocks(title="Does it listen?", delete_cache=(3600, 3600)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Clip", sources=["upload", "webcam"])
                condition = gr.Radio(list(LABELS), value="own sound", label="What the model hears")
                sound = gr.Audio(label="Another sound (a siren if empty)", type="filepath")
                button = gr.Button("Segment", variant="primary")
            heard = gr.Video(label="The condition you chose, with its sound", elem_id="heard")
        gr.Markdown("## All four conditions, with the clip's own sound")
        panels = gr.Video(show_label=False, elem_id="conditions")  # a label would cover the first panel's name
        button.click(segment, [video, condition, sound], [heard, panels])
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("MODEL"), help="folder or Hub id; default: $MODEL")
    parser.add_argument("--port", type=int, help="default: 7860, or the next that is free")
    args = parser.parse_args()
    try:
        page = build(args.model)
    except ValueError as error:
        parser.exit(2, f"app.py: {error}\n")
    page.launch(server_port=args.port)


if __name__ == "__main__":
    main()
