"""Help pages, the version, and the named configs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

pytestmark = pytest.mark.end_to_end

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run-0.1.0"
INSTALLED = Path(sys.executable).parent / "hdc-keras"
COMMANDS = (
    "prepare",
    "pretrain",
    "evaluate",
    "compare",
    "report",
    "embed",
    "search",
    "finetune",
    "predict",
    "export",
    "push",
    "pull",
    "doctor",
)
# Packages that take long to import.
HEAVY = {"tensorflow", "keras", "jax", "torch", "keras_cv", "sklearn", "av", "numpy", "pyarrow", "matplotlib"}


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["--version"]], ids=" ".join)
def test_asking_for_help_imports_nothing_heavy(arguments):
    # Imports cause the delay. Unlike seconds, they do not depend on the load of the machine.
    done = subprocess.run(
        [sys.executable, "-X", "importtime", INSTALLED, *arguments], capture_output=True, text=True, check=True
    )

    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"hdc_keras", "hdc_keras_cli", "typer"} <= imported
    assert not imported & HEAVY


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, hdc_keras; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    imported = set(done.stdout.split())
    assert "hdc_keras" in imported and not imported & HEAVY


def test_the_overview_lists_every_command_and_the_exit_codes(hdc_keras_in_process):
    printed = hdc_keras_in_process("--help").out

    listed = re.findall(r"^│ (\w+) +[A-Z]", printed, re.MULTILINE)
    assert listed == [*COMMANDS, "configs"]
    assert "0 success, 1 failure, 2 wrong usage or configuration" in printed


def app():
    from hdc_keras_cli.main import app

    return get_command(app)


def examples_in(text):
    """The lines below "Examples:"."""
    return text.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()


@pytest.mark.parametrize("command", [*COMMANDS, "configs show"])
def test_every_command_prints_its_examples_line_by_line(hdc_keras_in_process, command):
    done = hdc_keras_in_process(*command.split(), "--help", columns=80)

    assert done.code == 0
    found = app()
    for name in command.split():
        found = found.commands[name]
    written = examples_in(found.help)
    printed = [line.rstrip() for line in done.out.splitlines()]
    first = printed.index(" Examples:") + 1
    assert written[0].startswith("  hdc-keras")
    assert printed[first : first + len(written)] == [f" {line}" for line in written]


def test_the_options_of_every_example_exist():
    commands = app().commands
    parsed = 0
    for name in COMMANDS:
        for example in examples_in(commands[name].help.replace("\\\n", " ")):
            program, command, *arguments = shlex.split(example.replace("$((SLURM_ARRAY_TASK_ID + 1))", "1"))
            assert program == "hdc-keras"
            commands[command].make_context(command, arguments)  # raises a usage error
            parsed += 1
    assert parsed >= 3 * len(COMMANDS)


def test_brackets_in_help_are_printed(hdc_keras_in_process):
    assert "pip install 'hdc-keras[onnx]'" in hdc_keras_in_process("export", "--help").out
    assert "[default: (RUN/report.html)]" in hdc_keras_in_process("report", "--help").out


def test_named_configs_are_listed_and_shown(hdc_keras_in_process):
    listed = hdc_keras_in_process("configs", "list").out
    shown = hdc_keras_in_process("configs", "show", "moving-shapes").out
    explained = hdc_keras_in_process("configs", "show").out

    assert all(f"{name}  Pretrain" in listed for name in ("moving-shapes", "videos", "videos-cpu"))
    assert "Command: hdc-keras pretrain --config videos-cpu --data PATH" in listed
    assert "backbone: r3d_tiny" in shown and "temperature" in shown
    assert "temporal_negatives" in explained and "# videos per step" in explained


def test_the_version_is_printed(hdc_keras_in_process):
    import hdc_keras

    assert hdc_keras_in_process("--version").out.strip() == hdc_keras.__version__


def test_ctrl_c_outside_of_training_ends_with_its_exit_code(hdc_keras_in_process, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hdc_keras_cli.experiments.named_configs", interrupted)

    done = hdc_keras_in_process("configs", "list")

    assert done.code == 130 and "Traceback" not in done.out, done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluate", "--protocol", "knn", "--run"], "run the same command again to resume"),
        (["embed", "--out", "out.parquet", "--run"], "run the same command again to resume"),
        (["report", "--run"], "the report was not written"),
        (["export", "--run"], "the export was not finished"),
        (["prepare", "--out", "out", "--data"], "run the same command again to resume"),
        (["doctor", "--data"], "stopped."),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_ctrl_c_says_in_one_line_what_is_kept(hdc_keras_in_process, class_folder, monkeypatch, arguments, says):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hdc_keras_cli.console.start_backend", interrupted)
    monkeypatch.setattr("hdc_keras_cli.console.print_notes", lambda notes: None)
    folder = class_folder if arguments[0] in ("prepare", "doctor") else OLD_RUN

    done = hdc_keras_in_process(*arguments, folder)

    assert done.code == 130, done.out
    line = done.out.splitlines()[-1]  # below the progress
    assert line.startswith("Stopped.") and says in line.lower() and "Traceback" not in done.out, done.out
