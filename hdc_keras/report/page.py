"""Rendering of HTML pages from their templates. A page loads nothing from the network."""

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# SVG paths of the map's marks, centred on the origin; `embedding_map._SHAPES` is their number.
MARKS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-4.4-4.4h8.8v8.8h-8.8z",
    "M0-5.8L5.4 4.2H-5.4z",
    "M0-6.2L5.2 0L0 6.2L-5.2 0z",
    "M0 5.8L5.4-4.2H-5.4z",
    "M-1.9-5.5h3.8v3.6h3.6v3.8h-3.6v3.6h-3.8v-3.6h-3.6v-3.8h3.6z",
)

_WORD_START = re.compile(r"(?<=[a-z\d])(?=[A-Z])|(?<=[_/.-])(?=\w)")


def render_page(content: Mapping[str, Any], template: str = "page.html") -> str:
    """Render a page.

    Everything that comes from a run is escaped. Only the page's style sheet, its script and the style rules of
    thumbnails are inserted unescaped. A content security policy blocks all network access and every other script.

    Args:
        content: values for the names that the templates use.
        template: the template of the whole page.
    """
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "breakable": breakable}
    script = _template_file("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template)
    return page.render(
        content,
        style=Markup(_template_file("style.css")),
        script=Markup(script),
        script_digest=digest,
        marks=MARKS,
    )


def percent(share: float | None) -> str:
    """Format a fraction as a percentage with one decimal, without the sign."""
    return "–" if share is None else f"{100 * share:.1f}"


def breakable(name: str) -> Markup:
    """Allow line breaks between the words of a name such as "HandstandPushups" or "brush_hair"."""
    return Markup("<wbr>").join(_WORD_START.split(name))


def _template_file(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")
