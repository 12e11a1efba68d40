"""Nothing that a classifier says changes where its last layer goes on with the first token alone."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from amplify.attribution.first_token import first_token_alone

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}


def given(model) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 30, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 2 + [0] * 5])
    return {"inputs_embeds": model.get_input_embeddings()(ids), "attention_mask": mask}


@pytest.mark.parametrize(
    ("kind", "config"), [(BertForSequenceClassification, BertConfig), (RobertaForSequenceClassification, RobertaConfig)]
)
def test_logits_stay_and_the_other_tokens_are_spared(kind, config) -> None:
    torch.manual_seed(0)
    model = kind(config(**SMALL, num_labels=3)).eval()
    seen = []
    last = model.base_model.encoder.layer[-1].intermediate
    last.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    with torch.inference_mode():
        whole = model(**given(model)).logits
        with first_token_alone(model):
            seen.clear()
            alone = model(**given(model)).logits
        again = model(**given(model)).logits
    assert seen == [1, 7]
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(again, whole, rtol=0, atol=0)
    assert whole.std() > 1e-3, "the check needs logits that differ"


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (BertForTokenClassification, BertConfig(**SMALL)),  # reads every token
        (DistilBertForSequenceClassification, DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24)),
    ],
)
def test_other_models_run_as_they_are(kind, config) -> None:
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.inference_mode():
        whole = model(**given(model)).logits
        with first_token_alone(model):
            torch.testing.assert_close(model(**given(model)).logits, whole, rtol=0, atol=0)
