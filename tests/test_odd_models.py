"""Models that differ: each is refused by one error that says what is wrong and what to do, or is right."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import amplify.cli
from amplify import Prompt, Sampling, load_model
from amplify.attribution.explanations import explain
from amplify.cli import cli
from amplify.errors import CapabilityError, DataError, InputError, PromptFormatError
from amplify.retrieval import Embedder

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538090408\n"
PROMPT = [Prompt(text="Great phone, terrible battery. The answer is")]
WORDS = "Great phone, terrible battery. It is"
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def tok(tiny_lm: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_lm)


@pytest.fixture
def copied(tiny_lm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_lm, tmp_path / "model"))


def saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _cut(file: str, keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        whole = (folder / file).read_bytes()
        (folder / file).write_bytes(whole[: int(len(whole) * keep)])

    return damage


def _write(file: str, text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / file).write_text(text)

    return damage


INDEX = "model.safetensors.index.json"
DAMAGES = {
    "cut": (_cut("model.safetensors", 0.5), "bytes, and its header says"),
    "cut in its header": (_cut("model.safetensors", 0.001), "no whole safetensors file"),
    "empty": (_cut("model.safetensors", 0), "no whole safetensors file"),
    "a pointer": (_write("model.safetensors", POINTER), "git lfs pull"),
    "a tokenizer's pointer": (_write("tokenizer.json", POINTER), "git lfs pull"),
    "a vocabulary's pointer": (_write("tokenizer.model", POINTER), "git lfs pull"),
    "a template's pointer": (_write("chat_template.jinja", POINTER), "git lfs pull"),
    "a broken tokenizer": (_write("tokenizer.json", '{"a'), "cannot be opened as a tokenizer"),
    "a broken configuration": (_write("config.json", '{"a'), "config.json cannot be read"),
    "a list for a configuration": (_write("config.json", "[]"), "no JSON object"),
    "an unknown architecture": (_write("config.json", '{"model_type": "nonesuch"}'), "cannot be opened"),
    "a broken index": (_write(INDEX, '{"weight_map"'), "cannot be read"),
    "a list for an index": (_write(INDEX, "[1, 2]"), "which file holds which weight"),
    "an index without weights": (_write(INDEX, "{}"), "which file holds which weight"),
    "a text for a map": (_write(INDEX, '{"weight_map": "x"}'), "which file holds which weight"),
    "an index that leaves the folder": (_write(INDEX, '{"weight_map": {"a": "../b"}}'), "no file of the folder"),
    "an index of a lost file": (_write(INDEX, '{"weight_map": {"a": "b"}}'), "lacks b"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_error(copied: Path, damage: str) -> None:
    break_it, says = DAMAGES[damage]
    break_it(copied)
    with pytest.raises(DataError, match=says) as caught:
        load_model(f"transformers:{copied}")
    assert len(str(caught.value)) < 700
    assert "\n" not in str(caught.value)


def test_weights_that_lack_a_head_are_no_language_model(tiny_encoder: Path) -> None:
    with pytest.raises(DataError, match="its weights lack cls"):
        load_model(f"transformers:{tiny_encoder}")


def test_tokens_beyond_the_embedding(tok: Any, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    few = len(tok) - 200
    config = LlamaConfig(vocab_size=few, intermediate_size=64, max_position_embeddings=256, **SIZES)
    folder = saved(LlamaForCausalLM(config), tok, tmp_path / "llama")
    with load_model(f"transformers:{folder}", dtype="float32") as model:
        for ask in (
            lambda: model.generate(PROMPT, Sampling(max_tokens=2)),
            lambda: model.score(PROMPT, [" good"]),  # type: ignore[attr-defined]
            lambda: explain(WORDS, " good", model=model, budget=5),
            lambda: explain(WORDS, " good", model=model, method="occlusion", masking="attention"),
        ):
            with pytest.raises(InputError, match=rf"beyond the model's {few} embeddings"):
                ask()
    config = BertConfig(vocab_size=few, intermediate_size=64, max_position_embeddings=64, **SIZES)
    folder = saved(BertForSequenceClassification(config), tok, tmp_path / "bert")
    with pytest.raises(InputError, match="embeddings"):
        Embedder(folder).embed([WORDS])


def test_weights_that_are_no_numbers(tiny_lm: Path, tiny_encoder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny_lm)
    module.model.layers[0].self_attn.q_proj.weight.data[0, 0] = float("nan")
    folder = saved(module, AutoTokenizer.from_pretrained(tiny_lm), tmp_path / "lm")
    with pytest.raises(DataError, match=r"no numbers \(model.layers.0.self_attn.q_proj.weight\)"):
        load_model(f"transformers:{folder}", dtype="float32")
    mine = amplify.TransformersModel(module, AutoTokenizer.from_pretrained(tiny_lm))  # in hand, nothing is read
    with pytest.raises(DataError, match="check the weights"):
        mine.generate(PROMPT, Sampling(max_tokens=2))
    with pytest.raises(DataError, match="check the weights"):
        explain(WORDS, " good", model=mine, method="occlusion")
    # one token's embedding, which the trial at the start does not meet
    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    config = LlamaConfig(vocab_size=len(tokenizer), intermediate_size=64, tie_word_embeddings=False, **SIZES)
    module = LlamaForCausalLM(config).requires_grad_(False)
    module.get_input_embeddings().weight[tokenizer(" phone").input_ids[-1]] = float("nan")
    mine = amplify.TransformersModel(module, tokenizer)
    assert mine.generate([Prompt(text="Great")], Sampling(max_tokens=1))
    for sampling in (Sampling(max_tokens=2), Sampling(max_tokens=2, temperature=1.0, seed=0)):
        with pytest.raises(DataError, match="check the weights"):
            mine.generate(PROMPT, sampling)
    with pytest.raises(DataError, match="check the weights"):
        mine.score(PROMPT, [" good"])
    encoder = AutoModel.from_pretrained(tiny_encoder)
    encoder.encoder.layer[0].attention.self.query.weight.data[0, 0] = float("nan")
    folder = saved(encoder, AutoTokenizer.from_pretrained(tiny_encoder), tmp_path / "encoder")
    with pytest.raises(DataError, match="check the weights"):
        Embedder(folder).embed([WORDS])


@pytest.mark.parametrize("device", ["meta", "mps", "cuda:17", "tpu", "nonsense"])
def test_devices_that_are_not_there(tiny_lm: Path, tiny_encoder: Path, device: str) -> None:
    with pytest.raises(InputError, match="device"):
        load_model(f"transformers:{tiny_lm}", device=device)
    with pytest.raises(InputError, match="device"):
        Embedder(tiny_encoder, device=device)
    with pytest.raises(InputError, match="device"):
        load_proxy_of(tiny_lm, device)


def load_proxy_of(body: Path, device: str) -> Any:
    from amplify.models.pretrained import device_of
    from amplify.proxies.training import load_body

    return load_body(body, "causal", ("a", "b"), device_of(device))


def test_an_encoder_decoder_is_refused_in_a_sentence(tok: Any, tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=len(tok), d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    folder = saved(T5ForConditionalGeneration(config), tok, tmp_path / "t5")
    for ask in (
        lambda: load_model(f"transformers:{folder}", dtype="float32"),
        lambda: explain(WORDS, " good", model=f"transformers:{folder}"),
        lambda: load_proxy_of(folder, "cpu"),
        lambda: Embedder(folder),
    ):
        with pytest.raises(DataError, match="is an encoder-decoder") as caught:
            ask()
        assert len(str(caught.value)) < 400 + len(str(folder))


def test_models_that_cannot_branch_name_what_works(tok: Any, tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

    bloom = BloomForCausalLM(BloomConfig(vocab_size=len(tok), hidden_size=32, n_layer=2, n_head=4))
    mamba = MambaForCausalLM(MambaConfig(vocab_size=len(tok), hidden_size=32, num_hidden_layers=2, state_size=4))
    for module in (bloom, mamba):
        folder = saved(module, tok, tmp_path / module.config.model_type)
        with load_model(f"transformers:{folder}", dtype="float32") as model:
            with pytest.raises(CapabilityError, match=r"by gradients work with it.* vllm:"):
                model.generate(PROMPT, Sampling(max_tokens=2))
            with pytest.raises(CapabilityError, match="by gradients work with it"):
                explain(WORDS, " good", model=model, method="occlusion")
            assert len(explain(WORDS, " good", model=model, method="integrated_gradients", budget=5).scores) == 6
            if module is mamba:
                with pytest.raises(CapabilityError, match="no attention weights"):
                    explain(WORDS, " good", model=model, method="raw_attention")


def test_half_precision_hides_no_branch_that_sees_another(tiny_lm: Path, tok: Any) -> None:
    """Below what bfloat16 rounds, each token knows a little of all others in its pass."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    class Leaky(LlamaForCausalLM):
        def forward(self, input_ids: Any, **given: Any) -> Any:
            out = super().forward(input_ids, **given)
            out.logits = out.logits + 2 * self.get_input_embeddings()(input_ids).mean((1, 2), keepdim=True) * (
                torch.arange(out.logits.shape[-1]) % 7
            )
            return out

    few = Sampling(max_tokens=1)
    for dtype in (torch.bfloat16, torch.float32):
        with pytest.raises(CapabilityError, match=r"see another one|does not obey"):
            amplify.TransformersModel(Leaky.from_pretrained(tiny_lm, dtype=dtype), tok).generate(PROMPT, few)
    sound = AutoModelForCausalLM.from_pretrained(tiny_lm, dtype=torch.bfloat16)
    assert amplify.TransformersModel(sound, tok).generate(PROMPT, few)


