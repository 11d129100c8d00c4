"""Replies: where they end, which token is paid, who scores them."""

import json
import math

import pytest
import torch

from tests.ppo.defects.helpers import (
    BOS,
    END,
    EOS,
    PAD,
    VOCABULARY,
    defect,
    equal,
    logged,
    record_rows,
    refusal,
    tiny_policy,
    tiny_scorer,
    tiny_tokenizer,
    weights,
)


@defect("ppo_trainer.py:211, 727 and 764, TRL#5303: with pad = EOS the EOS is masked, stopping is never trained")
def test_pad_equal_to_eos_is_refused(contender):
    assert "EOS" in refusal(lambda: contender.build(tokenizer=tiny_tokenizer(pad_token="</s>")))


@defect("ppo_trainer.py:727 and 242: a sampled pad ends a reply, as its first token before its start: 0/0 is the loss")
def test_a_policy_that_likes_pad_has_a_loss(contender):
    policy = tiny_policy(prefer={PAD: math.log(VOCABULARY - 1)})
    policy.lm_head.weight.data.zero_()  # pad is half of the probability: some of 16 replies begin with it, not all
    rows = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "total_episodes": 16}
    trainer = contender.build(policy=policy, **rows)
    trainer.train()
    assert math.isfinite(logged(trainer, "loss/policy_avg")[0])


@defect("ppo_trainer.py:767 and 778-779, TRL#3750: the score is paid to the state behind EOS, to no action")
def test_score_reaches_the_actions_of_a_reply_that_ended(contender):
    policy = tiny_policy()
    only_the_score = {"lam": 0.0, "kl_coef": 0.0, "value": tiny_scorer(weight=0.0)}
    trainer = contender.build(policy=policy, stop_token_id=EOS, **only_the_score)
    contender.force(trainer, lambda prompt: [prompt[1], 9, 17, EOS], width=6)
    before = weights(policy)
    trainer.train()
    assert not equal(weights(policy), before)


@defect("ppo_trainer.py:768, 828 and 837: the value is trained on the state behind EOS")
def test_value_is_trained_on_the_states_of_the_reply(contender):
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "total_episodes": 1}
    trainer = contender.build(lam=0.0, kl_coef=0.0, value=tiny_scorer(weight=0.0), stop_token_id=EOS, **one)
    contender.force(trainer, lambda prompt: [prompt[1], 9, 17, EOS], width=6)
    trainer.train()
    score = logged(trainer, "objective/scores")[0]
    # values are 0 and one return of four is the score
    assert logged(trainer, "loss/value_avg") == pytest.approx([0.5 * score**2 / 4], rel=1e-4)


@defect("ppo_trainer.py:757, TRL#3750: missing_eos_penalty looks for the tokenizer's EOS, whatever the stop token is")
def test_a_reply_that_ended_with_the_stop_token_is_not_penalized(contender):
    trainer = contender.build(stop_token_id=END, missing_eos_penalty=1.0, reward=tiny_scorer(weight=0.0))
    contender.force(trainer, lambda prompt: [prompt[1], 9, END], width=6)
    trainer.train()
    assert logged(trainer, "objective/scores") == [0.0]


@defect("ppo_trainer.py:759: subtracts from the score of an unfinished text instead of replacing it (arXiv:2403.17031)")
def test_the_score_of_an_unfinished_reply_is_replaced(contender):
    trainer = contender.build(stop_token_id=EOS, missing_eos_penalty=1.0)
    contender.force(trainer, lambda prompt: [prompt[1], 9, 17, 25, 30, 31])
    trainer.train()
    assert logged(trainer, "objective/scores") == [-1.0]


@defect("ppo_trainer.py:757-759, ppo_config.py:61: 'must be a positive value' is not checked")
def test_a_reward_for_never_ending_is_refused(contender):
    assert "missing_eos_penalty" in refusal(lambda: contender.build(stop_token="eos", missing_eos_penalty=-1.0))


@defect("ppo_trainer.py:395-401: overwrites the policy's EOS ids, and saves them so")
def test_the_saved_generation_config_keeps_its_eos_ids(contender):
    policy = tiny_policy()
    policy.generation_config.eos_token_id = [EOS, END]
    trainer = contender.build(policy=policy)
    trainer.save_model(str(contender.folder))
    saved = json.loads((contender.folder / "generation_config.json").read_text())
    assert saved.get("eos_token_id") == [EOS, END]


@defect("ppo_trainer.py:401 and 720, TRL#2387: by default nothing ends a reply")
def test_a_reply_ends_at_eos_by_default(contender):
    reward = tiny_scorer()
    trainer = contender.build(policy=tiny_policy(prefer={EOS: 4.0}), reward=reward)
    rows = record_rows(reward.model)
    trainer.train()
    assert any(EOS in row for row in rows) and not [row for row in rows if EOS in row[:-1]]


@defect("ppo_config.py:161: stop_token_id is one integer; chat models end a turn with one id and a text with another")
def test_several_ids_end_a_reply(contender):
    reward, stops = tiny_scorer(), [EOS, END]
    policy = tiny_policy(prefer={EOS: 4.0, END: 4.0})
    trainer = contender.build(policy=policy, reward=reward, response_length=12, **contender.stops(stops))
    rows = record_rows(reward.model)
    trainer.train()
    assert not [row for row in rows if set(row[:-1]) & set(stops)]


@defect("ppo_trainer.py:391: a stop_token_id of 0 slips through the check against stop_token")
def test_two_stop_tokens_are_refused(contender):
    assert "both" in refusal(lambda: contender.build(stop_token="eos", stop_token_id=0))


@defect("ppo_trainer.py:388 and 98-110: prompts padded on the right are continued behind the pads")
def test_padding_side_of_the_tokenizer_does_not_matter(contender):
    def greedy(side):
        reward = tiny_scorer()
        policy = tiny_policy(prefer={PAD: -30.0})
        trainer = contender.build(
            policy=policy, reward=reward, temperature=1e-3, tokenizer=tiny_tokenizer(padding_side=side)
        )
        rows = record_rows(reward.model)
        trainer.train()
        return sorted(rows)

    assert greedy("right") == greedy("left")


@defect("ppo_trainer.py:626-627 and 905: rows that ended are filled up with EOS, and the filler is counted")
def test_a_reply_has_one_eos(contender):
    policy = tiny_policy(prefer={EOS: 3.0})
    policy.generation_config.pad_token_id = None
    trainer = contender.build(policy=policy, stop_token="eos", response_length=12)
    trainer.train()
    assert logged(trainer, "val/num_eos_tokens")[0] <= 4


@defect("ppo_trainer.py:733-735, TRL#1979: ids go to a reward model of another vocabulary unchecked")
def test_a_reward_model_without_the_ids_of_the_policy_is_refused(contender):
    assert "vocabulary" in refusal(lambda: contender.build(reward=tiny_scorer(vocab_size=16)))


@defect("ppo_trainer.py:489-491, TRL#2273: a reward must be a module", raises=AttributeError, match="'modules'")
def test_a_function_can_score(contender):
    trainer = contender.build(reward=lambda prompts, replies, rows: torch.full((len(prompts),), 0.5))
    trainer.train()
    assert logged(trainer, "objective/scores") == [0.5]


@defect("ppo_trainer.py:620-627: nothing checks that a reply has room behind its prompt")
def test_a_prompt_without_room_for_a_reply_is_refused(contender):
    assert "context" in refusal(lambda: contender.build(prompts=[[BOS] + [5] * 124] * 8))
