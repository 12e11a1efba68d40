"""A hub of Hugging Face on this disk, for tests: what is pushed there is pulled by the real client, offline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


class LocalHub:
    """Takes a folder as a commit into the hub's cache on disk, which `hf_hub_download` reads offline."""

    def __init__(self, cache: Path) -> None:
        self.cache, self.made = cache, {}

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.made.setdefault(repo, private)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> str:
        place = self.cache / f"models--{repo_id.replace('/', '--')}"
        commit = f"{len(list(place.glob('snapshots/*'))):040d}"
        shutil.copytree(folder_path, place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(commit)
        return f"local/{repo_id}/{commit}"


def at_hand(cache: Path, patch: pytest.MonkeyPatch) -> LocalHub:
    """A hub whose files the client finds in its cache."""
    import huggingface_hub.constants
    import huggingface_hub.file_download

    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return LocalHub(cache)
