"""One test body, two trainers: stock TRL 1.12 and ours, given the same models, prompts and options."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rlhf.generation.sampling import Replies
from rlhf.models.shared import shared_roles
from rlhf.ppo.trainer import PPOConfig, PPOTrainer
from tests.helpers import needs_stock
from tests.workshop import QUIET

PAD, BOS, EOS, END, VOCABULARY = 0, 1, 2, 3, 32
PROMPTS = [[BOS, *range(4 + i, 5 + i + i % 3)] for i in range(16)]
Reply = Callable[[list[int]], list[int]]


def defect(where: str, raises: type[BaseException] = AssertionError, match: str = "") -> Any:
    """Runs a test against both trainers; stock must fail it, for the reason at `where`.

    An AssertionError counts only if it is one of the test's own asserts; a crash only with `match` in its text
    (`defects/conftest.py`).
    """
    fails = pytest.mark.xfail(strict=True, reason=where, raises=raises)
    marks = [needs_stock, fails, pytest.mark.defect(match)]
    sides = [pytest.param(Stock, id="stock", marks=marks), pytest.param(Ours, id="ours")]
    return pytest.mark.parametrize("contender", sides, indirect=True)


def tiny_tokenizer(**special: Any) -> Any:
    words = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<end>": END} | {f"w{i}": i for i in range(4, VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="w4"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "padding_side": "left"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **{**tokens, **special})


def tiny_config(**changes: Any) -> LlamaConfig:
    """A Llama of about 3,500 parameters, with weights large enough that its tokens are not equally likely."""
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    return LlamaConfig(**{**shape, **ids, "num_labels": 1, "initializer_range": 0.3, **changes})


def tiny_policy(seed: int = 0, prefer: dict[int, float] | None = None, **changes: Any) -> Any:
    """A policy; `prefer` is added to the logits of its tokens, so that a test decides what is likely."""
    torch.manual_seed(seed)
    policy = LlamaForCausalLM(tiny_config(**changes))
    if prefer:
        bias = torch.zeros(VOCABULARY)
        bias[list(prefer)] = torch.tensor(list(prefer.values()))
        policy.lm_head.register_forward_hook(lambda module, inputs, logits: logits + bias)
    return policy


def tiny_scorer(seed: int = 1, weight: float | None = None, **changes: Any) -> Any:
    """A sequence classifier with one label, for reward and value; `weight` fills its head."""
    torch.manual_seed(seed)
    scorer = LlamaForSequenceClassification(tiny_config(**changes))
    if weight is not None:
        scorer.score.weight.data.fill_(weight)
    return scorer


class Contender:
    """Builds one of the two trainers; options that both know mean the same to both."""

    trainer: Any
    config: Any

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch

    def build(
        self,
        *,
        policy: Any = None,
        reference: Any = None,
        reward: Any = None,
        value: Any = None,
        tokenizer: Any = None,
        prompts: list[list[int]] = PROMPTS,
        eval_dataset: Any = None,
        callbacks: Any = None,
        peft_config: Any = None,
        **options: Any,
    ) -> Any:
        """A trainer for one update of 2 x 2 prompts, if the options do not say otherwise."""
        defaults = QUIET | {
            "output_dir": str(self.folder),
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "num_ppo_epochs": 1,
            "total_episodes": 4,
            "response_length": 6,
            "temperature": 1.0,
            "learning_rate": 1e-2,
            "num_sample_generations": 0,
            "seed": 1,
        }
        return self.trainer(
            self.config(**{**defaults, **options}),
            tokenizer or tiny_tokenizer(),
            policy or tiny_policy(),
            reference,
            reward or tiny_scorer(1),
            Dataset.from_dict({"input_ids": prompts}),
            value or tiny_scorer(2),
            eval_dataset=eval_dataset,
            callbacks=callbacks,
            peft_config=peft_config,
        )

    def force(self, trainer: Any, reply: Reply, width: int = 0) -> None:
        """Lets the rollout answer each prompt with `reply(prompt)`.

        Stock pads a batch to its longest reply; `width` stands for a longer one elsewhere in the batch.
        """
        raise NotImplementedError

    def from_adapters(self, base: Path, sft: Path, reward: Path) -> dict[str, Any]:
        """What `build` takes as policy, reward and value when each is an adapter on `base`."""
        raise NotImplementedError

    def stops(self, ids: list[int]) -> dict[str, Any]:
        """The options that end a reply at each of `ids`, or what comes nearest to it."""
        raise NotImplementedError


class Stock(Contender):
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

        super().__init__(folder, monkeypatch)
        self.trainer, self.config, self.module = PPOTrainer, PPOConfig, ppo_trainer
        # two full collections an update take twenty times as long as such an update itself
        monkeypatch.setattr(ppo_trainer, "gc", SimpleNamespace(collect=lambda: 0))

    def force(self, trainer: Any, reply: Reply, width: int = 0) -> None:
        """Old log-probabilities are then of fp32 scores over the temperature, as `generate` hands them out."""

        def generation(model: Any, queries: Any, chunk: int, pad: int, config: Any) -> Any:
            replies = [reply([token for token in row if token != pad]) for row in queries.tolist()]
            columns = max(width, *(len(r) for r in replies))
            padded = torch.tensor([[*r, *[pad] * (columns - len(r))] for r in replies])
            both = torch.cat([queries, padded], 1)
            with torch.no_grad():
                logits = self.module.forward(model, both, pad).logits[:, queries.shape[1] - 1 : -1]
            return both, logits.float() / config.temperature

        self.monkeypatch.setattr(self.module, "batch_generation", generation)

    def from_adapters(self, base: Path, sft: Path, reward: Path) -> dict[str, Any]:
        def scorer(trained: bool) -> Any:
            model = AutoModelForSequenceClassification.from_pretrained(base)
            return PeftModel.from_pretrained(model, reward, is_trainable=trained)

        policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), sft, is_trainable=True)
        return {"policy": policy, "reward": scorer(False), "value": scorer(True)}

    def stops(self, ids: list[int]) -> dict[str, Any]:
        return {"stop_token_id": ids[0] if ids else None}


class Ours(Contender):
    trainer, config = PPOTrainer, PPOConfig

    def force(self, trainer: Any, reply: Reply, width: int = 0) -> None:
        def sample(prompts: list[list[int]], update: int) -> Replies:
            replies = [reply(prompt) for prompt in prompts]
            ended = [ids[-1] in trainer.loop.eos_ids for ids in replies]
            return Replies(replies, [[0.0] * len(ids) for ids in replies], ended)

        trainer.loop.sample = sample

    def from_adapters(self, base: Path, sft: Path, reward: Path) -> dict[str, Any]:
        roles = shared_roles(AutoModelForCausalLM.from_pretrained(base), tiny_tokenizer(), sft, reward)
        return {name: getattr(roles, name) for name in ("policy", "reference", "reward", "value")}

    def stops(self, ids: list[int]) -> dict[str, Any]:
        return {"eos_token_ids": ids}


def logged(trainer: Any, key: str) -> list[float]:
    return [row[key] for row in trainer.state.log_history if key in row]


def weights(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def finite(model: Any) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def refusal(build: Callable[[], Any]) -> str:
    """What construction says to refuse, or nothing when it does not refuse."""
    try:
        build()
    except ValueError as error:
        return str(error)
    return ""


def record_steps(trainer: Any, observe: Callable[[], Any] = lambda: None) -> list[Any]:
    """What `observe` returns before each optimizer step that is taken; accelerate's wrapper skips some of stock's."""
    seen: list[Any] = []
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    optimizer.register_step_pre_hook(lambda *_: seen.append(observe()))
    return seen


def record_rows(backbone: Any) -> list[list[int]]:
    """The rows of ids, without pads, that a backbone is given from now on."""
    rows: list[list[int]] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        rows.extend([token for token in row if token != PAD] for row in kwargs["input_ids"].tolist())

    backbone.register_forward_pre_hook(look, with_kwargs=True)
    return rows
