"""The help of every command is written where the locale knows ASCII alone."""

import re
from importlib.metadata import entry_points

import pytest

COMMANDS = {
    script.name: script
    for script in entry_points(group="console_scripts")
    if script.value.startswith(("avs", "eval", "mod"))
}


def shown(name, capsys, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", [name, *arguments, "--help"])
    with pytest.raises(SystemExit) as ended:
        COMMANDS[name].load()()
    assert ended.value.code in (None, 0)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["avs-audit", "avs-data", "avs-evaluate", "avs-log-mel", "avs-report", "avs-segment", "avs-train"]
)
def test_help_is_ascii(name, capsys, monkeypatch):
    text = shown(name, capsys, monkeypatch)
    subcommands = re.search(r"^  \{([a-z,]+)\}$", text, re.MULTILINE)
    pages = (
        [text, *(shown(name, capsys, monkeypatch, part) for part in subcommands[1].split(","))]
        if subcommands
        else [text]
    )
    for page in pages:
        assert "usage:" in page and page.isascii(), [character for character in page if not character.isascii()]
