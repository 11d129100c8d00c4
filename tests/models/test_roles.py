"""Roles on a shared base: the right adapter computes, gradients are right, folders that do not fit are refused."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from rlhf.errors import Refusal
from rlhf.generation.batches import lay_out, reply_mask
from rlhf.generation.logprobs import Forward
from rlhf.models.adapters import switch_adapter
from rlhf.models.base import load_base
from rlhf.models.roles import load_role, save_role
from rlhf.models.shared import load_roles, shared_roles
from rlhf.ppo.objective import policy_terms, value_terms
from rlhf.ppo.update import backward, collect
from rlhf.rewards.scorers import RoleScorer
from tests.models.helpers import broken, head_key, other_tokenizer
from tests.workshop import KINDS

PROMPTS = [[1, 9, 8, 7, 6], [1, 5], [1, 30, 31], [1, 40, 41, 42]]
REPLIES = [[50, 2], [60, 61, 62, 63, 2], [70], [80, 81, 82]]
CPU = torch.device("cpu")


def forward():
    return Forward(0.9, (0,), 4, lambda: torch.autocast("cpu", enabled=False))


def gradients(roles, size, checkpointing=False):
    """Gradients of policy and value on one minibatch cut into micro-batches of `size`, and how often layers computed."""
    torch.manual_seed(0)
    mask = reply_mask(REPLIES, CPU)
    old, advantages, returns = (torch.randn(mask.shape) for _ in range(3))
    batches = lay_out(PROMPTS, REPLIES, size, 0, CPU)
    models, passes = {roles.policy.model, roles.value.model}, []
    layers = {role.backbone.layers[0].mlp for role in (roles.policy, roles.value)}
    hooks = [layer.register_forward_pre_hook(lambda *_: passes.append(1)) for layer in layers]
    for model in models if checkpointing else ():
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.train()

    def policy_loss(batch):
        return policy_terms(forward().logprobs(roles.policy, batch), batch.pick(old), batch.pick(advantages), 0.2)

    def value_loss(batch):
        return value_terms(forward().values(roles.value, batch), batch.pick(old), batch.pick(returns), 0.2)

    backward(roles.policy, batches, policy_loss)
    backward(roles.value, batches, value_loss, 0.5)
    for model in models:
        model.eval()
        model.activation_checkpointing_disable()
    for hook in hooks:
        hook.remove()
    found = {}
    for role in (roles.policy, roles.value):
        for name, parameter in role.trainable():
            found[f"{role.name}: {name}"] = parameter.grad.clone()
            parameter.grad = None
    return found, len(passes)


@pytest.mark.parametrize("kind", ["lora", *KINDS])
def test_gradients_with_checkpointing_equal_those_without(workshop, kind):
    """On a shared base policy and value are recomputed in backward: a wrong adapter then would spoil both (peft#2832)."""
    roles = workshop.kind(kind)
    (plain, once), (checkpointed, twice) = gradients(roles, 2), gradients(roles, 2, checkpointing=True)
    assert twice == 2 * once, "nothing was recomputed"
    assert all(torch.equal(plain[n], checkpointed[n]) for n in plain)
    assert {n.partition(":")[0] for n in plain} == {"policy", "value"}
    assert all(float(g.abs().max()) > 0 for g in plain.values())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_do_not_depend_on_the_micro_batch_split(workshop, kind):
    roles = workshop.kind(kind)
    (whole, _), (single, _) = gradients(roles, 4), gradients(roles, 1)
    for name, gradient in whole.items():
        assert torch.allclose(gradient, single[name], rtol=1e-4, atol=2e-6), name


@pytest.mark.parametrize("kind", ["lora", *KINDS])
def test_logprobs_equal_a_plain_model(workshop, kind):
    """Right-padded passes against the model that training starts from, on each sequence alone."""
    roles = workshop.kind(kind)
    plain = workshop.load(quantized=kind == "lora on nf4")
    plain = (plain if kind == "full" else PeftModel.from_pretrained(plain, workshop.sft)).eval()
    mask = reply_mask(REPLIES, CPU)
    batches = lay_out(PROMPTS, REPLIES, 2, 0, CPU)
    experience = collect(forward(), roles.policy, roles.reference, roles.value, batches, mask)
    for i, (prompt, reply) in enumerate(zip(PROMPTS, REPLIES, strict=True)):
        with torch.no_grad():
            logits = plain(torch.tensor([prompt + reply])).logits[0] / 0.9
        logits[:, 0] = -torch.inf
        wanted = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1].gather(1, torch.tensor(reply)[:, None])[:, 0]
        assert torch.allclose(experience.logprobs[i, : len(reply)], wanted, atol=1e-5)
    assert torch.equal(experience.logprobs, experience.reference_logprobs)


