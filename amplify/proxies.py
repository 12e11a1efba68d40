"""Proxies: small models that stand in for the large one where its gradients and probabilities cannot be had.

An *encoder* proxy has a classification head: one logit per label, or, where every example brings its own choices, one
logit per (input, option) pair from a shared head. A *causal* proxy is any language model: its score of a label is the
log-probability of the label's tokens behind a prompt. Either way an example becomes a few `Row`s (`proxy_rows`), each
one sequence through the model that scores one or more of its labels; the gradient explainers build on the same rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from amplify import models, resources
from amplify.batching import batches
from amplify.errors import AmplifyError, DataError, InputError
from amplify.proxy_rows import Row, causal_rows, encoder_rows
from amplify.tasks import Task
from amplify.values import Example

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["encoder", "causal"]
FORMAT = 1
CARD = "amplify_proxy.json"


@dataclass(frozen=True, eq=False)
class Proxy:
    """A small model that scores the labels of a task's examples.

    Attributes:
        folder: where the model lies (the body's own folder for one taken as it is).
        kind: "encoder" or "causal".
        labels: the fixed label set, in the task's order; empty where examples bring their own choices.
        trained: False for an encoder whose head is freshly initialised: its probabilities are chance and its
            gradients noise.
        identity: SHA-256 over everything that made it.
        model: in evaluation mode, float32, parameters frozen.
        card: how it was made and how good it is.
    """

    folder: Path
    kind: Kind
    labels: tuple[str, ...]
    trained: bool
    identity: str
    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    card: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        """Short name for records: the body and the first digits of the identity."""
        return f"{self.card['body'].get('name', self.kind)}@{self.identity[:12]}"

    def __str__(self) -> str:
        found = self.card.get("validation", {})
        good = (
            "" if found.get("accuracy") is None else f", accuracy {found['accuracy']:.3f} of {found['examples']} others"
        )
        return f"{self.kind} proxy {self.name} for {self.card['task']}{good} ({self.folder})"

    @property
    def window(self) -> int:
        """Longest sequence in tokens."""
        config = self.model.config
        size = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**30
        if config.model_type in ("roberta", "xlm-roberta", "camembert"):  # positions start behind the padding index
            size -= config.pad_token_id + 1
        return int(min(size, self.tokenizer.model_max_length))

    def require_head(self, purpose: str) -> None:
        """Refuse an untrained classification head.

        Raises:
            InputError: the head is freshly initialised.
        """
        if self.kind == "encoder" and not self.trained:
            raise InputError(
                f"{purpose} needs a trained proxy: the classification head of {self.name} is untrained, so its "
                "probabilities are chance and its gradients noise. Train it with amplify.train_proxy(task, epochs=4), "
                "or take a causal language model as it is (body='smollm2-135m', epochs=0)."
            )

    def labels_of(self, example: Example) -> tuple[str, ...]:
        """The labels that `probabilities` covers, in order."""
        return example.choices or self.labels

    def rows(self, example: Example) -> list[Row]:
        """The sequences that score this example's labels; together their `answers` cover each label once.

        Raises:
            InputError: the example has no labels, or choices where the head has a fixed label set.
            ContextLengthError: a causal prompt exceeds the window. (An encoder reads as much of the input as fits.)
        """
        if not self.labels_of(example):
            raise InputError(f"example {example.id!r} has neither choices nor a fixed label set: no proxy can score it")
        return causal_rows(self, example) if self.kind == "causal" else encoder_rows(self, example)

    def embed(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
        """Word embeddings, attention mask and token types of padded rows: (rows, tokens, width), 2 x (rows, tokens).

        Encoders are padded right, causal models left (their targets then end at the last position).
        """
        import torch

        length = max(len(row.ids) for row in rows)
        ids = np.full((len(rows), length), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        mask, types = np.zeros((2, len(rows), length), dtype=np.int64)
        for i, row in enumerate(rows):
            at = slice(length - len(row.ids), None) if self.kind == "causal" else slice(0, len(row.ids))
            ids[i, at], mask[i, at] = row.ids, 1
            if row.types:
                types[i, at] = row.types
        device = self.model.device
        embeddings = self.model.get_input_embeddings()(torch.from_numpy(ids).to(device))
        return embeddings, torch.from_numpy(mask).to(device), torch.from_numpy(types).to(device)

    def scores(self, rows: Sequence[Row], embeddings: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """Each row's answers scored: logits (encoder) or log-probabilities (causal), float32.

        Args:
            rows: R rows.
            embeddings, mask, types: what `embed(rows)` gave; embeddings may require gradients.

        Returns:
            Shape (R, most answers of a row); -inf where a row has fewer.
        """
        import torch

        if self.kind == "encoder":
            extra = {"token_type_ids": types} if rows[0].types else {}
            logits = self.model(inputs_embeds=embeddings, attention_mask=mask, **extra).logits
            return logits.float()[:, self.card["columns"]]
        length = embeddings.shape[1]
        first = min(length - len(row.ids) + at for row in rows for target in row.targets for at, _ in target)
        out = self.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=length - first,
            use_cache=False,
        )
        logprobs = out.logits.float().log_softmax(-1)
        width = max(len(row.answers) for row in rows)
        columns = []
        for i, row in enumerate(rows):
            shift = length - len(row.ids) - first
            sums = [
                logprobs[i, [shift + at for at, _ in target], [token for _, token in target]].sum()
                for target in row.targets
            ]
            sums += [logprobs.new_tensor(-math.inf)] * (width - len(sums))
            columns.append(torch.stack(sums))
        return torch.stack(columns)

    def label_scores(self, examples: Sequence[Example], *, batch_tokens: int = 2048) -> list[npt.NDArray[np.float64]]:
        """Logits or log-probabilities of `labels_of(example)`, one array per example; no gradients."""
        import torch

        rows = [(i, row) for i, example in enumerate(examples) for row in self.rows(example)]
        result = [np.full(len(self.labels_of(example)), -np.inf) for example in examples]
        for batch in batches([len(row.ids) for _, row in rows], batch_tokens):
            group = [rows[j][1] for j in batch]
            with torch.inference_mode():
                scores = self.scores(group, *self.embed(group)).cpu().numpy()
            for j, values in zip(batch, scores, strict=True):
                i, row = rows[j]
                result[i][list(row.answers)] = values[: len(row.answers)]
        return result

    def probabilities(self, examples: Sequence[Example], *, batch_tokens: int = 2048) -> list[npt.NDArray[np.float64]]:
        """Softmax of `label_scores`: one row per example over `labels_of(example)`."""
        return [softmax(scores) for scores in self.label_scores(examples, batch_tokens=batch_tokens)]

    def accuracy(self, examples: Sequence[Example]) -> float:
        """Share of labelled examples whose most probable label is the gold one."""
        guesses = self.label_scores(examples)
        right = [self.labels_of(e)[int(g.argmax())] == e.label for e, g in zip(examples, guesses, strict=True)]
        return float(np.mean(right))


def softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities of a vector of logits."""
    odds = np.exp(scores - scores.max())
    return odds / odds.sum()


def train_proxy(
    task: Task,
    body: str | Path = "minilm",
    *,
    epochs: int = 4,
    seed: int = 0,
    lora: bool = False,
    out: str | Path | None = None,
    learning_rate: float | None = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Proxy:
    """A proxy for a task: fine-tuned on `task.train`, or the body as it is with `epochs=0`.

    A proxy that was made before from the same task, body, settings and seed is loaded instead.

    Args:
        task: a labelled task with fixed labels or per-example choices.
        body: alias, hub id or folder of an encoder (gets a classification head) or a causal language model.
        epochs: passes over `task.train`. 0 takes the body as it is: a causal model always works; an encoder needs a
            classification head of its own whose label names are the task's, else the proxy is marked untrained.
        seed: of the head, the order of the data and dropout. The same seed gives the same weights on one machine.
        lora: train low-rank adapters (rank 8, every linear layer) that are merged at the end, not all weights.
        out: folder to keep the proxy in; by default the cache.
        learning_rate: peak of a linear schedule with 10 % warm-up, of AdamW; by default chosen by kind of training.
        batch_size: examples per step.
        progress: show a bar (on a terminal only).

    Raises:
        InputError: nothing to train on, a gold label outside the labels, or `out` holds something else.
        DataError: the proxy cannot be written.
    """
    if epochs < 0 or batch_size < 1:
        raise InputError(f"a proxy needs epochs >= 0 and batch_size >= 1, got {epochs} and {batch_size}")
    _check(task, epochs)
    source = models.resolve(body)
    kind = _kind(source)
    rate = learning_rate or _RATES[kind, lora]
    training = {"epochs": epochs, "seed": seed, "lora": lora, "learning_rate": rate, "batch_size": batch_size}
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "task": task.name,
        "task_fingerprint": task.fingerprint,
        "labels": list(task.labels),
        "instruction": task.instruction,
        "input_name": task.input_name,
        "template": (resources.content("prompts") / "proxy.jinja").read_text(encoding="utf-8").rstrip("\n"),
        "body": models.identity(source),
        "training": training if epochs else {"epochs": 0} | ({"seed": seed} if kind == "encoder" else {}),
    }
    identity = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    slug = "".join(c if c.isalnum() or c in "-_" else "-" for c in f"{task.name}-{Path(str(body)).name}")
    folder = Path(out) if out is not None else resources.home() / "proxies" / f"{slug}-{identity[:16]}"
    if _holds(folder, identity):
        try:
            return load_proxy(folder)
        except DataError:
            if out is not None:
                raise
            shutil.rmtree(folder, ignore_errors=True)  # the cache heals itself
    if out is not None and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds another proxy or other files: choose another folder")

    from amplify.proxy_training import fit, seeded

    started = time.perf_counter()
    with seeded(seed), models.quiet():
        model, tokenizer, columns = _body(source, kind, task.labels)
        recipe["columns"] = columns or list(range(len(task.labels) or 1))
        proxy = Proxy(source, kind, task.labels, columns is not None, identity, model, tokenizer, recipe)
        if epochs:
            proxy = fit(proxy, task.train, training, progress)
    kept = bool(epochs or out is not None)  # a body taken as it is is measured only where its card is kept
    card = {
        **recipe,
        "identity": identity,
        "trained": proxy.trained,
        "examples": len(task.train) if epochs else 0,
        "seconds": round(time.perf_counter() - started, 1),
        "validation": {
            "examples": len(task.validation),
            "accuracy": proxy.accuracy(task.validation) if task.validation and kept else None,
        },
        "versions": versions(),
    }
    if kept:
        _write(proxy, card, folder)
    else:
        folder = source
    return Proxy(folder, kind, task.labels, proxy.trained, identity, proxy.model, tokenizer, card)


_RATES: dict[tuple[Kind, bool], float] = {
    ("encoder", False): 2e-4,
    ("encoder", True): 1e-3,
    ("causal", False): 2e-5,
    ("causal", True): 3e-4,
}


def load_proxy(folder: str | Path) -> Proxy:
    """A proxy that `train_proxy` wrote.

    Raises:
        DataError: no proxy there, or a broken one.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} is no proxy folder ({CARD} cannot be read: {error}); make one with amplify.train_proxy"
        ) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise DataError(f"{folder} holds a proxy of another format; train it again with this version of amplify")
    labels = tuple(card["labels"])
    try:
        with models.quiet():
            model, tokenizer, _ = _body(folder, card["kind"], labels)
    except AmplifyError:
        raise
    except Exception as error:  # transformers raises many kinds on a damaged folder
        raise DataError(f"the proxy in {folder} is damaged ({error}): delete the folder and train it again") from error
    return Proxy(folder, card["kind"], labels, card["trained"], card["identity"], model, tokenizer, card)


def list_proxies() -> list[dict[str, Any]]:
    """The cards of the proxies in the cache, each with its "folder", by name of the folder."""
    root = resources.home() / "proxies"
    cards = []
    for path in sorted(root.glob(f"*/{CARD}")) if root.is_dir() else []:
        try:
            cards.append({**json.loads(path.read_text(encoding="utf-8")), "folder": str(path.parent)})
        except (OSError, ValueError):
            continue  # being written or replaced by another process
    return cards


def _check(task: Task, epochs: int) -> None:
    if epochs and not task.train:
        raise InputError(f"task {task.name!r} has no training examples to train a proxy on; use epochs=0 or give some")
    for example in (*task.train, *task.validation):
        if not task.labels_of(example):
            raise InputError(
                f"a proxy chooses among labels, and example {example.id!r} of task {task.name!r} has none "
                "(free-text answers): give the task labels=, or its examples choices"
            )


def _kind(folder: Path) -> Kind:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no model folder: config.json cannot be read ({error})") from error
    names = config.get("architectures") or []
    return "causal" if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) else "encoder"


def _body(
    folder: Path, kind: Kind, labels: tuple[str, ...]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int] | None]:
    """Load model and tokenizer, and say which column of its head is which label (None: the head has no weights)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.is_fast:
        raise InputError(f"the tokenizer in {folder} gives no character offsets; a proxy needs a fast tokenizer")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.truncation_side = "right"
    columns: list[int] | None = list(range(len(labels) or 1))
    if kind == "causal":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        own = AutoConfig.from_pretrained(folder).id2label
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(labels) or 1,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        places = {str(name).casefold(): int(column) for column, name in own.items()}
        names = [label.casefold() for label in labels]
        if info["missing_keys"] or info["mismatched_keys"] or not set(names) <= set(places):
            columns = None
        elif labels:
            columns = [places[name] for name in names]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device).eval().requires_grad_(False), tokenizer, columns


def versions() -> dict[str, str]:
    """Versions of what computes a proxy's numbers."""
    import torch
    import transformers

    import amplify

    return {"amplify": amplify.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def _holds(folder: Path, identity: str) -> bool:
    """Whether a folder holds the whole proxy of this identity."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(card.get("identity") == identity and any(folder.glob("*.safetensors")))


def _write(proxy: Proxy, card: Mapping[str, Any], folder: Path) -> None:
    """Write beside the target and rename, so that no one ever sees half a proxy."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            if proxy.labels and proxy.kind == "encoder":
                proxy.model.config.id2label = dict(enumerate(proxy.labels))
                proxy.model.config.label2id = {label: i for i, label in enumerate(proxy.labels)}
            with models.quiet():
                proxy.model.save_pretrained(work)
            proxy.tokenizer.save_pretrained(work)
            (work / CARD).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            work.chmod(0o755)
            if folder.exists() and not _holds(folder, card["identity"]):
                shutil.rmtree(folder)  # an empty folder, or the remains of a damaged one
            try:
                work.rename(folder)
            except OSError:
                if not _holds(folder, card["identity"]):  # else another process made the same proxy first
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise DataError(f"the proxy cannot be written to {folder}: {error}") from error
