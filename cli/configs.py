"""`hdc-keras configs`: list and show the named experiments."""

import typer

configs_app = typer.Typer(help="List and show the named configs.", no_args_is_help=True)


@configs_app.command("list")
def list_configs() -> None:
    """List the named configs and what each is for."""
    from .console import console
    from .experiments import named_configs

    for name, path in named_configs().items():
        console.print(f"[bold]{name}[/]  {path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


@configs_app.command("show")
def show_config(
    name: str = typer.Argument("", help="Name or file; when empty, all keys with their meaning and default."),
) -> None:
    """Show a config with every key, or explain all keys.

    Examples:
      hdc-keras configs show
      hdc-keras configs show moving-shapes
    """
    from hdc_keras.config import Experiment, dump_experiment, load_experiment

    from .experiments import find_config

    if name:
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
