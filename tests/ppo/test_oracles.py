"""The arithmetic of PPO against plain references: log-probabilities, GAE, whitening, clipped losses, KL control."""

import numpy as np
import pytest
import torch

from rlhf.errors import Refusal
from rlhf.generation import logprobs
from rlhf.generation.logprobs import token_logprobs, token_logprobs_and_entropy
from rlhf.models.roles import shape_logits
from rlhf.ppo import objective
from rlhf.ppo.objective import KLController, RunningMoments, policy_terms, shape_scores, value_terms
from rlhf.rewards.scorers import Combined, FunctionScorer

SUPPRESS = (0, 7)


def make_head(vocabulary=50, size=12, softcap=None, dtype=torch.float64):
    torch.manual_seed(0)
    linear = torch.nn.Linear(size, vocabulary, bias=False, dtype=dtype)

    def head(hidden):
        logits = linear(hidden)
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        return shape_logits(logits, 0.7, SUPPRESS)

    return linear, head


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_chunked_logprobs_equal_full_log_softmax(chunk, frozen, softcap):
    linear, head = make_head(softcap=softcap)
    linear.requires_grad_(not frozen)
    hidden = torch.randn(11, 12, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(8, 50, (11,))
    weights = torch.randn(11, dtype=torch.float64)
    ours = token_logprobs(hidden, targets, head, chunk=chunk, frozen_head=frozen)
    (ours * weights).sum().backward()
    gradient, head_gradient = hidden.grad.clone(), None if frozen else linear.weight.grad.clone()
    hidden.grad = linear.weight.grad = None

    logits = hidden @ linear.weight.T
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    logits = logits / 0.7
    logits[:, list(SUPPRESS)] = -torch.inf
    full = torch.log_softmax(logits, -1)[torch.arange(11), targets]
    (full * weights).sum().backward()
    assert torch.allclose(ours, full, atol=1e-12)
    assert torch.allclose(gradient, hidden.grad, atol=1e-12)
    if not frozen:
        assert torch.allclose(head_gradient, linear.weight.grad, atol=1e-12)


@pytest.mark.parametrize("frozen", [True, False])
def test_logprobs_pass_gradcheck(frozen):
    linear, head = make_head(vocabulary=13, size=5)
    linear.requires_grad_(not frozen)
    targets = torch.tensor([1, 12, 3, 3])
    hidden = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: token_logprobs(h, targets, head, chunk=3, frozen_head=frozen), hidden)


def test_logprobs_are_fp32_from_bf16_and_sum_to_one():
    _, head = make_head(dtype=torch.bfloat16)
    hidden = torch.randn(1, 12, dtype=torch.bfloat16).expand(50, 12)
    logprobs = token_logprobs(hidden, torch.arange(50), head, chunk=7)
    assert logprobs.dtype == torch.float32
    assert float(logprobs.exp().sum()) == pytest.approx(1, abs=1e-6)
    assert logprobs[list(SUPPRESS)].exp().max() == 0


def test_entropy_against_definition():
    _, head = make_head()
    hidden = torch.randn(6, 12, dtype=torch.float64)
    _, ours = token_logprobs_and_entropy(hidden, torch.full((6,), 9), head, chunk=4)
    probabilities = torch.softmax(head(hidden), -1)
    keep = [i for i in range(50) if i not in SUPPRESS]
    plain = -(probabilities * probabilities.log())[:, keep].sum(-1)
    assert torch.allclose(ours, plain, atol=1e-12)


def plain_gae(rewards, values, gamma, lam):
    """One row: sum over l of (gamma lambda)^l times the temporal difference."""
    n = len(rewards)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]


