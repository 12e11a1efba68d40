"""The file of a search: what it holds is not measured again."""

from dataclasses import replace

import pytest
from profiling_samples import item

from amplify.errors import RunError
from amplify.head_search.margins import Margins
from amplify.head_search.search import Recorded, exhaustive
from amplify.models import load_model
from amplify.steering import Steering


def test_a_stopped_search_goes_on_without_making_a_run_twice(tiny_lm, tmp_path):
    model = load_model(f"transformers:{tiny_lm}", dtype="float32")
    items = [replace(item(), id=str(i)) for i in range(4)]
    path = tmp_path / "runs.jsonl"
    steering = Steering(heads={0: (0,)})

    def fresh(key="k"):
        return Recorded(Margins(model, items, steering), "t", path, key)

    whole = exhaustive(fresh(), 3, 4, 4)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) - 1 == whole.runs == 13 * 4  # the first says what they are
    path.write_text("".join(lines[:21]) + lines[21][:15])  # killed in the middle of a line
    again = fresh()
    assert exhaustive(again, 3, 4, 4).heads == whole.heads
    assert again.made == 52 - 20
    assert len(path.read_text().splitlines()) == 53
    with pytest.raises(RunError, match="other settings"):
        fresh("another")
