"""The K-wise loss against the pairwise one and against the formula, on a random model."""

import json
import math
from itertools import combinations

import datasets
import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from rlhf.generation.rankings import grouped
from rlhf.methods.reward import PairCollator, RankingCollator, RankingTrainer, joined

PAD = 0


def _model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=32, num_labels=1, pad_token_id=PAD, **sizes)).eval()


def _pairs(sizes, ties=()):
    """Pairs of rankings with as many replies as `sizes` says, best first; `ties` are (ranking, better, worse) left out."""
    rows = []
    for number, k in enumerate(sizes):
        replies = [[3 + number, 7 + i, 20 - i] + [5] * i for i in range(k)]
        rows += [
            {
                "prompt_ids": [1, 2 + number],
                "chosen_ids": replies[i],
                "rejected_ids": replies[j],
                "length": 2 + max(len(replies[i]), len(replies[j])),
                "ranking": number,
                "k": k,
            }
            for i, j in combinations(range(k), 2)
            if (number, i, j) not in ties
        ]
    return datasets.Dataset.from_list(rows)


def _joined(pairs, side):
    return [joined(pair)[f"{side}_ids"] for pair in pairs]


def _trainer(tmp_path, model, center=None):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl.trainer.reward_config import RewardConfig

    words = {"<pad>": PAD, "</s>": 1} | {f"w{i}": i for i in range(2, 32)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")), pad_token="<pad>", eos_token="</s>"
    )
    args = RewardConfig(str(tmp_path), report_to="none", use_cpu=True, bf16=False, center_rewards_coefficient=center)
    split = datasets.Dataset.from_list(grouped(_pairs([2, 2])))
    return RankingTrainer(model, args, RankingCollator(PAD, True), split, None, processing_class=tokenizer)


def _scores(model, pairs, side):
    with torch.no_grad():
        return torch.stack([model(input_ids=torch.tensor([ids])).logits[0, 0] for ids in _joined(pairs, side)])


def _loss(trainer, pairs):
    beside, apart = (
        float(trainer.compute_loss(trainer.model, RankingCollator(PAD, share)(grouped(pairs))))
        for share in (True, False)
    )
    assert beside == pytest.approx(apart, abs=1e-6)
    return beside


def test_a_ranking_reads_each_reply_once_and_keeps_every_pair():
    pairs = _pairs([4, 3], ties=[(0, 1, 2)])
    rows = grouped(pairs)
    assert [len(row["replies"]) for row in rows] == [4, 3]
    assert [len(row["chosen"]) for row in rows] == [5, 3] and [row["k"] for row in rows] == [4, 3]
    batch = RankingCollator(PAD, False)(rows)
    assert batch["input_ids"].shape == (7, 8) and batch["rows"].tolist() == [*range(7)]
    assert batch["weight"].tolist() == pytest.approx([1 / 6] * 5 + [1 / 3] * 3)
    for side in ("chosen", "rejected"):
        read = [batch["input_ids"][i][: batch["last"][i] + 1].tolist() for i in batch[side].tolist()]
        assert read == _joined(pairs, side)
    beside = RankingCollator(PAD, True)(rows)
    assert int((beside["segments"] >= 0).sum()) == sum(row["length"] for row in rows) < int((batch["last"] + 1).sum())


@pytest.mark.parametrize("center", [None, 0.1])
def test_two_replies_give_the_pairwise_loss_of_trl(tmp_path, center):
    from trl.trainer.reward_trainer import RewardTrainer

    trainer, pairs = _trainer(tmp_path, _model(), center), _pairs([2, 2, 2])
    pairwise = RewardTrainer.compute_loss(trainer, trainer.model, PairCollator(PAD)(list(pairs)))
    assert _loss(trainer, pairs) == pytest.approx(float(pairwise), abs=1e-6)


def test_every_ranking_counts_the_same_however_long(tmp_path):
    model = _model()
    trainer, pairs = _trainer(tmp_path, model), _pairs([4, 2, 3])
    each = -torch.nn.functional.logsigmoid(_scores(model, pairs, "chosen") - _scores(model, pairs, "rejected"))
    expected = sum(float(part.mean()) for part in each.split([6, 1, 3])) / 3
    assert _loss(trainer, pairs) == pytest.approx(expected, abs=1e-6)
    assert abs(expected - float(each.mean())) > 1e-4  # the plain mean over pairs is another number


def test_a_zeroed_head_starts_at_ln_2_with_ties_dropped(tmp_path):
    model = _model()
    model.score.weight.data.zero_()
    assert _loss(_trainer(tmp_path, model), _pairs([4, 3], ties=[(0, 0, 1), (1, 1, 2)])) == pytest.approx(math.log(2))


@pytest.mark.slow
@pytest.mark.parametrize("kwise", [False, True])
def test_batches_are_of_like_lengths_where_that_is_asked_for(tmp_path, compose_stage, workshop, kwise):
    """Rankings of 2 and 3 replies, of lengths that lie apart, through the steps of a stage."""
    from rlhf.runs import stage as steps

    sizes, rows = [2 + 29 * number % 64 for number in range(64)], []
    for number, size in enumerate(sizes):
        said = [
            " ".join(f"w{10 + number % 12 + place + word}" for word in range(size)) for place in range(2 + number % 2)
        ]
        rows.append({"prompt": f"w{5 + number % 8}", "replies": said, "ranks": [*range(len(said))]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = compose_stage(
        "method=reward",
        "dataset=local_pairs",
        f"dataset.path={tmp_path}/rows.jsonl",
        f"model.path={workshop.base}",
        "model.chat_template=plain",
        f"method.start_from={workshop.sft}",
        f"method.kwise={kwise}",
        "method.args.train_sampling_strategy=group_by_length",
        "batch_size=4",
        "debug.max_steps=16",
        "evaluation.prompts=0",
    )
    tokenizer, data = steps.prepare(stage)
    trainer = steps.build(stage, tokenizer, data)
    read, collate = [], trainer.data_collator

    def collated(rows):
        batch = collate(rows)
        mask = batch["segments"] >= 0 if kwise else batch["attention_mask"]
        read.append(mask.sum(-1).tolist())
        return batch

    trainer.data_collator = collated
    trainer.train()
    read = read[:16]  # the loader is a batch ahead
    lengths = trainer.train_dataset["length"]
    longest = [max(lengths) for lengths in read]
    assert longest[0] == max(map(max, read)) == max(lengths), "the longest come first, so that memory shows at once"
    spread = sum(max(lengths) - min(lengths) for lengths in read) / len(read)
    assert spread < (max(lengths) - min(lengths)) / 2.5, read  # 4 rows at random lie 3/5 of the range apart
