"""Two ranks with a model cut over them, as a program that `rlhf.parallel.start` runs once for each."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rlhf.errors import ConfigError, Elsewhere
from rlhf.parallel import ranks


def _merge(base: Any) -> None:
    """Each rank finds the whole model in what it made of an adapter."""
    from peft import LoraConfig, get_peft_model

    from rlhf.config import compose_config, to_stage
    from rlhf.models.base import merged

    stage = to_stage(compose_config(["recipe=support/sft", "adapter=none", "quantization=none"]))
    with TemporaryDirectory() as folder:
        base.should_save_on_this_rank = lambda _: True
        base.save_pretrained(f"{folder}/base")
        base.name_or_path = f"{folder}/base"
        get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(f"{folder}/adapter")
        with merged(stage, f"{folder}/adapter") as place:
            assert {file.name for file in Path(place).iterdir()} >= {"config.json", "model.safetensors"}


def main() -> None:
    ranks.meet(2, on_gpu=False)
    import torch
    from torch.distributed.tensor import DTensor
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf.parallel import sharding

    torch.manual_seed(ranks.rank())  # the main rank's weights count
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    plain = LlamaForCausalLM(LlamaConfig(vocab_size=31, tie_word_embeddings=True, **sizes))
    ids = torch.arange(24).view(2, 12)
    model = sharding.shard(copy.deepcopy(plain), "cpu")
    for parameter in plain.parameters():
        ranks.same(parameter.data)
    for parameter in model.parameters():
        assert isinstance(parameter, DTensor)
        assert parameter.to_local().numel() <= -(-parameter.shape[0] // 2) * parameter[0].numel()
    assert sharding.is_sharded(model) and not sharding.is_sharded(plain)

    def loss(one: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return one(input_ids=rows, labels=rows).loss

    steps = [torch.optim.AdamW(one.parameters(), lr=0.01) for one in (plain, model)]
    for _ in range(2):
        (loss(plain, ids[:1]) + loss(plain, ids[1:])).backward()
        loss(model, ids[ranks.rank() :][:1]).backward()  # a row each, added up
        for step in steps:
            step.step()
            step.zero_grad()
    with sharding.gathered(model, steps[1]):
        made, numbers = copy.deepcopy((model.state_dict(), steps[1].state_dict()))
    if ranks.is_main():
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(made[name], tensor, rtol=0, atol=1e-6)
        assert made["lm_head.weight"] is made["model.embed_tokens.weight"]
        for place, own in steps[0].state_dict()["state"].items():
            torch.testing.assert_close(numbers["state"][place], own)
    inside = model.inside(lambda: model.model(input_ids=ids).last_hidden_state)
    torch.testing.assert_close(inside, plain.model(input_ids=ids).last_hidden_state)

    _merge(plain)
    try:  # what fails inside of what all agree on is said by who knows it
        with ranks.agreed(), ranks.agreed():
            if ranks.rank():
                raise ConfigError("only here")
        raise AssertionError("what fails on one rank fails on all")
    except (ConfigError, Elsewhere) as error:
        assert (type(error) is ConfigError) == bool(ranks.rank())
    print("cut", flush=True)


main()