@pytest.mark.parametrize("kind", ["lora", *KINDS])
def test_reward_role_scores_as_the_saved_classifier(workshop, kind):
    classifier = workshop.load_reward(quantized=kind == "lora on nf4")
    classifier = (classifier if kind == "full" else PeftModel.from_pretrained(classifier, workshop.reward)).eval()
    roles = workshop.kind(kind)
    ours = RoleScorer(roles.reward, 0, batch_size=3)(PROMPTS, REPLIES, [{}] * 4)
    with torch.no_grad():
        theirs = [classifier(torch.tensor([p + r])).logits[0, 0] for p, r in zip(PROMPTS, REPLIES, strict=True)]
    assert torch.allclose(ours, torch.stack(theirs), atol=1e-5)
    batches, mask = lay_out(PROMPTS, REPLIES, 2, 0, CPU), reply_mask(REPLIES, CPU)
    values = collect(forward(), roles.policy, roles.reference, roles.value, batches, mask).values
    assert roles.value.head.linear.weight.equal(roles.reward.head.linear.weight)
    with torch.no_grad():
        state_before_last = classifier(torch.tensor([PROMPTS[0] + REPLIES[0][:-1]])).logits[0, 0]
    assert float(values[0, 1]) == pytest.approx(float(state_before_last), abs=1e-5)


def test_switching_keeps_who_is_trainable(workshop):
    roles = workshop.roles()
    flags = {n: p.requires_grad for n, p in roles.peft.named_parameters()}
    assert {n.split(".")[-2] for n, on in flags.items() if on} == {"policy", "value"}
    for role in (roles.reference, roles.reward, roles.value):
        with role.active():
            assert roles.peft.active_adapter == role.adapter
            assert {n: p.requires_grad for n, p in roles.peft.named_parameters()} == flags
    assert roles.peft.active_adapter == "policy"
    with pytest.raises(RuntimeError), roles.reference.active():
        raise RuntimeError
    assert roles.peft.active_adapter == "policy"
    switch_adapter(roles.peft, "reward")
    assert {n: p.requires_grad for n, p in roles.peft.named_parameters()} == flags


def test_roles_are_fp32_without_dropout_on_a_bf16_base(workshop):
    roles = workshop.roles(quantized=True, dtype=torch.bfloat16)
    for role in (roles.policy, roles.reference, roles.reward, roles.value):
        assert {p.dtype for _, p in role.named_parameters()} == {torch.float32}
    assert not [m for m in roles.peft.modules() if isinstance(m, torch.nn.Dropout) and m.p > 0]
    assert roles.reward.head.linear.weight.data_ptr() != roles.value.head.linear.weight.data_ptr()


def test_fresh_policy_starts_at_the_base(workshop):
    roles = shared_roles(
        workshop.load(),
        workshop.tokenizer,
        None,
        workshop.reward,
        workshop.lora(task_type="CAUSAL_LM"),
        value_head="zero",
    )
    ids = torch.tensor([[1, 5, 6]])
    with torch.no_grad(), roles.policy.active():
        assert torch.equal(roles.policy.model(ids).logits, workshop.load()(ids).logits)
    assert not roles.value.head.linear.weight.any()


CHANGES = {
    "method.reward_model=.*no `score.weight`.*\n  fix: train one with method=reward": lambda c, t: t.pop(head_key(t)),
    "wanted \\(1, 64\\): one label": lambda c, t: t.update({head_key(t): torch.zeros(3, 64)}),
    "method.reward_model=.*: trained on the base somewhere/else, .*\n  fix: model.path=somewhere/else": lambda c, t: (
        c.update(base_model_name_or_path="somewhere/else")
    ),
    "1 tensors are missing .*other target modules.*\n  fix: the adapter.args.target_modules": lambda c, t: t.pop(
        next(k for k in t if "q_proj" in k)
    ),
    "has shape .*on another base\n  fix: the model.path": lambda c, t: t.update(
        {k: v[:, :8].contiguous() for k, v in t.items() if "q_proj.lora_A" in k}
    ),
    "only LORA adapters.*\n  fix: train that stage again with adapter=lora": lambda c, t: c.update(peft_type="IA3"),
    "modules_to_save has \\['lm_head'\\].*\n  fix: train that stage again": lambda c, t: c.update(
        modules_to_save=["score", "lm_head"]
    ),
    "changed the base it was trained on.*\n  fix: train that stage again": lambda c, t: c.update(
        init_lora_weights="pissa"
    ),
}


