"""The page: one HTML file that asks nothing of the network."""

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

# Paths of the marks on the map, around the origin, by number; as many as `embedding_map` counts shapes.
MARKS = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-4.4-4.4h8.8v8.8h-8.8z",
    "M0-5.8L5.4 4.2H-5.4z",
    "M0-6.2L5.2 0L0 6.2L-5.2 0z",
    "M0 5.8L5.4-4.2H-5.4z",
    "M-1.9-5.5h3.8v3.6h3.6v3.8h-3.6v3.6h-3.8v-3.6h-3.6v-3.8h3.6z",
)

_WORD_START = re.compile(r"(?<=[a-z\d])(?=[A-Z])|(?<=[_/.-])(?=\w)")


def render_page(content: Mapping[str, Any]) -> str:
    """Fill the template.

    Everything that comes from a run is escaped; the page's own style and script, and the style rules of thumbnails, are
    taken as they are. A content security policy forbids all loading, and every script but the page's own.

    Args:
        content: what the templates name.
    """
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "breakable": breakable}
    script = _own_file("script.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html")
    return page.render(
        content,
        style=Markup(_own_file("style.css")),
        script=Markup(script),
        script_digest=digest,
        marks=MARKS,
    )


def percent(share: float | None) -> str:
    """A share in per cent, with one digit."""
    return "–" if share is None else f"{100 * share:.1f}"


def breakable(name: str) -> Markup:
    """A name that may be broken where its words begin, as in "HandstandPushups" or "brush_hair"."""
    return Markup("<wbr>").join(_WORD_START.split(name))


def _own_file(name: str) -> str:
    return (files(__package__) / "templates" / name).read_text(encoding="utf-8")
