"""Push to and pull from the Hugging Face Hub, by `huggingface_hub`."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hdc_keras.errors import ConfigError, RunError
from hdc_keras.files import remove_leftovers, temporary_beside
from hdc_keras.hub.staging import Kind, kind_of, staged

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Pushed:
    """What was published.

    Attributes:
        kind: what the folder is.
        url: address of the repository.
        files: names and sizes in bytes of the published files.
    """

    kind: Kind
    url: str
    files: dict[str, int]


def require_hub(repository: str) -> None:
    """Check the name of a repository, and that `huggingface_hub` is installed.

    Raises:
        ConfigError: the name is wrong, or the package is missing.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(f"`{repository}`: expected the name of a repository, as in user/name.")
    if find_spec("huggingface_hub") is None:
        raise ConfigError("the Hugging Face Hub needs a package that is not installed: pip install 'hdc-keras[hub]'")


def push(folder: Path, repository: str, *, public: bool = False, licence: str | None = None) -> Pushed:
    """Publish a run, a classifier or an export. An existing repository gets a new commit.

    Of a run: config, the newest and the best checkpoint, metrics and results. Of a classifier: the network, its config
    and what is known about it. Local paths, names of videos, features and pictures stay here.

    Args:
        folder: what to publish.
        repository: its name, as in "user/name".
        public: whether a new repository can be seen by all. An existing one stays as it is.
        licence: licence of the weights, as an identifier of the Hub such as "cc-by-4.0".

    Raises:
        ConfigError: the name is wrong, or `huggingface_hub` is missing.
        RunError: the folder holds nothing to publish, or the Hub refuses it or cannot be reached.
    """
    require_hub(repository)
    from huggingface_hub import HfApi

    kind = kind_of(folder)
    with staged(folder, repository, licence) as place, _explained(repository):
        files = {str(file.relative_to(place)): file.stat().st_size for file in place.rglob("*") if file.is_file()}
        api = HfApi()
        url = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=place, commit_message=f"{kind} of hdc-keras")
        return Pushed(kind, str(url), files)


def pull(repository: str, out: Path, *, revision: str | None = None) -> Kind:
    """Download a repository to a new folder.

    Args:
        repository: its name, as in "user/name".
        out: the folder to create.
        revision: branch, tag or commit; the main branch when `None`.

    Returns:
        What it is.

    Raises:
        ConfigError: the name is wrong, or `huggingface_hub` is missing.
        RunError: the folder exists, the repository holds nothing of hdc-keras, or the Hub refuses it or cannot be
            reached. Nothing is left then.
    """
    require_hub(repository)
    if out.exists():
        raise RunError(f"{out} exists and is not overwritten. Choose another folder with --out.")
    from huggingface_hub import snapshot_download

    out.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    unfinished = temporary_beside(out)
    try:
        with _explained(repository):
            snapshot_download(repository, revision=revision, local_dir=unfinished)
        shutil.rmtree(unfinished / ".cache", ignore_errors=True)
        kind = kind_of(unfinished)
        unfinished.rename(out)
    except RunError as error:
        raise RunError(str(error).replace(str(unfinished), repository)) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return kind


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn the errors of `huggingface_hub` into one that says what to do."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

    try:
        yield
    except (RepositoryNotFoundError, GatedRepoError) as error:
        raise RunError(
            f"{repository}: the Hub knows no such repository, or you may not see it. Check its name, and log in with "
            "`hf auth login` if it is private."
        ) from error
    except LocalTokenNotFoundError as error:
        raise RunError("you are not logged in to the Hugging Face Hub: run `hf auth login`.") from error
    except (HfHubHTTPError, OSError) as error:
        cause = " ".join(str(error).split())[:300]
        raise RunError(f"{repository}: the Hub refused it, or cannot be reached ({cause}).") from error
