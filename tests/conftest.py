"""Fixtures: a tiny language model and a tiny encoder built from their configs, and the real small models."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny_models
from hypothesis import HealthCheck, settings

# whether a test passes does not rest on how long it takes
settings.register_profile("amplify", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("amplify")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama (3 layers, 4 query heads, 2 key/value heads, head size 8) with a chat template."""
    return tiny_models.language_model(tmp_path_factory.mktemp("tiny_lm"))


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random BERT body (2 layers, hidden 32), the shape of a proxy's encoder."""
    return tiny_models.encoder(tmp_path_factory.mktemp("tiny_encoder"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of the real SmolLM2-135M-Instruct."""
    from amplify import hub

    return hub.resolve("smollm2-135m")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the real all-MiniLM-L6-v2."""
    from amplify import hub

    return hub.resolve("minilm")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of public data sets, where there is one."""
    root = os.environ.get("AMPLIFY_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("no data folder: set AMPLIFY_DATA")
    return Path(root)


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """A script of `eval/` by name, imported as it imports its neighbours."""
    from amplify import resources

    def load(name: str) -> ModuleType:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(resources.content("eval")))
            return importlib.import_module(name)

    return load


@pytest.fixture(scope="session")
def vllm_server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`with vllm_server(*options) as (process, url, log)`: vLLM's server of SmolLM2, not waited for, on a free port."""

    @contextmanager
    def start(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
        log = tmp_path_factory.mktemp("server") / "log"
        with socket.socket() as held, log.open("wb") as out:
            # bound, not listening, for as long as the server runs: nobody else is given this port meanwhile
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
            command = [
                sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(smollm2),
                "--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
                "--enforce-eager", "--generation-config", "vllm", *options,
            ]  # fmt: skip
            env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
            try:
                yield process, f"http://127.0.0.1:{port}/v1", log
            finally:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)  # its engine process as well
                    process.wait()

    return start


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium, through playwright."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no /usr/bin/chromium: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder of public data sets."""
    monkeypatch.delenv("AMPLIFY_DATA", raising=False)
