"""Whether every repository, file and folder that a recipe reads can be had, asked before the first stage trains."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf.config import Stage
from rlhf.data import sources
from rlhf.data.folders import beside, check_path
from rlhf.errors import ConfigError
from rlhf.rewards.functions import PREFIX


def check_repositories(stages: Iterable[Stage]) -> None:
    """Raise a ConfigError that names each repository that is gated, absent, or neither cached nor reachable, and a DataError
    for a file or folder of rows that is not there and that no stage writes."""
    stages = list(stages)
    for stage in stages:
        for path in _read(stage):
            if sources.is_local(path) and not path.startswith(_own(stage)):
                check_path(path)
    asked = dict.fromkeys(entry for stage in stages for entry in repositories(stage))
    problems = [problem for key, name, kind in asked if (problem := _problem(key, name, kind))]
    if problems:
        raise ConfigError("\n".join(problems))


def repositories(stage: Stage) -> Iterator[tuple[str, str, str]]:
    """(key, id, kind) of what a stage reads from the hub; a path that exists, or that a stage will write, is none."""
    for key, name in (
        ("model.path", stage.model.path),
        *(("method.reward_model", name) for name in stage.method.reward_models),
    ):
        local = name is None or name.startswith((PREFIX, ".", "/", "~", _own(stage)))
        if name is not None and not local and not Path(name).exists():
            yield key, name, "model"
    for path in filter(sources.is_hub, _read(stage)):
        yield "dataset.path" if stage.dataset.path == path else "dataset.mixture", path, "dataset"


def _read(stage: Stage) -> list[str]:
    """Where the rows of a stage come from."""
    roles = ("train", "eval", "test")
    return [part.dataset.path for role in roles for part in sources.parts(stage.dataset, role)]


def _own(stage: Stage) -> str:
    """What the paths that the stages of this recipe write begin with."""
    return f"{stage.run.root}/{stage.run.recipe}/"


def _problem(key: str, name: str, kind: str) -> str | None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    near = beside(name)
    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{name}"
    local = f"in {key} a local folder" + (" with files named after the splits" if kind == "dataset" else "")
    if constants.HF_HUB_OFFLINE:
        why = f"is not cached, and HF_HUB_OFFLINE forbids to fetch it{near}"
        return None if _cached(name, kind) else f"{key}={name} {why}\n  fix: HF_HUB_OFFLINE=0, or {local}"
    try:
        HfApi().auth_check(name, repo_type=kind)
    except GatedRepoError:
        return f"{key}={name} is gated\n  fix: accept its licence at {page}, then `hf auth login`"
    except RepositoryNotFoundError:
        return f"{key}={name}: there is no such {kind} on the hub, or it is private{near}\n  fix: the right name, `hf auth login`, or {local}"
    except Exception as error:  # no network, a proxy, the hub is down: the client raises dozens of kinds
        if not _cached(name, kind):
            return f"{key}={name} is not cached, and the hub can't be reached ({type(error).__name__}){near}\n  fix: go online, or {local}"
    return None


def _cached(name: str, kind: str) -> bool:
    """Whether the hub's cache, or that of the library `datasets`, holds something of a repository."""
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets"))
    names = (name.replace("/", "___"), name.replace("/", "___").lower())
    return hub.is_dir() or (kind == "dataset" and any((prepared / one).is_dir() for one in names))