def ragged(lengths, width):
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_gae_on_ragged_replies(gamma, lam):
    lengths = [1, 3, 7, 7]
    mask = ragged(lengths, 7)
    torch.manual_seed(1)
    rewards, values = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    rewards[~mask], values[~mask] = float("nan"), float("inf")
    ours, returns = objective.generalized_advantages(rewards, values, mask, gamma, lam)
    for i, n in enumerate(lengths):
        wanted = plain_gae(rewards[i, :n].tolist(), values[i, :n].tolist(), gamma, lam)
        assert ours[i, :n].tolist() == pytest.approx(wanted)
        assert (returns[i, :n] - values[i, :n]).tolist() == pytest.approx(wanted)
    assert not ours[~mask].any() and not returns[~mask].any()


def test_gae_by_hand():
    # r = (0, 0, 1), V = (0.5, 0.5, 0.5), gamma 1, lambda 0.5: deltas (0, 0, 0.5)
    mask = torch.ones(1, 3, dtype=torch.bool)
    ours, returns = objective.generalized_advantages(
        torch.tensor([[0.0, 0, 1]]), torch.full((1, 3), 0.5), mask, 1.0, 0.5
    )
    assert ours.tolist() == [[0.125, 0.25, 0.5]]
    assert returns.tolist() == [[0.625, 0.75, 1.0]]


def test_score_is_paid_to_the_last_token_of_the_reply():
    mask = ragged([2, 4], 4)
    rewards = objective.token_rewards(torch.full((2, 4), 0.5), torch.tensor([1.0, -3.0]), mask, kl_coef=0.1)
    wanted = [[-0.05, 0.95, 0, 0], [-0.05, -0.05, -0.05, -3.05]]
    assert torch.allclose(rewards, torch.tensor(wanted))
    # gamma 1, lambda 0, V 0: the token that ends the reply has the score as its advantage
    ours, _ = objective.generalized_advantages(
        objective.token_rewards(torch.zeros(2, 4), torch.tensor([1.0, -3.0]), mask, 0.0),
        torch.zeros(2, 4),
        mask,
        1.0,
        0.0,
    )
    assert ours.tolist() == [[0, 1, 0, 0], [0, 0, 0, -3]]


def test_whitening_is_global_and_guarded():
    mask = ragged([3, 1], 3)
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]])
    white = objective.whiten(values, mask)
    assert white[mask].mean() == pytest.approx(0, abs=1e-6) and white[mask].std() == pytest.approx(1, abs=1e-5)
    assert not white[~mask].any()
    kept = objective.whiten(values, mask, shift_mean=False)
    assert kept[mask].mean() == pytest.approx(3.0, abs=1e-5)
    one = objective.whiten(torch.tensor([[5.0]]), torch.tensor([[True]]))
    assert one.tolist() == [[0.0]]
    none = objective.whiten(torch.tensor([[5.0]]), torch.tensor([[False]]))
    assert none.tolist() == [[0.0]]


def test_kl_estimates():
    policy, reference = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    k1, k3 = logprobs.kl_estimates(policy, reference)
    exact = float((policy.exp() * (policy - reference)).sum())
    assert float((policy.exp() * k1).sum()) == pytest.approx(exact)
    assert float((policy.exp() * k3).sum()) == pytest.approx(exact)
    assert (k3 >= 0).all()
    assert logprobs.kl_estimates(policy, policy)[1].tolist() == [0, 0, 0]


def test_explained_variance():
    mask = ragged([4], 5)
    returns = torch.tensor([[1.0, 2.0, 3.0, 4.0, 50.0]])
    assert float(objective.explained_variance(returns, returns, mask)) == 1
    assert float(objective.explained_variance(torch.zeros_like(returns), returns, mask)) == 0
    assert float(objective.explained_variance(-returns, returns, mask)) < 0


def test_policy_loss_against_numpy():
    rng = np.random.default_rng(0)
    new, old, advantage = rng.normal(size=(3, 40))
    terms = policy_terms(*(torch.tensor(x) for x in (new, old, advantage)), cliprange=0.2)
    ratio = np.exp(new - old)
    losses = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 0.8, 1.2))
    assert float(terms.loss) == pytest.approx(losses.sum())
    assert int(terms.clipped) == int((losses > -advantage * ratio).sum())
    assert float(terms.squared) == pytest.approx(((new - old) ** 2).sum())
    assert float(terms.k3) == pytest.approx((ratio - 1 - np.log(ratio)).sum())
    assert float(terms.ratio_max) == pytest.approx(np.maximum(ratio, 1 / ratio).max())


