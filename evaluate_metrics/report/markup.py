"""Pieces of HTML that several parts of the report need. Every text from data passes `text`."""

from html import escape

__all__ = ["figures", "scroll", "swatch", "text"]


def text(value) -> str:
    """`value` as HTML text or attribute value."""
    return escape(str(value), quote=True)


def swatch(color: str) -> str:
    return f'<span class="swatch" style="background:{color}" aria-hidden="true"></span>'


def scroll(label: str, table: str) -> str:
    """A table that a narrow screen scrolls sideways, by keyboard too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">{table}</div>'


def figures(charts: list[tuple[str, str]], caption: str) -> str:
    """Charts, (address, alternative text) each, in a grid under their caption."""
    if not charts:
        return ""
    images = "".join(f'<img src="{address}" alt="{text(alt)}">' for address, alt in charts)
    css = "charts" if len(charts) % 2 else "charts even"
    return f'<p class="hint">{text(caption)}</p><div class="{css}">{images}</div>'
