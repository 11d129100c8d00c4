"""What is measured: the weights of a finished run, as it trained them, or a folder in Hugging Face's layout."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf.config import Stage
from rlhf.files import FINAL, RUN_FILE, read_json
from rlhf.methods import METHODS
from rlhf.runs import record

CONFIG = "config.json"


@dataclass(frozen=True)
class Subject:
    """`folder` gets benchmarks.json; `stage` is None for a folder that no run of ours left; `scores` tells a reward model."""

    folder: Path
    stage: Stage | None
    scores: bool

    @property
    def kind(self) -> str:
        return "a reward model" if self.scores else "a policy"


def subject(run: str, root: Path) -> Subject:
    """What `run=` names: a run folder or its final/, a folder with a config.json such as an export, or either below `root`.

    Raises ConfigError or DataError where there is no such run, it has not finished, or the runs and the base below it are not
    those that it was trained on: an adapter on another base is a model that nobody trained.
    """
    places = [path.parent if path.name == FINAL else path for path in (Path(run), root / run)]
    folder = next((path for path in places if (path / RUN_FILE).is_file()), root / run)
    plain = next((path for path in (Path(run), root / run) if (path / CONFIG).is_file()), None)
    if plain is not None and not (folder / RUN_FILE).is_file():
        kinds = read_json(plain / CONFIG).get("architectures") or []
        return Subject(plain, None, any(kind.endswith("ForSequenceClassification") for kind in kinds))
    stage = record.finished_stage(folder, root, reward=True)
    record.check_current(folder, stage)
    return Subject(folder, stage, METHODS[stage.method.name].leaves == "reward")


def policy(of: Subject) -> tuple[Any, Any]:
    """A causal LM and its tokenizer. That of a run is its base, quantized as in training, with its adapter in it, unmerged."""
    from transformers import AutoModelForCausalLM

    if of.stage is None:
        return _plain(of, AutoModelForCausalLM)
    from rlhf.models.shared import load_roles
    from rlhf.models.tokenizer import saved_tokenizer

    tokenizer = saved_tokenizer(of.folder / FINAL)
    return load_roles(of.stage, tokenizer, {"policy": of.folder / FINAL})["policy"].model, tokenizer


def reward(of: Subject, batch_size: int) -> tuple[Any, Any, int | None]:
    """The scorer of a reward model, the renderer of what it reads, and the most tokens it has positions for."""
    from rlhf.data.tokens import Renderer
    from rlhf.models.shared import load_roles, scalar_role
    from rlhf.models.tokenizer import renderer, saved_tokenizer
    from rlhf.rewards.scorers import RoleScorer, scorer

    if of.stage is None:
        from transformers import AutoModelForSequenceClassification

        model, tokenizer = _plain(of, AutoModelForSequenceClassification)
        role, reads = scalar_role("reward", model, trained=False), Renderer(tokenizer, plain=False)
        score = RoleScorer(role, tokenizer.pad_token_id or 0, batch_size)
    else:
        tokenizer = saved_tokenizer(of.folder / FINAL)
        role = load_roles(of.stage, tokenizer, {}, reward=of.folder / FINAL)["reward"]
        score, reads = replace(scorer(of.stage, tokenizer, role), batch_size=batch_size), renderer(of.stage, tokenizer)
    return score, reads, getattr(role.model.config.get_text_config(), "max_position_embeddings", None)


def _plain(of: Subject, kind: Any) -> tuple[Any, Any]:
    """Weights and tokenizer of a folder: as they are stored on a GPU, in fp32 on the CPU. No code that lies in it is run."""
    import torch
    from transformers import AutoTokenizer

    from rlhf.models.layers import plain_4bit_kernels
    from rlhf.models.tokenizer import pretrained

    gpu = torch.cuda.is_available()
    options = {"dtype": "auto" if gpu else torch.float32, "device_map": {"": 0} if gpu else None}
    tokenizer = pretrained(AutoTokenizer, of.folder, "run")
    model = pretrained(kind, of.folder, "run", use_safetensors=True, **options)
    plain_4bit_kernels(model)
    return model.eval().requires_grad_(False), tokenizer
