"""What a Hugging Face trainer promises: callbacks, limits, schedules, evaluation, checkpoints, metrics."""

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.ppo.defects.helpers import (
    PROMPTS,
    defect,
    equal,
    logged,
    record_rows,
    refusal,
    tiny_policy,
    tiny_scorer,
    weights,
)

HELD_OUT = Dataset.from_dict({"input_ids": PROMPTS[-3:]})
EVALUATE = {"eval_strategy": "steps", "eval_steps": 1, "num_sample_generations": 1}
SAVE = {"save_strategy": "steps", "save_steps": 1}


class StopAtOnce(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


class Listener(TrainerCallback):
    def __init__(self):
        self.heard = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.heard.append("epoch begins")

    def on_step_begin(self, args, state, control, **kwargs):
        self.heard.append("step begins")

    def on_epoch_end(self, args, state, control, **kwargs):
        self.heard.append("epoch ends")


@defect("ppo_trainer.py:669 and 913: control.should_training_stop is never read")
def test_a_callback_stops_the_run(contender):
    trainer = contender.build(total_episodes=12, callbacks=[StopAtOnce()])
    trainer.train()
    assert trainer.state.global_step == 1


@defect("ppo_trainer.py:669-670: on_epoch_begin, on_step_begin and on_epoch_end are never called")
def test_callbacks_hear_of_epochs_and_steps(contender):
    listener = Listener()
    contender.build(prompts=PROMPTS[:8], total_episodes=8, callbacks=[listener]).train()
    assert listener.heard == ["epoch begins", "step begins", "step begins", "epoch ends"]


@defect("ppo_trainer.py:478 and 669: max_steps is accepted and ignored")
def test_max_steps_ends_the_run(contender):
    trainer = contender.build(total_episodes=12, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


@defect("ppo_trainer.py:478: rounds up, so a run uses more episodes than it was given")
def test_total_episodes_is_a_limit(contender):
    trainer = contender.build(total_episodes=6)
    trainer.train()
    assert trainer.state.episode <= 6


@defect("ppo_trainer.py:910: logs every update, whatever logging_steps says")
def test_logging_steps_thins_the_log(contender):
    trainer = contender.build(total_episodes=16, logging_steps=2)
    trainer.train()
    assert [row["step"] for row in trainer.state.log_history] == [2, 4]


@defect("ppo_trainer.py:604 and 945-949: train() returns nothing")
def test_train_returns_what_it_did(contender):
    output = contender.build().train()
    assert output is not None and output.global_step == 1


@defect("ppo_trainer.py:921-922: eval_strategy is ignored, nothing but a table is printed")
def test_evaluation_runs_on_schedule(contender):
    trainer = contender.build(eval_dataset=HELD_OUT, total_episodes=8, **EVALUATE)
    trainer.train()
    evaluated = [row["step"] for row in trainer.state.log_history if any(key.startswith("eval_") for key in row)]
    assert evaluated == [1, 2]


@defect("ppo_trainer.py:546 against 359: a dict of eval sets is taken for one", raises=KeyError, match="^0$")
def test_several_eval_sets_work(contender):
    sets = {"near": HELD_OUT, "far": HELD_OUT}
    trainer = contender.build(eval_dataset=sets, per_device_eval_batch_size=1, **EVALUATE)
    trainer.train()
    assert all(logged(trainer, f"eval_{name}_objective/scores") for name in sets)


@defect("ppo_trainer.py:550: drop_last leaves nothing of an eval set smaller than a batch, silently")
def test_a_small_eval_set_is_evaluated(contender):
    reward = tiny_scorer()
    trainer = contender.build(eval_dataset=HELD_OUT, per_device_eval_batch_size=8, reward=reward)
    rows = record_rows(reward.model)
    trainer.generate_completions()
    assert len(rows) == len(HELD_OUT)


@defect(
    "ppo_trainer.py:604, TRL#2657: train() cannot resume", raises=TypeError, match="argument 'resume_from_checkpoint'"
)
def test_a_run_resumes(contender):
    whole, again = tiny_policy(), tiny_policy()
    contender.build(policy=whole, total_episodes=8, **SAVE).train()
    trainer = contender.build(policy=again, total_episodes=8, **SAVE)
    trainer.train(resume_from_checkpoint=str(contender.folder / "checkpoint-1"))
    assert trainer.state.global_step == 2 and equal(weights(again), weights(whole))


@defect("ppo_trainer.py:590-598: only the policy is saved, the value is lost")
def test_a_checkpoint_holds_the_value(contender):
    value = tiny_scorer(2)
    contender.build(value=value, **SAVE).train()
    saved = [t for p in contender.folder.rglob("*.safetensors") for t in load_file(p).values()]
    assert any(equal([value.score.weight], [tensor]) for tensor in saved)


@defect("ppo_trainer.py:888-907: nothing on lengths, EOS, spread of scores, gradient norms or the value's fit")
def test_what_a_run_must_be_watched_by_is_logged(contender):
    trainer = contender.build()
    trainer.train()
    watched = "length/mean length/eos_rate reward/mean reward/std policy/grad_norm value/explained_variance"
    assert set(watched.split()) <= trainer.state.log_history[0].keys()


@defect(
    "ppo_trainer.py:857 and 867, TRL#7041: approxkl and entropy average over padding, so one long reply dilutes them"
)
def test_metrics_do_not_depend_on_padding(contender):
    def changes(width):
        trainer = contender.build(num_ppo_epochs=2, stop_token_id=2)
        contender.force(trainer, lambda prompt: [prompt[1], 7, 2], width)
        trainer.train()
        return logged(trainer, "policy/approxkl_avg") + logged(trainer, "policy/entropy_avg")

    assert changes(6) == pytest.approx(changes(24), rel=1e-3)


@defect("ppo_trainer.py:460: builds its Accelerator without the plugins of fsdp and deepspeed, and shards nothing")
def test_sharding_that_does_not_happen_is_refused(contender):
    assert "fsdp" in refusal(lambda: contender.build(fsdp=True))
