"""A role: a backbone, the adapter to switch on, and a head; how it is saved and loaded."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf.errors import Refusal
from rlhf.models.adapters import WEIGHTS, adapter_weights, belongs, fill, read_weights, switch_adapter

# Low enough that the probability underflows to 0, finite so that 0 * logit stays 0 in the entropy.
SUPPRESSED = -1e30


def shape_logits(logits: Tensor, temperature: float, suppress: tuple[int, ...]) -> Tensor:
    """The distribution that is sampled from: fp32 `[N, V]` logits over `temperature`, without the suppressed ids.

    Sampling and every later log-probability go through this one function, so that the ratio and the KL compare like
    with like (TRL#2358, TRL#4647: repetition penalties that only sampling saw). Double stays double, for gradcheck.
    """
    logits = logits.float() if logits.dtype != torch.float64 else logits
    if temperature != 1.0:
        logits = logits / temperature
    for token in (token for token in suppress if token < logits.shape[-1]):
        logits[..., token] = SUPPRESSED  # in place: nothing that made these logits needs their values in backward
    return logits


def width(base: Any) -> int:
    """The size of the last hidden states of a causal LM: what its head reads (OPT-350m's is half of hidden_size)."""
    return int(base.get_output_embeddings().weight.shape[-1])


class ScalarHead(nn.Module):
    """`[..., H]` hidden states to `[...]` numbers in fp32, whatever the backbone and autocast compute in.

    A bf16 head resolves a reward of 4 to 0.03 at best; this one lives outside PEFT, so no adapter switch can lose it.
    It wraps a linear and is not `base.Score`, since a stock classifier's head stays its own, LoRA and bias included,
    while Score must be a linear: transformers and PEFT save it as `score.weight`.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear.float()

    @classmethod
    def on(cls, base: Any, weight: Tensor | None = None) -> "ScalarHead":
        """A head for `base` with the given `[1, H]` weight, or zeros: the value of every state then starts at 0."""
        head = cls(nn.Linear(width(base), 1, bias=False, device=base.device))
        with torch.no_grad():
            head.linear.weight.copy_(weight) if weight is not None else head.linear.weight.zero_()
        return head

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)


class Role:
    """One of `policy`, `reference`, `reward`, `value`: a backbone, the adapter to switch on, and a head.

    `model` is the Hugging Face model that holds the backbone (with LoRA layers already injected, if any); `peft` and
    `adapter` say which adapter is this role's; `head` is the scalar head of reward and value.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        *,
        peft: Any = None,
        adapter: str | None = None,
        head: ScalarHead | None = None,
        trained: bool = False,
    ) -> None:
        self.name, self.model, self.peft, self.adapter, self.head = name, model, peft, adapter, head
        self.trained = trained
        self.logit_softcap: float | None = getattr(model.config, "final_logit_softcapping", None)

    def __repr__(self) -> str:
        return f"Role({self.name}, adapter={self.adapter}, trained={self.trained})"

    @property
    def backbone(self) -> nn.Module:
        return getattr(self.model, self.model.base_model_prefix)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def embeddings(self) -> int:
        """How many token ids the model takes."""
        return self.model.get_input_embeddings().num_embeddings

    def filler(self, pad_id: int) -> int:
        """What stands in padding, which is never read: `pad_id`, or as in TRL 0 where that has no embedding (a [PAD] that
        was added to the tokenizer alone)."""
        return pad_id if pad_id < self.embeddings else 0

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter that belongs to this role alone: its adapter and head, or its whole model."""
        seen = set()
        for name, parameter in (self.model if self.peft is None else self.peft).named_parameters():
            if self.peft is None or belongs(name, self.adapter):
                seen.add(id(parameter))
                yield name, parameter
        if self.head is not None:
            yield from ((n, p) for n, p in self.head.named_parameters(prefix="head") if id(p) not in seen)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        """What an optimizer of this role steps, by name; nothing if the role is frozen."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad] if self.trained else []

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, this role's adapter is the one that computes.

        Forward *and* backward of a role belong into one such block: a checkpointed layer is recomputed in backward with
        whatever adapter is active then, and shapes would not tell (peft#2832).
        """
        if self.peft is None or self.peft.active_adapter == self.adapter:
            yield
            return
        before = self.peft.active_adapter
        switch_adapter(self.peft, self.adapter)
        try:
            yield
        finally:
            switch_adapter(self.peft, before)

    def hidden(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Last hidden states `[B, T, H]` of `[B, T]` ids in the dtype the backbone computes in; nothing else is kept.

        Without a mask the attention is causal and every row starts at position 0: right-padded batches need no more,
        since no real token looks to its right. A boolean `[B, 1, T, T]` mask says who sees whom.
        """
        if (
            attention_mask is not None
            and attention_mask.ndim == 4
            and self.model.config._attn_implementation == "eager"
        ):
            hidden = torch.zeros_like(attention_mask, dtype=self.model.dtype)  # which adds its mask to the scores
            attention_mask = hidden.masked_fill_(~attention_mask, torch.finfo(hidden.dtype).min)

        def forward() -> Tensor:
            return self.backbone(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
            ).last_hidden_state

        inside = getattr(self.model, "inside", None)  # where it is cut over the ranks (rlhf.parallel.sharding)
        return inside(forward) if inside else forward()

    def lm_head(self) -> nn.Module:
        return self.model.get_output_embeddings()

    def frozen_lm_head(self) -> bool:
        return not any(p.requires_grad for p in self.lm_head().parameters())

    def logits_of(self, temperature: float, suppress: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        """The function from `[N, H]` hidden states to the `[N, V]` logits that are sampled from.

        Calls the LM head as a module, so a LoRA or 4-bit head takes part, and applies Gemma's soft cap.
        """
        lm_head = self.lm_head()

        def head(hidden: Tensor) -> Tensor:
            logits = lm_head(hidden)
            if self.logit_softcap:
                logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
            return shape_logits(logits, temperature, suppress)

        return head

    @torch.no_grad()
    def check_lm_head(self) -> None:
        """Refuses a model whose logits are more than its LM head of its last hidden state, such as scaled ones."""
        ids, training = torch.arange(1, 5, device=self.device).unsqueeze(0), self.model.training
        self.model.eval()
        with self.active():
            ours = self.logits_of(1.0, ())(self.hidden(ids)[0])
            theirs = self.model(input_ids=ids, use_cache=False).logits[0].float()
        self.model.train(training)
        if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
            difference = float((ours - theirs).abs().max())
            why = f"its logits are not its LM head of its last hidden state (they differ by {difference:.3g}), so "
            why += "log-probabilities of reply tokens cannot be computed in chunks"
            fix = "an architecture whose head is a plain linear layer, with or without a soft cap"
            raise Refusal("model", type(self.model).__name__, why, fix=fix)


def disable_dropout(model: nn.Module) -> None:
    """Dropout off everywhere, modules and the floats that functional dropout reads: a ratio must not depend on it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
            continue
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


HEAD_KEY = "base_model.model.score.weight"


def save_role(role: Role, folder: Path) -> None:
    """An adapter in PEFT's layout (with its head as a sequence classifier's), or a whole model in Hugging Face's."""
    folder.mkdir(parents=True, exist_ok=True)
    if role.peft is None:
        role.model.save_pretrained(folder)
        return
    tensors = adapter_weights(role.peft, str(role.adapter))
    config = copy.deepcopy(role.peft.peft_config[role.adapter])
    config.inference_mode = True
    if role.head is not None:
        tensors[HEAD_KEY] = role.head.linear.weight
        config.task_type, config.modules_to_save = "SEQ_CLS", ["classifier", "score"]
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    save_file(whole, folder / WEIGHTS, {"format": "pt"})
    config.save_pretrained(folder)


def load_role(role: Role, folder: Path) -> None:
    """Puts back what `save_role` saved, bit for bit; raises a Refusal when names or shapes do not match."""
    if role.peft is not None:
        own = adapter_weights(role.peft, str(role.adapter))
        stored, head = read_weights(folder)
        own |= {HEAD_KEY: role.head.linear.weight} if role.head is not None else {}
        stored |= {HEAD_KEY: head} if head is not None else {}
    else:
        own, stored = role.model.state_dict(keep_vars=True), {}
        for path in sorted(folder.glob("model*.safetensors")):
            stored |= load_file(str(path))
        pointers = {own[name].data_ptr() for name in stored if name in own}  # of two tied ones, one is saved
        own = {name: tensor for name, tensor in own.items() if name in stored or tensor.data_ptr() not in pointers}
    fill(own, stored, folder, f"checkpoint of the {role.name}")
