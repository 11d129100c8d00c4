"""What is written is there whole or not at all, and what is read leaves out a torn end and nothing else."""

import json

import pytest

from rlhf import files
from rlhf.errors import DataError
from rlhf.evaluation.samples import final_samples, write_samples
from rlhf.files import append_lines, keep_lines, read_lines, write_json, write_lines

ROWS = [{"step": 1, "reply": "one\u2028two\x85three\x0b\x1c"}, {"step": 2, "reply": "é"}]


@pytest.mark.parametrize("content", [None, b""])
def test_no_lines_in_a_file_that_is_empty_or_absent(tmp_path, content):
    if content is not None:
        (tmp_path / "x.jsonl").write_bytes(content)
    assert read_lines(tmp_path / "x.jsonl") == []


def test_only_a_line_feed_ends_a_line(tmp_path):
    file = tmp_path / "x.jsonl"
    write_lines(file, ROWS)
    assert read_lines(file) == ROWS and "\u2028" in file.read_text(), "the separator is in the file as it is"
    append_lines(file, ROWS)
    assert read_lines(file) == [*ROWS, *ROWS]
    write_samples(tmp_path, 3, "test", ROWS)
    write_samples(tmp_path, 4, "test", ROWS[:1])
    assert [row["reply"] for row in final_samples(tmp_path)] == [row["reply"] for row in [*ROWS, ROWS[0]]]


@pytest.mark.parametrize(
    "cut", [1, 2, 3, 4, 12, 25]
)  # behind the line feed, in the text, in the two bytes of é, at the start
def test_a_torn_end_is_left_out_and_gone_before_the_next_line(tmp_path, cut):
    file = tmp_path / "x.jsonl"
    write_lines(file, ROWS)
    file.write_bytes(file.read_bytes()[:-cut])
    left = ROWS if cut == 1 else ROWS[:1]  # only the line feed is missing: the line is whole
    assert read_lines(file) == left
    append_lines(file, ROWS[:1])
    assert read_lines(file) == [*left, ROWS[0]] and file.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("broken", ['{"step": 2', "12", "[]", "\0\0"])
def test_a_broken_line_in_the_middle_is_refused_with_file_and_line(tmp_path, broken):
    file = tmp_path / "samples.jsonl"
    file.write_text(f'{json.dumps(ROWS[0])}\n{broken}\n{{"step": 3, "set": "test"}}\n')
    with pytest.raises(DataError) as caught:
        read_lines(file)
    assert str(caught.value).startswith(f"{file}, line 2 is no JSON object: {broken!r}\n  fix: delete that line")
    for reader in (
        lambda: keep_lines(file, 2),
        lambda: final_samples(tmp_path),
        lambda: write_samples(tmp_path, 3, "a", []),
    ):
        before = file.read_bytes()
        with pytest.raises(DataError, match=r"samples.jsonl, line 2 is no JSON object"):
            reader()
        assert file.read_bytes() == before


def test_a_resumed_run_keeps_the_lines_before_its_step(tmp_path):
    file = tmp_path / "x.jsonl"
    write_lines(file, [{"step": 1}, {"step": 2}, {"step": 2, "eval": True}, {"step": 3}])
    keep_lines(file, 2)
    assert [row["step"] for row in read_lines(file)] == [1, 2, 2]
    keep_lines(file, 2, 1)  # what came after the checkpoint of step 2 comes again
    assert read_lines(file) == [{"step": 1}, {"step": 2}]
    keep_lines(tmp_path / "absent.jsonl", 2)
    assert not (tmp_path / "absent.jsonl").exists()


def test_what_is_killed_while_writing_leaves_the_old_content(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    results, lines = tmp_path / "results.json", tmp_path / "results.jsonl"
    write_json(results, {"old": 1})
    write_lines(lines, [{"old": 1}])
    monkeypatch.setattr(files, "_sync", killed)  # the content is written, the name is not
    for write, file in ((write_json, results), (lambda f, c: write_lines(f, [c]), lines)):
        with pytest.raises(Killed):
            write(file, {"new": 1})
        assert json.loads(file.read_text()) == {"old": 1}
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == {results.name, lines.name}


def test_checkpoints_are_found_in_the_order_of_their_steps(tmp_path):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-2", "checkpoint-best"):
        files.write_complete(tmp_path / name, lambda folder: write_json(folder / "weights.json", {}))
    (tmp_path / "checkpoint-11").mkdir()
    (tmp_path / "checkpoint-9/weights.json").write_text("")
    assert [files.step_of(path) for path in files.checkpoints(tmp_path)] == [2, 10]


def test_a_folder_that_could_not_be_filled_leaves_what_was_there_and_nothing_else(tmp_path):
    def full(folder):
        (folder / "weights").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    for before in ([], ["old"]):
        for name in before:
            files.replace_folder(tmp_path / "final", lambda folder, name=name: (folder / name).write_text(name))
        with pytest.raises(OSError, match="No space left"):
            files.replace_folder(tmp_path / "final", full)
        assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([*before, *(["final"] if before else [])])