@pytest.mark.parametrize("message", CHANGES)
def test_a_reward_folder_that_does_not_fit_is_refused(workshop, tmp_path, message):
    folder = broken(workshop, tmp_path, CHANGES[message])
    with pytest.raises(Refusal, match=message):
        shared_roles(workshop.load(), workshop.tokenizer, workshop.sft, folder)


def test_another_tokenizer_is_refused(workshop, tmp_path):
    folder = other_tokenizer(workshop, tmp_path)
    with pytest.raises(
        Refusal, match="differs from the policy's in 2 tokens.*\n  fix: train the reward model with this"
    ):
        shared_roles(workshop.load(), workshop.tokenizer, workshop.sft, folder)


def test_missing_folder_is_refused(workshop, tmp_path):
    message = (
        r"method.start_from=\S+: no adapter_config.json there\n  fix: the folder in which a stage saved its adapter"
    )
    with pytest.raises(Refusal, match=message):
        shared_roles(workshop.load(), workshop.tokenizer, tmp_path, workshop.reward)


def test_a_torn_adapter_config_is_refused(workshop, tmp_path):
    folder = broken(workshop, tmp_path, lambda config, tensors: None)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(Refusal, match=r"method.reward_model=\S+: adapter_config.json is not JSON"):
        shared_roles(workshop.load(), workshop.tokenizer, workshop.sft, folder)


