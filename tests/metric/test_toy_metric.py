"""A metric is added in one file, and appears wherever the others do."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate_metrics

PACKAGE = Path(evaluate_metrics.__file__).parent
TOY = """
METRICS += (
    Metric(
        key="missed",
        label="missed area",
        explanation="Share of the frame that is object and not marked.",
        statistic="missed",
        heard="lower",
        unheard="higher",
        general="G-missed",
        measure=lambda probabilities, masks: [
            float((mask & ~(frame > 0.5)).mean()) for frame, mask in zip(probabilities, masks)
        ],
    ),
)
"""
RUN = """
import json, sys
import numpy as np
from pathlib import Path
from huggingface_hub import ModelCard
from avs_engine.model_card import MARKER, with_results
from evaluate_metrics.avs_robust.avs_robust import AVSRobust
from evaluate_metrics.clip_rows import clip_row, results, write_rows
from evaluate_metrics.compare import compare_runs
from evaluate_metrics.report import latex_table, markdown_table, read_run, write_report

folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
metric, rows = AVSRobust(cache_dir=str(folder), experiment_id="toy"), []
for number in range(6):
    masks = rng.random((2, 4, 4)) < 0.5
    names = {"clip_id": str(number), "category": "ab"[number % 2], "group": None, "source_video": str(number)}
    probabilities = {name: rng.random((2, 4, 4)).astype(np.float32) for name in ("positive", "silence", "unseen")}
    rows.append(clip_row(names, masks, probabilities))
    for name in ("positive", "silence"):
        metric.add(prediction=probabilities[name], reference=masks, condition=name, clip_id=str(number))
found = results(rows, ["unseen"])
write_rows(folder / "clips.jsonl", rows)
(folder / "results.json").write_text(json.dumps(found | {"clips_file": "clips.jsonl"}))
run = read_run("m", folder)
card = with_results(
    ModelCard(f"---\\n---\\n# m\\n\\n{MARKER}\\n"),
    found | {"subset": "demo", "split": "test", "settings": {"conditions": ["positive", "silence"]}},
)
page = write_report(folder / "report", [run])
texts = {
    "metric": metric.compute(),
    "row": rows[0],
    "results": found,
    "card": str(card),
    "page": page.read_text(encoding="utf-8"),
    "markdown": markdown_table([run]),
    "latex": latex_table([run]),
    "compared": list(compare_runs([run], [run], resamples=100).differences),
}
json.dump(texts, open(folder / "texts.json", "w", encoding="utf-8"))
"""


@pytest.mark.slow
def test_a_metric_of_one_file_is_in_rows_intervals_tables_charts_card_and_page(tmp_path):
    copy = tmp_path / "evaluate_metrics"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    table = copy / "avs_robust" / "avs_robust.py"
    source = table.read_text(encoding="utf-8")
    end = source.index("\n)\n", source.index("METRICS = (")) + 3
    table.write_text(source[:end] + TOY + source[end:], encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], check=True, env=environment, cwd=tmp_path)
    found = json.loads((tmp_path / "texts.json").read_text(encoding="utf-8"))
    assert all(len(found["row"]["conditions"][name]["missed"]) == 2 for name in ("positive", "silence", "unseen"))
    scores = {"missed_positive", "missed_silence", "g_missed"}
    assert scores <= found["metric"].keys() and scores <= found["results"]["scores"].keys()
    assert scores | {"missed_unseen", "g_missed_with_unseen"} <= found["results"]["intervals"].keys()
    assert "missed_positive" in found["results"]["breakdown"]["category"]["a"]
    assert "missed_silence" in found["results"]["breakdown_intervals"]["frame"]["1"]
    assert "missed area, silence" in found["markdown"] and "G-missed with unseen" in found["latex"]
    assert "| sound | mIoU | pooled IoU | F | FPR | missed area |" in found["card"] and "G-missed" in found["card"]
    page = found["page"]
    assert "Share of the frame that is object and not marked." in page
    assert 'alt="Bar chart. missed area: low under positive, high elsewhere.' in page
    assert scores <= set(found["compared"])
