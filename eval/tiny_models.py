"""A language model and two encoders of random weights, small enough to be made where they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = (
    "The key words: good, bad, great, terrible are important clues to predict positive as the correct answer.",
    "Great phone, terrible battery. The answer is positive.",
    "The answer is negative. Paris is the capital of France.",
    "user assistant system Question: Answer: (A) (B) (C) which statement is right?",
)


def byte_tokenizer(special: Mapping[str, str], sentences: Sequence[str] = SENTENCES) -> Any:
    """A byte-level BPE tokenizer, trained on a few sentences so that common words are one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[*special.values(), "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*sentences] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT_TEMPLATE, **special)


def language_model(folder: Path, *, window: int = 1024, sentences: Sequence[str] = SENTENCES) -> Path:
    """A Llama of 3 layers, 4 query and 2 key/value heads of size 8, in float32, with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer({"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}, sentences)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        initializer_range=0.4,  # large enough that different inputs give clearly different outputs
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return written(LlamaForCausalLM(config), tokenizer, folder)


def encoder(folder: Path, *, window: int = 256, spread: float = 0.02, sentences: Sequence[str] = SENTENCES) -> Path:
    """A BERT body of 2 layers, the shape of a proxy's encoder; `spread` is the deviation of its weights."""
    import torch
    from transformers import BertConfig, BertModel

    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    tokenizer = byte_tokenizer({**names, "unk_token": "[UNK]"}, sentences)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=window,
        initializer_range=spread,
        pad_token_id=tokenizer.pad_token_id,
    )
    return written(BertModel(config), tokenizer, folder)


def planted_reader(folder: Path, *, seed: int = 0) -> Path:
    """A BERT body of 2 layers to which every word of the tasks of planted words is one token.

    Fine-tuned on one of the tasks (8 epochs at a rate of 3e-3) it goes by the planted words, within seconds.

    Args:
        folder: where to.
        seed: of its weights.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from amplify.tasks.generated import FILLER, WORDS

    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    words = [*special.values(), *FILLER, *(word for pair in WORDS.values() for word in pair)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", words.index("[SEP]")), ("[CLS]", words.index("[CLS]"))
    )
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config)
    return written(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special), folder)


def written(model: Any, tokenizer: Any, folder: Path) -> Path:
    """A model and its tokenizer in a folder."""
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