def test_value_loss_against_numpy():
    rng = np.random.default_rng(0)
    new, old, returns = rng.normal(size=(3, 40))
    terms = value_terms(*(torch.tensor(x) for x in (new, old, returns)), cliprange=0.2)
    near = np.clip(new, old - 0.2, old + 0.2)
    assert float(terms.loss) == pytest.approx(0.5 * np.maximum((new - returns) ** 2, (near - returns) ** 2).sum())
    assert int(terms.clipped) == int(((near - returns) ** 2 > (new - returns) ** 2).sum())


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.0), (60.0, 1 + 0.2 * 64 / 10_000), (0.0, 1 - 0.2 * 64 / 10_000)])
def test_adaptive_kl_follows_ziegler(kl, factor):
    controller = KLController(0.15, target=6.0, horizon=10_000)
    controller.update(kl, 64)
    assert controller.coefficient == pytest.approx(0.15 * factor)


def test_fixed_kl_stays():
    controller = KLController(0.05)
    controller.update(100.0, 64)
    assert controller.coefficient == 0.05


def test_scores_are_shaped():
    raw, ended = torch.tensor([5.0, 1.0, -9.0]), torch.tensor([True, False, True])
    common = {"center": 1.0, "scale": 2.0, "clip": 1.5}
    replaced = shape_scores(raw, ended, **common, missing_eos_penalty=1.0, replace=True)
    assert replaced.tolist() == [1.5, -1.0, -1.5]
    less = shape_scores(raw, ended, **common, missing_eos_penalty=1.0, replace=False)
    assert less.tolist() == [1.5, -1.0, -1.5]
    assert shape_scores(raw + 1, ended, **common, missing_eos_penalty=1.0, replace=False).tolist() == [1.5, -0.5, -1.5]
    assert raw.tolist() == [5.0, 1.0, -9.0]
    assert shape_scores(raw, ended, **common, missing_eos_penalty=None, replace=True).tolist() == [1.5, 0.0, -1.5]


def test_running_moments_equal_those_of_all_scores():
    torch.manual_seed(0)
    parts = [torch.randn(n) * 3 + 1 for n in (1, 4, 9)]
    moments = RunningMoments()
    for part in parts:
        moments.update(part)
    everything = torch.cat(parts).double()
    assert moments.mean == pytest.approx(float(everything.mean()))
    assert moments.std == pytest.approx(float(everything.std()))


def test_scorers_combine(workshop):
    prompts, replies, rows = [[5]], [[6, 2]], [{}]
    members = [FunctionScorer(lambda p, r, d, s=s: [s], workshop.tokenizer) for s in (1.0, 3.0)]
    assert Combined(members)(prompts, replies, rows).tolist() == [2.0]
    assert Combined(members, "minimum")(prompts, replies, rows).tolist() == [1.0]
    assert Combined(members, "mean_minus_spread", 0.5)(prompts, replies, rows).tolist() == [1.5]
    wrong = FunctionScorer(lambda p, r, d: [1.0, 2.0], workshop.tokenizer)
    with pytest.raises(Refusal, match=r"returned scores of shape \(2,\) for 1 replies\n  fix: one number a reply"):
        wrong(prompts, replies, rows)


def test_the_entropy_that_is_logged_is_computed_in_fp32_under_autocast():
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) * 3
    table = torch.log_softmax(logits, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        entropy = logprobs.look(logits, table, logits.argmax(-1))[:, 0]
    torch.testing.assert_close(entropy, -(table.exp() * table).sum(-1), rtol=1e-5, atol=0)
