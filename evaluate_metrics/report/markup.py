"""The page's HTML comes from the templates beside this file; the template engine escapes every text from data."""

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from .tables import number

_TEMPLATES = Environment(
    loader=PackageLoader(__package__),
    autoescape=select_autoescape(["html"]),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
_TEMPLATES.filters["number"] = number


def render(template: str, **values: object) -> Markup:
    """The HTML that `templates/{template}` makes of the values."""
    return Markup(_TEMPLATES.get_template(template).render(**values).strip())


def figures(charts: list[tuple[str, str]], caption: str) -> Markup:
    """Charts, (address, alternative text) each, in a grid under their caption; empty without charts."""
    return render("figures.html", charts=charts, caption=caption)
