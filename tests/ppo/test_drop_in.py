"""What scripts written for stock TRL do with the class, beyond its arguments."""

import copy
from types import SimpleNamespace

import torch


def models(workshop):
    return SimpleNamespace(
        policy=workshop.load(), reference=None, reward=workshop.load_reward(), value=workshop.load_reward()
    )


def test_a_pad_token_without_an_embedding_pads_as_in_stock(workshop, prompts, tmp_path):
    """TRL's own tests add [PAD] to the tokenizer and resize nothing; stock puts 0 where it stands and masks it."""
    from tests.workshop import trainer

    def run(tokenizer, folder):
        given = SimpleNamespace(tokenizer=tokenizer)
        done = trainer(given, models(workshop), prompts, folder, total_episodes=8, eval_dataset=prompts)
        done.train()
        done.evaluate()
        return done

    padded = copy.deepcopy(workshop.tokenizer)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    assert padded.pad_token_id == workshop.load().get_input_embeddings().num_embeddings
    new, old = run(padded, tmp_path / "new"), run(workshop.tokenizer, tmp_path / "old")
    assert new.loop.policy.filler(padded.pad_token_id) == 0
    # the workshop's own pad, id 0, is never sampled; a pad without a logit takes nothing from the policy's ids
    with torch.no_grad():
        hidden = torch.randn(2, 64)
        probabilities = [torch.softmax(one.policy.logits_of(1.0, (one.loop.pad_id,))(hidden), -1) for one in (new, old)]
    assert (probabilities[0][:, 0] > 0).all() and not probabilities[1][:, 0].any()
    assert {"objective/kl", "eval_objective/kl"} <= {key for row in new.state.log_history for key in row}


def test_what_stands_in_padding_is_never_read(workshop, make_trainer):
    """The log-probabilities of replies of different lengths, padded with one id and with another."""
    from rlhf.generation.batches import lay_out, reply_mask

    trainer = make_trainer()
    prompts, replies = [[1, 5, 6], [1, 7]], [[8, 2], [9, 10, 11, 2]]
    mask = reply_mask(replies, torch.device("cpu"))
    found = [
        trainer.loop.forward.reply_logprobs(
            trainer.policy, lay_out(prompts, replies, 2, fill, torch.device("cpu")), mask
        )
        for fill in (0, 42)
    ]
    assert torch.equal(*found) and found[0].any()


def test_the_model_shows_policy_and_value_as_stock_does(workshop, make_trainer):
    given = models(workshop)
    trainer = make_trainer(given)
    assert trainer.model.policy is given.policy and trainer.model.value_model is given.value
    assert not [name for name in trainer.model.state_dict() if name.startswith(("policy", "value_model"))]
    roles = make_trainer()
    assert roles.model.policy is roles.model and roles.model.value_model is roles.value.peft