def test_code_of_a_models_own_is_never_run_nor_asked_for(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (copied / "config.json").write_text(json.dumps(config))
    ran = copied / "ran"
    (copied / "mine.py").write_text(f"open({str(ran)!r}, 'w')\nfrom transformers import LlamaConfig as C\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asks on the terminal"))
    with pytest.raises(DataError, match=r"code of its own \(mine.py\), which is not run"):
        load_model(f"transformers:{copied}")
    assert not ran.exists()


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}[INST]{{ m['content'] }}{% endfor %}"
)
SYSTEM = Prompt(messages=[{"role": "system", "content": "Be good."}, {"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("template", [NO_SYSTEM, ALTERNATING])
def test_a_template_without_system_messages_says_what_to_do(tok: Any, template: str) -> None:
    from amplify.models import chat

    other = copy.deepcopy(tok)
    other.chat_template = template
    with pytest.raises(PromptFormatError, match=r"takes no system message \(.*system='none'") as caught:
        chat.render(SYSTEM, other)
    assert "--set '*.system=none'" in amplify.cli.way_out(caught.value, "run")
    twice = Prompt(messages=[{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}])
    if template == ALTERNATING:
        with pytest.raises(PromptFormatError, match="refuses these messages"):
            chat.render(twice, other)


def test_a_model_without_a_template_says_so_in_the_words_of_the_command(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    tokenizer.chat_template = None
    folder = saved(AutoModelForCausalLM.from_pretrained(tiny_lm), tokenizer, tmp_path / "base")
    notes = []
    for i, words in enumerate(("Great phone.", "Terrible battery.")):
        notes.append(tmp_path / f"{i}.txt")
        notes[-1].write_text(words)
    model = ["--model", f"transformers:{folder}"]
    ways = {
        "--raw": ["generate", *model, "Hi"],
        "--layout text": ["attribute", *model, "--question", "Which?", "--documents", *map(str, notes)],
        "--set '*.layout=text'": [
            "run", "support_tickets", *model, "--methods", "zero_shot", "--limit", "2", "--out", str(tmp_path / "run")
        ],
    }  # fmt: skip
    for way, arguments in ways.items():
        monkeypatch.setattr("sys.argv", ["amplify", *arguments])
        with pytest.raises(SystemExit) as done:
            amplify.cli.main()
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert done.value.code == 2
        assert said.startswith("amplify: this model has no chat template: ")
        assert way in said
    # and the way out leads out
    assert CliRunner().invoke(cli, ["generate", *model, "--raw", "--max-tokens", "2", "Hi"]).exit_code == 0
    result = CliRunner().invoke(cli, [*ways["--layout text"], "--layout", "text", "--answer", "Great", "--budget", "4"])
    assert result.exit_code == 0


def test_a_character_cut_in_half_is_left_out_as_servers_do(tiny_lm: Path) -> None:
    from tokenizers.decoders import DecodeStream

    with load_model(f"transformers:{tiny_lm}", dtype="float32") as model:
        tokenizer = model.tokenizer  # type: ignore[attr-defined]
        prompt = tokenizer("Great").input_ids
        for written in ("phone 🙂", "🙂🙂", "né", "a�b"):
            ids = tokenizer(written, add_special_tokens=False).input_ids
            for n in range(1, len(ids) + 1):
                # what vLLM's detokeniser makes of them
                stream = DecodeStream(skip_special_tokens=True)
                pieces = [stream.step(tokenizer.backend_tokenizer, t) or "" for t in [*prompt, *ids[:n]]]
                found = model.completion(prompt, ids[:n], Sampling(max_tokens=n))  # type: ignore[attr-defined]
                assert found.text == "".join(pieces[len(prompt) :])


def test_integrated_gradients_start_from_no_vector_of_zeros(tiny_lm: Path) -> None:
    """A padding vector that was never trained is zero, where normalising layers have no gradient to speak of."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_lm)
    module = AutoModelForCausalLM.from_pretrained(tiny_lm).requires_grad_(False)
    table = module.get_input_embeddings().weight
    table[tokenizer.pad_token_id] = 0.0
    table *= 0.1  # smooth enough for fifty points
    model = amplify.TransformersModel(module, tokenizer)
    found = explain(WORDS, " good", model=model, method="integrated_gradients")
    assert abs(found.meta["completeness_gap"]) < 0.02 * np.abs(found.scores).sum()


def test_a_sum_that_misses_is_told() -> None:
    from amplify.types import Attribution

    def shown(gap: float) -> str:
        scores = (1.0, -1.0)
        meta = {"completeness_gap": gap}
        return str(Attribution("a b", ("a", "b"), ((0, 1), (2, 3)), scores, "c", meta=meta, method="m"))

    assert "their sum misses -0.500" in shown(-0.5)
    assert "misses" not in shown(0.001)
