"""The one place that decides a tokenizer's chat template, EOS and padding token."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.config import Model, Stage, template_file
from rlhf.data import columns, contract, sources
from rlhf.data.ledger import Ledger
from rlhf.data.tokens import Renderer
from rlhf.errors import Refusal, nearest
from rlhf.models.checks import tokenizer_home
from rlhf.shell import setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TURN_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")


def load_tokenizer(stage: Stage) -> "PreTrainedTokenizerBase":
    """The tokenizer of `model.path`, or for random weights one trained on the rows of the stage.

    Raises:
        Refusal: a named token that isn't in the vocabulary, no padding token, or padding equal to EOS: then the end of
            a reply would be masked as padding, and the model would never learn to stop.
    """
    from transformers import AutoTokenizer

    model = stage.model
    if model.init is not None:
        kept = stage.path / "tokenizer"  # a resumed stage must go on with the same tokenizer
        tokenizer = AutoTokenizer.from_pretrained(kept) if kept.is_dir() else _trained(stage)
    else:
        options = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        tokenizer = pretrained(AutoTokenizer, tokenizer_home(model.path), "model.path", **options)
    _settle(tokenizer, model)
    return tokenizer


def pretrained(
    kind: Any, source: Any, key: str, allowed: Iterable[str] = (), raised: Any = (OSError, ValueError), **options: Any
) -> Any:
    """`kind.from_pretrained(source)`; a name, folder or file that it can't use is a Refusal of `key=source`."""
    try:
        return kind.from_pretrained(source, **options)
    except raised as error:
        fix = "check the name, `hf auth login` for a gated model, or give a local folder"
        why = f"{kind.__name__} can't load it: {str(error).splitlines()[0][:300]}"
        raise Refusal(key, source, why, allowed=allowed, fix=fix) from error


def renderer(stage: Stage, tokenizer: "PreTrainedTokenizerBase") -> Renderer:
    """How this stage turns messages into tokens; a text without turns is used as it is."""
    return Renderer(tokenizer, plain=stage.dataset.format == "plain" or stage.model.chat_template == "plain")


def prompt_renderer(stage: Stage, tokenizer: "PreTrainedTokenizerBase") -> Renderer:
    """The same for prompts that a policy answers: pretraining on bare text does not take the chat template away."""
    bare = stage.dataset.format == "plain" and "text" not in stage.dataset.columns
    return Renderer(tokenizer, plain=bare or stage.model.chat_template == "plain")


def _settle(tokenizer: "PreTrainedTokenizerBase", model: Model) -> None:
    if (template := template_file(model.chat_template)) is not None:
        tokenizer.chat_template = template.read_text()
    vocabulary = tokenizer.get_vocab()
    for key, token in (("eos_token", model.eos_token), ("pad_token", model.pad_token)):
        if token is not None:
            if token not in vocabulary:
                why = f"not in the vocabulary of {model.path}{nearest(token, vocabulary)}"
                raise Refusal(f"model.{key}", token, why, fix=f"model.{key}=null, which keeps the tokenizer's own")
            setattr(tokenizer, key, token)
    if tokenizer.eos_token_id is None:
        why = f"the tokenizer of {model.path} has none"
        raise Refusal("model.eos_token", "null", why, fix="in model.eos_token the token that ends its replies")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        usual = ("<|pad|>", "<pad>", "[PAD]", "<|padding|>", "<|finetune_right_pad_id|>", "<unk>")
        spare = next((token for token in usual if token in vocabulary), None)
        fix = setting("model.pad_token", spare) if spare else "in model.pad_token one that never occurs in text"
        is_now = "has none" if tokenizer.pad_token_id is None else f"equals the EOS token {tokenizer.eos_token}"
        why = f"the padding token of {model.path} {is_now}, so replies would never learn to end"
        raise Refusal("model.pad_token", model.pad_token, why, fix=fix)
    tokenizer.padding_side = "right"


def _trained(stage: Stage) -> "PreTrainedTokenizerBase":
    """Byte-level BPE on the training rows (Radford et al. 2019), with distinct padding, EOS and turn tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = stage.model
    assert model.init is not None
    special = [str(model.pad_token), str(model.eos_token), *TURN_TOKENS]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    size, alphabet = int(model.init["vocab_size"]), pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(_texts(stage, special), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=model.eos_token,
        pad_token=model.pad_token,
        additional_special_tokens=list(TURN_TOKENS),
        model_max_length=int(model.init.get("max_position_embeddings", 2048)),
        clean_up_tokenization_spaces=False,
    )


def _texts(stage: Stage, special: list[str]) -> Iterable[str]:
    ledger = Ledger()  # what is dropped here is dropped, and told, when the rows are prepared
    for part in sources.parts(stage.dataset, "train"):
        found = columns.read(part.dataset, part.split, "demonstrations", stage.debug.rows)
        for row in found.rows:
            with ledger.account(row, part.dataset.bad_rows):
                for message in contract.dialogue(found.dataset, row).messages:
                    text = message["content"]
                    for token in special:
                        text = text.replace(token, "\n")
                    yield text


def stops(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """Every id that ends a reply: the tokenizer's EOS and those of the model's generation config.

    Chat models often have two (end of turn, end of text). Ids only, no strings: a string can end inside a token, which
    would then be neither in the reply nor out of it.
    """
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(listed if isinstance(listed, list | tuple) else [listed])]
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def saved_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer that a finished stage left beside its weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def check_tokenizer(folder: Path, tokenizer: Any, key: str) -> None:
    """Token ids go straight from the policy into the reward role, so both must mean the same by them (TRL#1674)."""
    if not (Path(folder) / "tokenizer_config.json").is_file():
        return
    ours, theirs = tokenizer.get_vocab(), saved_tokenizer(folder).get_vocab()
    if ours != theirs:
        differing = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        why = f"its tokenizer differs from the policy's in {len(differing)} tokens (first: {differing[:3]})"
        fix = "train the reward model with this tokenizer, or use it as a separate scorer of text"
        raise Refusal(key, folder, why, fix=fix)
