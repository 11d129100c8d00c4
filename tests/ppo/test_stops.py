"""A reply ends at the same tokens in training, evaluation and chat, also where a model has two that end it."""

import json
import shutil
from types import SimpleNamespace

from datasets import Dataset

from rlhf import chat
from rlhf.evaluation.evaluate import answer
from rlhf.generation.sampling import sample_replies, stream
from rlhf.methods import ppo
from rlhf.models.shared import load_roles
from rlhf.people.collect import Speaker

LIMIT = 6


def test_two_ids_end_a_reply_in_training_evaluation_and_chat(workshop, stage_of, tmp_path):
    base = shutil.copytree(workshop.base, tmp_path / "base")
    whole = {"adapter": "none", "quantization": "none", "model__path": base, "method__start_from": base}
    settings = {"method__args__eval_temperature": 0.0, "evaluation__max_new_tokens": LIMIT}
    stage = stage_of("function:exact_match", **whole, **settings)
    prompts = [[1, 5 + i, 6] for i in range(8)]
    options = {"max_new_tokens": LIMIT, "temperature": 0.0, "pad_id": 0, "generator": stream(0, "", 0), "chunk_size": 8}

    def policy():
        return load_roles(stage, workshop.tokenizer, {"policy": base})["policy"]

    unending = sample_replies(policy(), prompts, eos_ids=[2], **options)
    assert not any(unending.ended)
    second = unending.tokens[0][2]  # what greedy decoding writes third
    wanted = [ids[: ids.index(second) + 1] if second in ids else ids for ids in unending.tokens]
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, second]}))

    samples = answer(stage, workshop.tokenizer, policy(), prompts, temperature=0.0)
    assert [sample["ids"] for sample in samples] == wanted and len(wanted[0]) <= 3
    spare = {"messages": ["null"] * 8, "reference": ["w7"] * 8, "facts": ["null"] * 8}
    rows = Dataset.from_dict({"input_ids": prompts, **spare})
    trainer = ppo.build(stage, workshop.tokenizer, SimpleNamespace(train=rows, eval=rows))
    assert trainer.loop.eos_ids == (2, second)
    metrics = trainer.evaluate()
    assert metrics["eval_objective/eos_rate"] == sum(sample["ended"] for sample in samples) / 8 > 0
    assert metrics["eval_objective/length"] == sum(sample["length"] for sample in samples) / 8 < LIMIT
    renderer = SimpleNamespace(prompt=lambda dialogue: dialogue.messages)
    speaker = Speaker("policy", stage, workshop.tokenizer, renderer, policy(), "", "")
    for prompt, ids in zip(prompts, wanted, strict=True):
        said = "".join(chat.answer(speaker, prompt, 0.0, LIMIT))
        assert said == workshop.tokenizer.decode([i for i in ids if i != second], skip_special_tokens=True)
