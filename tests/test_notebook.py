"""The notebook in `examples/` runs from top to bottom."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: pip install hdc-keras[test]")
NOTEBOOK = Path(__file__).parents[1] / "examples" / "videos_to_search.ipynb"


def test_the_notebook_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]

    assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbformat

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    shutil.copy(NOTEBOOK, tmp_path)
    notebook = nbformat.read(tmp_path / NOTEBOOK.name, as_version=4)

    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()

    printed = "\n".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    printed = " ".join(re.sub(r"\x1b\[[\d;?]*\w", "", printed).split())  # without colours, and as one line
    assert "Traceback" not in printed and "Error:" not in printed, printed
    for expected in (
        "Done: ",
        "Embedded 108 of 108 videos",
        "Nearest to ",
        "Test: ",
        "Classified 108 videos, 0 failed",
    ):
        assert expected in printed, printed
    rows = (tmp_path / "work" / "named.csv").read_text().splitlines()
    assert rows[0] == "video_id,file,class_1,score_1,class_2,score_2" and len(rows) == 109
