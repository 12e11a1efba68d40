"""Tables of many rows: what is done for each of them is little, and gives what the plain way gives."""

import gc
import hashlib
import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from amplify import load_task
from amplify.errors import InputError
from amplify.methods.few_shot import FewShot
from amplify.models import load_model
from amplify.tasks import rows, splits, task
from amplify.tasks.rows import AT_ONCE
from amplify.tasks.splits import content_hash
from amplify.types import Example

ODD = ["plain", 'quotes " and \\', "Zürich 東京 \u2028 \x00 \x7f", "two\nlines\tand a tab", "ẞ ﬁ İ", " wide   blanks "]


def table(path: Path, n: int) -> Path:
    path.write_text("text,label\n" + "".join(f"row {i} says so,{('good', 'bad')[i % 2]}\n" for i in range(n)))
    return path


def test_a_row_is_hashed_twice_at_most_until_shots_are_drawn(tmp_path, monkeypatch):
    hashed = []

    def counted(example: Example) -> str:
        hashed.append(example.id)
        return content_hash(example)

    monkeypatch.setattr(splits, "content_hash", counted)
    monkeypatch.setattr("amplify.selection.content_hash", counted)
    loaded = load_task(table(tmp_path / "big.csv", 3_000), text="text", label="label")
    with load_model("scripted:echo") as model:
        assert len(FewShot(shots=4).fit(loaded, model, 0).shots) == 4
    assert 3_000 <= len(hashed) <= 6_000


def test_ids_hashes_and_fingerprints_are_those_of_the_json_module():
    examples = tuple(
        Example(
            id=f"{text}{i}",
            text=text,
            label=None if i % 3 == 0 else ODD[i % len(ODD)],
            choices=("A", "B") if i % 2 else (),
            options=(text, "other") if i % 2 else (),
            answers=(text,),
            fields={"z": [1, {"b": text, "a": None}], "a": text} if i % 4 else {},
        )
        for i, text in enumerate(ODD)
    )
    for example in examples:
        content = [example.text, example.choices, example.options]
        told = json.dumps(content, ensure_ascii=False)
        assert rows.own_id(*content) == hashlib.sha256(told.encode()).hexdigest()[:12]
        folded = [" ".join(text.casefold().split()) for text in (example.text, *example.options)]
        told = json.dumps([folded, example.choices], ensure_ascii=False)
        assert content_hash(example) == hashlib.sha256(told.encode()).hexdigest()
        assert json.loads(task.spelt(example)) == json.loads(json.dumps(asdict(example)))
    assert task.spelt(examples) == json.dumps(
        [asdict(e) for e in examples], default=str, sort_keys=True, ensure_ascii=False
    )


def test_copies_have_the_same_content_and_no_others_have():
    draw = random.Random(0)
    texts = ("a", "A ", "a b", " a  B", "b", "a\nb", "\n")
    examples = [
        Example(
            id=str(i),
            text=draw.choice(texts),
            options=tuple(draw.choice(texts) for _ in range(draw.randrange(3))),
            choices=tuple(draw.choice(texts) for _ in range(draw.randrange(3))),
        )
        for i in range(400)
    ]
    by_content, by_hash = ([key(e) for e in examples] for key in (rows.content, content_hash))
    assert [by_content.index(c) for c in by_content] == [by_hash.index(h) for h in by_hash]
    assert 50 < len(set(by_hash)) < 400


def test_reading_leaves_the_search_for_cycles_as_it_was(tmp_path):
    file = table(tmp_path / "t.csv", 30)
    try:
        for on in (False, True):
            (gc.enable if on else gc.disable)()
            load_task(file, text="text", label="label")
            assert gc.isenabled() is on
            with pytest.raises(InputError):
                load_task(file, text="text", label="none")
            assert gc.isenabled() is on
    finally:
        gc.enable()


@pytest.mark.parametrize("stratify", [True, False])
def test_the_same_rows_are_taken_for_a_split_as_by_the_definition(stratify):
    draw = random.Random(0)
    for _ in range(200):
        pool = [Example(str(i), f"text {i}", draw.choice("aab")) for i in range(draw.randint(1, 40))]
        never = {e.id for e in pool if draw.random() < 0.2}
        n = draw.randint(0, len(pool))
        able = [e for e in pool if e.id not in never]
        if stratify:
            ranked = [
                ((k + 0.5) / len(group), place, e)
                for label in "ab"
                for group in [[(i, e) for i, e in enumerate(able) if e.label == label]]
                for k, (place, e) in enumerate(group)
            ]
            able = [e for _, _, e in sorted(ranked, key=lambda r: r[:2])]
        taken = {e.id for e in able[:n]}
        assert splits.take(pool, n, stratify, never) == (
            [e for e in pool if e.id in taken],
            [e for e in pool if e.id not in taken],
        )


def test_rows_before_a_broken_one_come_first_and_its_line_is_told(tmp_path):
    n = AT_ONCE + 7
    path = table(tmp_path / "a.csv", n)
    for broken, told in (("one,two,three", "another number of cells"), ('a "b,"c"d', "no valid table row")):
        path.write_text(_with(path, n, broken))
        stream = rows.rows(path)
        assert [next(stream)["text"] for _ in range(n)] == [f"row {i} says so" for i in range(n)]
        with pytest.raises(InputError, match=f"line {n + 3}.*{told}"):
            next(stream)


def _with(path: Path, n: int, broken: str) -> str:
    """The first n rows, a blank line, and a broken row."""
    return "".join(path.read_text().splitlines(keepends=True)[: n + 1]) + "\n" + broken + "\nmore,good\n"
