"""An export from a finished run to a folder: merged, written, read back, held against the run, and only then there."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf import files
from rlhf.config import Stage
from rlhf.errors import ConfigError
from rlhf.export.card import card
from rlhf.export.check import as_trained, difference, prompts_of, reload
from rlhf.export.folder import settle, write_folder
from rlhf.export.gguf import TYPES, check_gguf, modelfile, write_gguf
from rlhf.export.refuse import RECORD, is_reward
from rlhf.export.weights import whole
from rlhf.models.tokenizer import saved_tokenizer
from rlhf.runs.provenance import provenance

KEPT_HIGHER = ("max_logit", "mean_logit", "kl")  # of several formats the worst is told first


def export(stage: Stage, to: Sequence[str], dtype: str, out: Path, prompts: int) -> None:
    """Fills the folder `out`; its `export.json` says how far what was written is from the run.

    `stage` is what `refuse` gave. Raises a Refusal for an architecture that GGUF can't take, and GuardStop where what was written is
    another model than the run; `out` is then as it was before.
    """
    tokenizer = saved_tokenizer(stage.path / files.FINAL)
    model = whole(stage, tokenizer)
    if "gguf" in to:
        check_gguf(model.config, tokenizer)
    trained = as_trained(stage, tokenizer, prompts_of(stage, tokenizer, prompts))
    if dtype != "float32":  # by itself, before rounding can hide what is wrong with it
        difference(stage, tokenizer, trained, model).refuse("the merged model", "float32")
    files.replace_folder(out, lambda folder: _write(stage, tokenizer, model, trained, to, dtype, folder))


def _write(stage: Stage, tokenizer: Any, model: Any, trained: Any, to: Sequence[str], dtype: str, folder: Path) -> None:
    """All formats, each read back by transformers and held against the run; the widest is written first, since dtypes narrow."""
    name, found = f"{stage.run.recipe}-{stage.run.stage}".replace("/", "-"), []
    if "gguf" in to:
        file = f"{name}-{TYPES[dtype]}.gguf"
        settle(model, tokenizer)
        write_gguf(model, tokenizer, dtype, folder / file, name)
        files.write_text(folder / "Modelfile", modelfile(file, tokenizer, model))
    if "hf" in to:
        write_folder(model, tokenizer, dtype, folder)
        found.append(_checked(stage, tokenizer, trained, folder, "hf", dtype, None))
    if "gguf" in to:
        found.append(_checked(stage, tokenizer, trained, folder, "gguf", dtype, file))
    run = files.read_json(stage.path / files.RUN_FILE)
    worst = {key: max(one[key] for one in found) for key in KEPT_HIGHER} | {
        "same_replies": min(one["same_replies"] for one in found)
    }
    about = {"run": f"{stage.run.recipe}/{stage.run.stage}", "id": run["id"], "lineage": run["lineage"]}
    held = about | worst | {"formats": found} | provenance()
    files.write_json(folder / RECORD, held)
    files.write_text(
        folder / files.CARD,
        card(stage, held, run, "Modelfile" if "gguf" in to else None, bool(tokenizer.chat_template)),
    )
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob("*"):  # safetensors writes files that only their owner reads
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)


def _checked(
    stage: Stage, tokenizer: Any, trained: Any, folder: Path, kind: str, dtype: str, file: str | None
) -> dict[str, Any]:
    found = difference(stage, tokenizer, trained, reload(folder, dtype, is_reward(stage), file))
    found.refuse(file or "the folder", dtype)
    same = f"{found.same_replies:.1%} {'of neighbours in the same order' if is_reward(stage) else 'of greedy replies the same'}"
    print(
        f"{kind:5s} {dtype:9s} {found.prompts} prompts, {found.positions} positions: logits differ by {found.max_logit:.2g} at most, "
        f"{found.mean_logit:.2g} in the mean; KL {found.kl:.2g}; {same}",
        flush=True,
    )
    return {"format": kind, "dtype": dtype, "file": file or "model.safetensors", **asdict(found)}


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to the hub as a private repository; returns its address.

    Raises ConfigError for a name that is none, or what the hub has against it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            commit_message=f"Export of {files.read_json(folder / RECORD)['run']}",
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        again = shlex.join(["hf", "upload", "<your name>/<a name>", str(folder)])
        fix = f"hf auth login, then {again}   (the folder is complete)"
        raise ConfigError(f"push={repository}: {said}\n  fix: {fix}") from error
    return f"{api.endpoint}/{repository}"
