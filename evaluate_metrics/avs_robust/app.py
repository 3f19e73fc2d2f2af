"""The metric's page: paste a few clips as JSON, get the scores. `python app.py`, then open http://127.0.0.1:7860.

`evaluate.utils.launch_gradio_widget` is made for gradio 3, which does not start beside today's packages, and offers a
table of numbers, which masks are not.
"""

import json
from pathlib import Path

import evaluate
import gradio as gr

EXAMPLE = """{
  "predictions": [[[0.9, 0.9], [0.1, 0.1]], [[0.1, 0.1], [0.1, 0.1]]],
  "references": [[[1, 0], [0, 0]], [[1, 0], [0, 0]]],
  "conditions": ["positive", "silence"],
  "clip_ids": ["dog_1", "dog_1"]
}"""
HERE = Path(__file__).resolve().parent
INPUTS = ["predictions", "references", "conditions", "clip_ids"]
# On a phone, long names in tables break instead of leaving a letter's width to the other columns.
CSS = """
.gradio-container { width: 100%; max-width: 1100px !important; margin: 0 auto; }
.prose td code { white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 640px) {
    .prose table { table-layout: fixed; width: 100%; font-size: 0.85em; }
    .prose :is(td, th) { padding: 0.4em !important; overflow-wrap: anywhere; }
    .prose :is(td, th):first-child { width: 34%; }
    #scores * { font-size: 12px !important; }
}
"""


def compute(text: str) -> dict:
    """The scores of clips in JSON."""
    try:
        batch = json.loads(text)
    except json.JSONDecodeError as error:
        raise gr.Error(f"Expected JSON, got something else: {error}.") from error
    if not isinstance(batch, dict) or sorted(batch) != sorted(INPUTS):
        raise gr.Error(f"Expected one JSON object with {', '.join(INPUTS)}.")
    metric = evaluate.load(str(HERE / "avs_robust.py"))
    try:
        metric.add_batch(**batch)
        return metric.compute()
    except (ValueError, TypeError) as error:
        raise gr.Error(str(error)) from error


def build() -> gr.Blocks:
    card = (HERE / "README.md").read_text(encoding="utf-8").split("\n---\n", 1)[1]
    with gr.Blocks(title="AVS Robust") as page:
        gr.Markdown("# AVS Robust\nProbabilities in [0, 1], masks of 0 and 1, one condition and one clip id a clip.")
        with gr.Row():
            with gr.Column(min_width=300):
                clips = gr.Code(EXAMPLE, language="json", label="Clips", wrap_lines=True)
                button = gr.Button("Compute", variant="primary")
            with gr.Column(min_width=300):
                scores = gr.JSON(label="Scores", elem_id="scores")
        button.click(compute, clips, scores)
        gr.Markdown(card)
    return page


if __name__ == "__main__":
    build().launch(css=CSS)
