"""Log-probabilities: one precision, one distribution and one forward pass for sampling, reference and training."""

import pytest
import torch

from tests.ppo.defects.helpers import defect, logged, refusal, tiny_policy, tiny_scorer

UNTRAINED = {"learning_rate": 0.0, "num_ppo_epochs": 1}


def bf16_models():
    policy, reward, value = tiny_policy(), tiny_scorer(1), tiny_scorer(2)
    return {"policy": policy.bfloat16(), "reward": reward.bfloat16(), "value": value.bfloat16()}


@defect("ppo_trainer.py:460: builds its Accelerator without mixed_precision, so bf16=True computes in fp32")
def test_bf16_computes_in_bf16(contender):
    policy, dtypes = tiny_policy(), set()
    trainer = contender.build(policy=policy, bf16=True)
    policy.model.layers[0].mlp.down_proj.register_forward_hook(lambda module, args, out: dtypes.add(out.dtype))
    trainer.train()
    assert dtypes == {torch.bfloat16}


@defect("ppo_trainer.py:712-714: the reference's log-softmax is taken in bf16, the policy's in fp32")
def test_kl_of_equal_bf16_models_is_zero(contender):
    trainer = contender.build(**bf16_models())
    contender.force(trainer, lambda prompt: [prompt[1], 9, 17, 25])  # the same logits for both, no decoding
    trainer.train()
    assert logged(trainer, "objective/kl") == [0.0]


@defect(
    "ppo_trainer.py:703 against 820-823: old log-probabilities are of fp32 decoding scores, new ones of a bf16 pass"
)
def test_ratio_of_an_untrained_bf16_policy_is_one(contender):
    trainer = contender.build(**bf16_models(), **UNTRAINED)
    trainer.train()
    assert logged(trainer, "policy/approxkl_avg") == [0.0]


@defect("ppo_trainer.py:101-110 and 703: the model's repetition penalty is in the old log-probabilities only")
def test_generation_config_does_not_reach_the_ratio(contender):
    policy = tiny_policy()
    policy.generation_config.repetition_penalty = 1.3
    trainer = contender.build(policy=policy, **UNTRAINED)
    trainer.train()
    assert logged(trainer, "policy/approxkl_avg") == pytest.approx([0.0], abs=1e-9)


@defect(
    "ppo_trainer.py:293 and experimental/utils.py:783: heads read states outside autocast, in the backbone's precision",
    raises=RuntimeError,
    match="same dtype",
)
def test_heads_may_be_more_precise_than_their_backbone(contender):
    models = bf16_models()
    for model in (models["reward"], models["value"]):
        model.score.float()
    trainer = contender.build(**models, bf16=True)
    trainer.train()
    assert logged(trainer, "objective/scores") and models["value"].score.weight.dtype == torch.float32


@defect("ppo_trainer.py:491 and 639: functional dropout stays on, in sampling too")
def test_attention_dropout_is_off(contender):
    trainer = contender.build(policy=tiny_policy(attention_dropout=0.5), **UNTRAINED)
    trainer.train()
    assert logged(trainer, "policy/approxkl_avg") == pytest.approx([0.0], abs=1e-9)


@defect("ppo_config.py:94-97, ppo_trainer.py:774: k3 in the reward has a biased gradient (arXiv:2512.21852)")
def test_k3_in_the_reward_is_refused(contender):
    assert "k3" in refusal(lambda: contender.build(kl_estimator="k3"))
