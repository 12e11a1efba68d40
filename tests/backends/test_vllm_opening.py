"""What can go wrong before a vLLM engine starts."""

from __future__ import annotations

import multiprocessing

import pytest

from amplify import open_backend
from amplify.errors import BackendError, InputError


def test_a_script_without_a_main_guard_is_told_so_in_the_engines_process(monkeypatch):
    # as it is while a spawned process runs its parent's script again
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(BackendError, match='under `if __name__ == "__main__":`'):
        open_backend("vllm:smollm2-135m")


@pytest.mark.parametrize("steering", [1, {"layers": [3]}])
def test_steering_is_a_switch_or_a_profile(tiny_lm, steering):
    with pytest.raises(InputError, match="a head profile or its name"):
        open_backend(f"vllm:{tiny_lm}", steering=steering)
