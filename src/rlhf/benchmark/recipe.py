"""What a recipe's PPO stage is worth when stock TRL does it: the same adapters, prompts and settings, the same judge."""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

from rlhf.config import Stage
from rlhf.errors import ConfigError
from rlhf.evaluation.annotators import annotator
from rlhf.evaluation.evaluate import answer
from rlhf.evaluation.judges import AnnotatorJudge
from rlhf.evaluation.metrics import summary
from rlhf.evaluation.samples import final_samples
from rlhf.evaluation.statistics import win_rate
from rlhf.files import FINAL
from rlhf.models.shared import load_roles
from rlhf.runs import record
from rlhf.runs.record import finished_stage


def compare_recipe(folder: Path) -> dict[str, Any]:
    """Trains stock PPO from the stages in `folder` (base, sft, reward and ppo are finished) and scores its replies.

    Returns the true preference, length and EOS rate of SFT, stock and ours on the prompts of ppo/samples.jsonl, and the
    win rate of ours against stock. Raises ConfigError when the recipe's data has no annotator or a stage is missing.
    """
    from rlhf.models.tokenizer import saved_tokenizer

    stage = finished_stage(folder / "ppo")
    judge = annotator(stage.dataset.annotator)
    if judge is None:
        why = "dataset.annotator=null, so nobody knows the true preference"
        raise ConfigError(f"{folder}: {why}\n  fix: recipe=support")
    if stage.adapter.name == "none":
        raise ConfigError(f"{folder}: adapter=none, but the comparison is of adapters\n  fix: adapter=lora")
    tokenizer = saved_tokenizer(folder / "ppo" / FINAL)
    finished_stage(folder / "sft")  # refuses a stage that is missing or unfinished
    samples = {name: final_samples(folder / name) for name in ("sft", "ppo")}
    asked, facts = [s["prompt_ids"] for s in samples["ppo"]], [s["facts"] for s in samples["ppo"]]
    if [s["prompt_ids"] for s in samples["sft"]] != asked:
        raise ConfigError(f"{folder}: sft and ppo were asked different prompts\n  fix: run both stages again")
    with tempfile.TemporaryDirectory() as output:
        seconds = _train_stock(stage, tokenizer, folder, Path(output))
        role = load_roles(stage, tokenizer, {"policy": Path(output)})["policy"]
        replies = answer(stage, tokenizer, role, asked, temperature=0.0)
    for sample, known in zip(replies, facts, strict=True):
        sample["gold"] = judge.score(known, sample["reply"])
    won = win_rate(AnnotatorJudge("annotator", judge).compare(samples["ppo"], replies).outcomes)
    return {
        "recipe": folder.name,
        "seed": stage.seed,
        "episodes": stage.method.args["total_episodes"],
        "prompts": len(asked),
        "sft": summary(samples["sft"]),
        "stock": summary(replies) | {"seconds": seconds},
        "ours": summary(samples["ppo"]) | {"seconds": record.read_run(folder / "ppo")["train_seconds"]},
        "win_rate": won.rate,
        "win_rate_ci": [won.low, won.high],
    }


def _train_stock(stage: Stage, tokenizer: Any, folder: Path, output: Path) -> float:
    """Stock's policy adapter into `output`; returns the seconds it trained.

    Stock gets what makes it do best: models of their own for all four roles, among them the SFT adapter as the reference
    (by itself it would take the bare base), replies that end, and the values of our settings wherever it has the field.
    """
    from peft import PeftModel
    from trl.experimental import ppo

    from rlhf.data.prepare import prepare
    from rlhf.methods.arguments import training_arguments
    from rlhf.models.base import load_base
    from rlhf.models.tokenizer import prompt_renderer, renderer

    def adapted(start: Path, reward: bool, trained: bool) -> Any:
        return PeftModel.from_pretrained(load_base(stage, tokenizer, reward=reward), str(start), is_trainable=trained)

    start, scored = Path(str(stage.method.start_from)), Path(str(stage.method.reward_model))
    data = prepare(stage, renderer(stage, tokenizer), prompt_renderer(stage, tokenizer))
    rows = data.train.select_columns(["input_ids"])
    args = training_arguments(stage)
    known = {f.name for f in dataclasses.fields(ppo.PPOConfig) if f.init}
    settings = {name: getattr(args, name) for name in sorted({*stage.method.args, *SHARED} & known)}
    settings |= {"output_dir": str(output / "run"), "save_strategy": "no", "stop_token": "eos", "report_to": "none"}
    tokenizer.padding_side = "left"
    config = ppo.PPOConfig(**settings, num_sample_generations=0)
    policy, reference = adapted(start, False, True), adapted(start, False, False)
    reward, value = adapted(scored, True, False), adapted(scored, True, True)
    trainer = ppo.PPOTrainer(config, tokenizer, policy, reference, reward, rows, value, eval_dataset=rows)
    began = time.time()
    trainer.train()
    trainer.policy_model.save_pretrained(str(output), save_embedding_layers=False)
    return round(time.time() - began, 1)


SHARED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "local_rollout_forward_batch_size",
    "num_mini_batches",
    "total_episodes",
    "adam_epsilon",
    "lr_scheduler_type",
    "gradient_checkpointing",
    "bf16",
    "use_cpu",
    "seed",
    "logging_steps",
    "disable_tqdm",
)
