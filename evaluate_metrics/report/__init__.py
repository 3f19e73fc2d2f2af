"""Robustness scores as evidence: tables, charts, curves and pictures in one self-contained HTML page."""

from ..results import Run, read_run
from .gallery import Clip, read_download, read_gallery
from .page import write_report
from .paper import latex_paper_table, markdown_paper_table
from .tables import latex_table, markdown_table, results_table

__all__ = [
    "Clip",
    "Run",
    "latex_paper_table",
    "latex_table",
    "markdown_paper_table",
    "markdown_table",
    "read_download",
    "read_gallery",
    "read_run",
    "results_table",
    "write_report",
]
