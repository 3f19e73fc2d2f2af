"""Try a model on your own clip, in the browser, with six sounds: its own, whole and in part, and others.

    python examples/space/app.py --model runs/s4          # then open http://127.0.0.1:7860

As a Space: see README.md beside this file.
"""

import argparse
import os
import tempfile
from concurrent.futures import TimeoutError, wait
from multiprocessing import get_context
from pathlib import Path

import gradio as gr
import worker
from clips import write_clips
from pebble import ProcessExpired, ProcessPool

from avsbench_robust_dataset.timbres import UNSEEN_KINDS
from modeling_avsegformer.video.explain import verdict

CONDITIONS = ("positive", "silence", "noise", "off_screen", "unseen", "muted")
MAX_FILE = "50mb"
MAX_WAITING = 10  # visitors; one more is asked to come back later
KEPT = 1800  # seconds until uploads and results are deleted
INTRODUCTION = """# Does it listen?

A model for audio-visual segmentation should mark what is *heard*. Here it hears your clip six times: with its own
sound, with silence, with noise, with the sound of something else, with a sound that no training uses, and with its own
sound silenced in two of each five seconds. A model that listens marks the object while the clip's own sound is heard,
and nothing else.
"""
LIMITS = (
    f"At most {worker.MAX_SECONDS} seconds, {MAX_FILE.upper()}, {worker.MAX_SIZE[0]} x {worker.MAX_SIZE[1]} pixels. "
    f"Files are deleted within {KEPT // 60 + 5} minutes."
)
SIMILARITY = (
    "*Similarity*: how well sound and picture belong together for the model, from -1 to 1. If it marks nothing with "
    "the clip's own sound and finds them unlike, it does not know this object."
)
CSS = """
.gradio-container { width: 100%; max-width: 1280px !important; margin: 0 auto; }
#clip video { max-height: 280px; }
#verdict { min-height: 4em; }
#results { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); }
#results .prose { text-align: center; }
"""


class Page:
    """The page's function, and the process that does the work."""

    def __init__(self, model: str | None, time_limit: float):
        self.model, self.time_limit = model, time_limit
        # Not forked: threads of torch and gradio hold locks.
        self.pool = ProcessPool(max_workers=1, context=get_context("spawn"))
        try:
            self.training = self.pool.schedule(worker.describe, args=[model]).result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.pool.stop()
        self.pool.join()

    # gradio reads the annotations.
    def segment(self, video: str, sound: str | None, unseen: str, progress=gr.Progress()):  # noqa: B008
        if video is None:
            raise gr.Error("Upload a clip first, or click on an example.")
        yield nothing()  # never an earlier result beside a new clip
        with tempfile.TemporaryDirectory(prefix="does_it_listen_") as folder:
            arguments = [self.model, video, folder, sound, unseen]
            future = self.pool.schedule(worker.run, args=arguments, timeout=self.time_limit)
            done = Path(folder) / worker.PROGRESS
            while not wait([future], timeout=0.3).done:
                progress(float(done.read_text() or 0) if done.exists() else 0, desc="Listening")
            try:
                heard = future.result()
            except TimeoutError:
                raise gr.Error(f"Stopped after {self.time_limit:.0f} s. Try a shorter or smaller clip.") from None
            except ProcessExpired as error:
                raise gr.Error("This clip ended the process that read it. Copy or record it again.") from error
            except (ValueError, OSError) as error:
                raise gr.Error(without_folders(str(error), video, sound, folder)) from error
            results = [f"### {Path(video).stem}\n{verdict(heard)}", gr.Column(visible=True)]
            for condition in CONDITIONS:
                results += [str(Path(folder) / f"{condition}.mp4"), in_words(heard[condition])]
            yield results  # gradio takes the files over before the folder goes


def nothing() -> list:
    return ["", gr.Column(visible=False), *[None, ""] * len(CONDITIONS)]


def in_words(heard: worker.Heard) -> str:
    sure = "" if heard.similarity is None else f"<br>similarity **{heard.similarity:+.2f}**"
    return f"**{heard.label}**<br>**{100 * heard.area:.1f} %** marked{sure}"


def without_folders(message: str, *paths: str | None) -> str:
    """The message with file names alone: the server's folders help nobody."""
    for path in filter(None, paths):
        message = message.replace(path, Path(path).name).replace(f"{Path(path).parent}{os.sep}", "")
    return message


def build(page: Page, examples: list[Path]) -> gr.Blocks:
    with gr.Blocks(title="Does it listen?", delete_cache=(300, KEPT)) as blocks:
        gr.Markdown(INTRODUCTION)
        gr.Markdown(f"**This model.** {page.training}")
        with gr.Row():
            with gr.Column(min_width=300):
                video = gr.Video(label="Clip", sources=["upload", "webcam"], elem_id="clip", render=False)
                choices = gr.Examples(
                    [[str(path)] for path in examples], [video], example_labels=[p.stem for p in examples]
                )
                video.render()
                gr.Markdown(LIMITS)
                with gr.Accordion("Other sounds", open=False):
                    sound = gr.Audio(label="Something else (a siren if empty)", type="filepath", elem_id="sound")
                    unseen = gr.Dropdown(list(UNSEEN_KINDS), value="bells", label="Unseen in training")
                button = gr.Button("Listen", variant="primary")
            with gr.Column(scale=2, min_width=300):
                outputs = [gr.Markdown(elem_id="verdict")]
                with gr.Column(visible=False) as box:
                    outputs.append(box)
                    with gr.Row(elem_id="results"):
                        for condition in CONDITIONS:
                            with gr.Column(min_width=140):
                                outputs.append(gr.Video(show_label=False, elem_id=condition, interactive=False))
                                outputs.append(gr.Markdown(elem_id=f"{condition}_numbers"))
                    gr.Markdown(SIMILARITY)

        inputs = [video, sound, unseen]
        shown = {"show_progress_on": outputs[0], "scroll_to_output": True}
        run = button.click(page.segment, inputs, outputs, api_name="segment", **shown)
        run_example = choices.load_input_event.then(page.segment, inputs, outputs, api_visibility="private", **shown)
        changes = [video.upload, video.clear, video.stop_recording, sound.upload, sound.clear, unseen.input]
        hidden = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        gr.on(changes, nothing, None, outputs, cancels=[run, run_example], **hidden)
    return blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("MODEL"), help="folder or Hub id; default: $MODEL")
    parser.add_argument("--port", type=int, help="default: 7860, or the next that is free")
    parser.add_argument("--time_limit", type=float, default=180, help="seconds for one clip (default: 180)")
    args = parser.parse_args()
    try:
        page = Page(args.model, args.time_limit)
    except ValueError as error:
        parser.exit(2, f"app.py: {error}\n")
    with tempfile.TemporaryDirectory(prefix="does_it_listen_examples_") as folder:
        blocks = build(page, write_clips(Path(folder)))
        blocks.launch(server_port=args.port, max_file_size=MAX_FILE, css=CSS)
    page.close()


if __name__ == "__main__":
    main()
