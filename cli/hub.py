"""`hdc-keras push` and `hdc-keras pull`."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    folder: Annotated[Path, typer.Argument(help="A run, a classifier of `finetune`, or a folder with an export.")],
    repository: Annotated[str, typer.Argument(help="Name on the Hugging Face Hub, as in user/name.")],
    public: Annotated[
        bool, typer.Option("--public", help="Let everyone see a new repository; without it, only you can.")
    ] = False,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the weights, as in cc-by-4.0. Whoever owns the weights chooses it.")
    ] = None,
) -> None:
    """Publish a run, a classifier or an export on the Hugging Face Hub, with a model card.

    Of a run: config, the newest and the best checkpoint, metrics and results. Of a classifier: the network and what is
    known about it. Local paths, names of videos, features and pictures of videos are not published.

    Needs pip install 'hdc-keras[hub]', and a login by `hf auth login` or the variable HF_TOKEN.

    Examples:
      hdc-keras push runs/mine user/my-videos
      hdc-keras push models/strokes user/strokes --public --licence cc-by-4.0
      hdc-keras pull user/strokes --out models/strokes
    """
    from hdc_keras.hub.staging import kind_of
    from hdc_keras.hub.transfer import push as push_folder
    from hdc_keras.hub.transfer import require_hub

    from .console import console, print_parts

    require_hub(repository)
    kind = kind_of(folder)
    with console.status(f"publishing the {kind}"):
        done = push_folder(folder, repository, public=public, licence=licence)
    for name, size in sorted(done.files.items()):
        console.print(f"  {name}, {size:,} bytes", soft_wrap=True)
    print_parts(f"Published the {kind}: ", (done.url, "bold"), soft_wrap=True)


def pull(
    repository: Annotated[str, typer.Argument(help="Name on the Hugging Face Hub, as in user/name.")],
    out: Annotated[Path, typer.Option(help="Folder to create.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.", show_default="the main branch")] = None,
) -> None:
    """Download a run, a classifier or an export from the Hugging Face Hub.

    Weights are files of Keras, which can hold code: pull only from people whom you trust.

    Examples:
      hdc-keras pull user/my-videos --out runs/theirs
      hdc-keras finetune --run runs/theirs --data labelled.csv --out models/mine
    """
    from hdc_keras.hub.transfer import pull as pull_folder
    from hdc_keras.hub.transfer import require_hub

    from .console import console, print_parts

    require_hub(repository)
    with console.status(f"downloading {repository}"):
        kind = pull_folder(repository, out, revision=revision)
    print_parts(f"Downloaded the {kind}: ", (str(out), "bold"), soft_wrap=True)
