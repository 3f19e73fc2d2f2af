"""Names that come from data are text in the report, whatever they contain."""

import json
from html.parser import HTMLParser

import pytest

from evaluate_metrics import report
from evaluate_metrics.clip_rows import results, write_rows

EVIL = [
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    '" onerror="alert(1)" x="',
    "javascript:alert(1)",
    "</title></style><svg onload=alert(1)>",
    "<!-- --><a href=javascript:alert(1)>x</a>",
    "{body} %s $x$ \\u003cscript\\u003e",
]


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs


def row(index: int, evil: str) -> dict:
    frames = {
        "iou": [0.5, 0.1 * index],
        "area": [0.2, 0.3],
        "f_score": 0.5,
        "fpr_curve": [0.1] * 11,
        "similarity": None,
    }
    about = {"clip_id": f"{evil}{index}", "category": evil, "group": evil, "source_video": f"{evil}{index}"}
    return about | {"mask_area": [0.1, 0.2], "conditions": {"positive": frames, "silence": frames}}


@pytest.mark.slow
@pytest.mark.parametrize("evil", EVIL)
def test_names_of_clips_categories_runs_and_models(evil, tmp_path):

    rows = [row(index, evil) for index in range(4)]
    folder = tmp_path / "run"
    folder.mkdir()
    write_rows(folder / "clips.jsonl", rows)
    found = {"model": evil, "subset": evil, "split": evil, "clips_file": "clips.jsonl", "settings": {evil: evil}}
    (folder / "results.json").write_text(json.dumps(found | results(rows) | {"versions": {evil: evil}}))
    path = report.write_report(tmp_path / "out", [report.read_run(evil, folder)], title=evil, notes=[evil])
    harmless = report.write_report(tmp_path / "plain", [report.read_run("name", folder)], title="t", notes=["n"])
    page, plain = (Page(file.read_text(encoding="utf-8")) for file in (path, harmless))
    assert page.tags == plain.tags and "script" not in page.tags and "svg" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert links and all(value.startswith(("#", "data:image/")) for value in links)