def test_a_fresh_adapter_needs_a_config_and_layers_that_are_there(workshop):
    with pytest.raises(Refusal, match=r"method.start_from=None: .*\n  fix: lora=LoraConfig"):
        shared_roles(workshop.load(), workshop.tokenizer, None, workshop.reward)
    with pytest.raises(Refusal, match="value_head=none: is unknown\n  allowed: copy, zero"):
        shared_roles(workshop.load(), workshop.tokenizer, workshop.sft, workshop.reward, value_head="none")
    for modules in (["q_proj", "v_prj"], ".*v_prj"):
        lora = LoraConfig(target_modules=modules)
        with pytest.raises(Refusal, match=r"target_modules=\S*v_prj: LlamaForCausalLM has no such layers(.|\n)*v_proj"):
            shared_roles(workshop.load(), workshop.tokenizer, None, workshop.reward, lora)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_role_is_put_back_whole_or_not_at_all(workshop, tmp_path, kind):
    role = workshop.kind(kind).value
    save_role(role, tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    saved, before = load_file(file), {name: p.detach().clone() for name, p in role.named_parameters()}
    with torch.no_grad():
        for _, parameter in role.named_parameters():
            parameter.add_(1.0)
    moved = {name: p.detach().clone() for name, p in role.named_parameters()}
    last = sorted(saved)[-1]
    for torn in (
        {n: t for n, t in saved.items() if n != last},
        saved | {last: saved[last].repeat(2, 1)},
        saved | {"x": saved[last].clone()},
    ):
        save_file(torn, file)
        with pytest.raises(Refusal, match="checkpoint of the value="):
            load_role(role, tmp_path)
        assert all(torch.equal(moved[name], p) for name, p in role.named_parameters())
    save_file(saved, file)
    load_role(role, tmp_path)
    assert all(torch.equal(before[name], p) for name, p in role.named_parameters())


def test_loading_roles_leaves_the_global_generator_alone(workshop, stage_of):
    state = torch.get_rng_state()
    load_roles(stage_of("function:exact_match", quantization="none"), workshop.tokenizer, {"policy": workshop.sft})
    assert torch.equal(state, torch.get_rng_state())


def test_peft_model_of_stock_users_gets_its_own_adapter_as_reference(workshop, make_trainer):
    from types import SimpleNamespace

    policy = AutoPeftModelForCausalLM.from_pretrained(workshop.sft, is_trainable=True, dtype=torch.float32)
    value = PeftModel.from_pretrained(workshop.load_reward(), workshop.reward, is_trainable=True)
    models = SimpleNamespace(policy=policy, reference=None, reward=workshop.load_reward(), value=value)
    trainer = make_trainer(models, max_steps=2)
    assert trainer.reference.adapter == "reference"
    trainable = {n for n, _ in trainer.value.trainable()}
    assert trainable and all("lora_" in n or "score" in n for n in trainable)
    trainer.train()
    kl = [row["objective/kl_k3"] for row in trainer.state.log_history if "objective/kl_k3" in row]
    assert kl[0] == 0 and kl[1] > 0


def test_an_adapter_of_the_policy_can_be_the_reference(workshop, make_trainer):
    from types import SimpleNamespace

    def models(**more):
        policy = AutoPeftModelForCausalLM.from_pretrained(workshop.sft, is_trainable=True, dtype=torch.float32)
        policy.add_adapter("before", workshop.lora(task_type="CAUSAL_LM"))
        policy.set_adapter("default")
        plain = {"reference": None, "reward": workshop.load_reward(), "value": workshop.load_reward()}
        return SimpleNamespace(policy=policy, **(plain | more))

    names = {"model_adapter_name": "default", "ref_adapter_name": "before"}
    trainer = make_trainer(models(), max_steps=1, **names)
    trainer.train()
    assert (trainer.policy.adapter, trainer.reference.adapter) == ("default", "before")
    assert trainer.state.log_history[0]["objective/kl_k3"] > 0  # "before" is the bare base
    for wrong, given, message in (
        (
            {"ref_adapter_name": "befor"},
            {},
            "befor: is not an adapter of model\n  allowed: default, before\n  fix: ref_adapter_name=null",
        ),
        ({"ref_adapter_name": "default"}, {}, "that is the policy's adapter, which changes"),
        ({"ref_adapter_name": "before"}, {"reference": workshop.load()}, "there is a ref_model too"),
    ):
        with pytest.raises(ValueError, match=message):
            make_trainer(models(**given), **wrong)
    with pytest.raises(ValueError, match="model is a Role"):
        make_trainer(**names)


def test_several_labels_are_refused(workshop, make_trainer):
    from types import SimpleNamespace

    from transformers import AutoModelForSequenceClassification

    many = AutoModelForSequenceClassification.from_pretrained(workshop.base, num_labels=3)
    models = SimpleNamespace(policy=workshop.load(), reference=None, reward=many, value=workshop.load_reward())
    message = "reward_model=LlamaForSequenceClassification: has 3 labels and none is chosen\n  fix: num_labels=1"
    with pytest.raises(Refusal, match=message):
        make_trainer(models)


def test_a_model_that_rescales_its_logits_is_refused(workshop, monkeypatch):
    role = workshop.roles().policy
    head = role.model.lm_head
    monkeypatch.setattr(role, "lm_head", lambda: lambda hidden: 2 * head(hidden))
    with pytest.raises(
        Refusal, match=r"model=LlamaForCausalLM: its logits are not its LM head (.|\n)*fix: an architecture"
    ):
        role.check_lm_head()


def test_a_model_with_fewer_embeddings_than_tokens_is_refused(workshop, stage_of):
    more = type(workshop.tokenizer)(tokenizer_object=workshop.tokenizer.backend_tokenizer, pad_token="<pad>")
    more.add_tokens(["new"])
    with pytest.raises(
        Refusal, match=r"model.path=\S+: it has embeddings for 96 tokens, the tokenizer has 97\n  fix: "
    ):
        load_base(stage_of("function:exact_match", quantization="none"), more)


def test_one_object_for_two_roles_is_refused(workshop, make_trainer):
    from types import SimpleNamespace

    shared = workshop.load_reward()
    with pytest.raises(ValueError, match="two roles need two objects"):
        make_trainer(SimpleNamespace(policy=workshop.load(), reference=None, reward=shared, value=shared))


def test_a_reference_of_its_own_is_what_its_folder_holds(workshop, tmp_path):
    """The policy starts from another adapter than the one that it pays for leaving; that one computes as it did where it was trained."""
    other = get_peft_model(workshop.load(), workshop.lora(task_type="CAUSAL_LM"))
    workshop.shake(other, 9)
    other.save_pretrained(tmp_path / "round")
    roles = shared_roles(
        workshop.load(), workshop.tokenizer, tmp_path / "round", workshop.reward, reference_start=workshop.sft
    )
    batches, mask = lay_out(PROMPTS, REPLIES, 4, 0, CPU), reply_mask(REPLIES, CPU)
    told = (roles.reference, workshop.roles().policy, roles.policy)
    reference, sft, policy = (forward().reply_logprobs(role, batches, mask) for role in told)
    assert torch.equal(reference, sft) and not torch.allclose(policy, sft, atol=1e-2)
    assert not any(parameter.requires_grad for _, parameter in roles.reference.named_parameters())
    with pytest.raises(Refusal, match="method.reference=.*: no adapter_config.json there"):
        shared_roles(workshop.load(), workshop.tokenizer, workshop.sft, workshop.reward, reference_start=tmp_path)
