"""Hook of mkdocs: the pages that are made from other files, `configuration.md` and `changelog.md`."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from hdc_keras.config import Experiment

_ROOT = Path(__file__).parent.parent
_CONFIGURATION = """# Config keys

Every key of a config, with its default and its meaning. `hdc-keras configs show` prints the same.
`--set section.key=value` changes one key, for example `--set train.epochs=50`. In Python, `HDC` takes the keys of
`views` and `contrast` as dicts.
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to the files of the site."""
    changelog = (_ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "configuration.md", content=_configuration()))
    files.append(File.generated(config, "changelog.md", content=changelog))
    return files


def _configuration() -> str:
    """A section of the page and a table of keys for each section of the config."""
    top, sections = [], []
    for name, field in Experiment.model_fields.items():
        default = field.get_default()
        if not hasattr(default, "model_dump"):
            top.append(_row(name, default, field.description))
            continue
        values = default.model_dump(mode="json")
        rows = [_row(key, values[key], inner.description) for key, inner in type(default).model_fields.items()]
        sections.append(f"## {name}\n\n{type(default).__doc__}\n\n{_table(rows)}")
    return "\n\n".join([_CONFIGURATION, _table(top), *sections])


def _table(rows: list[str]) -> str:
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def _row(key: str, default: Any, description: str | None) -> str:
    shown = "" if default is None else f"`{default}`"
    return f"| `{key}` | {shown} | {(description or '').replace('|', '&#124;')} |"
