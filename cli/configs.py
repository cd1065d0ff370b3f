"""`hdc-keras configs`: list and show the named configs."""

import typer

from .help_text import help_text

configs_app = typer.Typer(help="List and show the named configs.", no_args_is_help=True)


def list_configs() -> None:
    """List the named configs, with the purpose of each and the command that uses it."""
    from .console import print_parts
    from .experiments import named_configs

    for name, path in named_configs().items():
        purpose, command, *_ = (line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines())
        print_parts((name, "bold"), f"  {purpose}\n  {command}")


def show_config(
    name: str | None = typer.Argument(None, help="Name of a config, or a YAML file. Omit it to explain every key."),
) -> None:
    """Show one config with all its keys, or explain every key.

    With NAME, print the complete config: the keys that it sets, and the defaults of all others. Without NAME, print
    every key with its default and meaning.

    Examples:
      hdc-keras configs show
      hdc-keras configs show moving-shapes
    """
    from hdc_keras.config import Experiment, dump_experiment, load_experiment

    from .experiments import find_config

    if name is not None:
        print(dump_experiment(load_experiment(find_config(name))), end="")
        return
    for section, field in Experiment.model_fields.items():
        default = field.get_default()
        if not hasattr(default, "model_dump"):
            print(f"{section}: {default}  # {field.description}")
            continue
        print(f"{section}:")
        values = default.model_dump(mode="json")
        for key, inner in type(default).model_fields.items():
            value = "" if values[key] is None else values[key]
            print(f"  {key}: {value}  # {inner.description}")


configs_app.command("list", help=help_text(list_configs))(list_configs)
configs_app.command("show", help=help_text(show_config))(show_config)
