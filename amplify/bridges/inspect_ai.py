"""Inspect: amplify models as a provider (`--model amplify/transformers:…`), and a scorer that attributes answers.

Inspect finds both by itself once amplify is installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

from amplify.errors import CapabilityError, InputError, extras
from amplify.models import load_model, opened
from amplify.models.base import LanguageModel
from amplify.sources.attribute import attribute_sources
from amplify.steering import Steering, parse_emphasis
from amplify.types import Message, Prompt, Sampling

with extras():
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        GenerateConfig,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        get_model,
        modelapi,
    )
    from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
    from inspect_ai.solver import TaskState
    from inspect_ai.tool import ToolChoice, ToolInfo

__all__ = ["AmplifyAPI", "supported"]

_REFUSED = ("top_k", "logprobs", "response_schema", "frequency_penalty", "presence_penalty", "logit_bias")


class AmplifyAPI(ModelAPI):
    """An amplify model behind Inspect: `amplify/ID`, e.g. `amplify/transformers:smollm2-135m`.

    An assistant's message at the end is continued. With steering, `**words**` in messages are emphasised, and the marks
    are not sent.

    Args:
        model_name: the id.
        steering: a head profile's name or file, or an object (`-M steering=…`).
        model_args: options of `amplify.load_model` (`-M dtype=float32`), or `opened=` an open model.

    Example:
        >>> import inspect_ai
        >>> from inspect_ai.dataset import Sample
        >>> from inspect_ai.scorer import match
        >>> task = inspect_ai.Task([Sample(input="Where is it?", target="Rome")], scorer=match())
        >>> [log] = inspect_ai.eval(task, model="amplify/scripted:say=Rome", display="none")
        >>> log.results.scores[0].metrics["accuracy"].value
        1.0
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  as the base class has it
        steering: Steering | str | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        given = model_args.pop("opened", None)
        self.model: LanguageModel = load_model(model_name, **model_args) if given is None else given
        self.steering = Steering.load(steering) if isinstance(steering, str) else steering

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer one conversation, in a thread of its own.

        Raises:
            CapabilityError: tools, or settings that amplify's models do not take.
        """
        refused = [name for name in _REFUSED if getattr(config, name, None)]
        if tools or refused:
            raise CapabilityError(f"amplify's models take no {', '.join(refused) or 'tools'}")
        turns = [Message(m.role, m.text) for m in input]
        prefix = turns.pop().content if turns and turns[-1].role == "assistant" else ""
        marked = self.steering is not None
        prompt = parse_emphasis(turns, prefix=prefix) if marked else Prompt(messages=tuple(turns), prefix=prefix)
        temperature = config.temperature or 0.0
        way = Sampling(
            max_tokens=config.max_tokens or self.max_tokens() or 1024,
            temperature=temperature,
            top_p=config.top_p if config.top_p is not None and temperature else 1.0,
            stop=tuple(config.stop_seqs or ()),
            seed=config.seed,
            n=config.num_choices or 1,
        )
        found = await asyncio.to_thread(self.model.generate, [prompt], way, steering=self.steering)
        usage = [sum(counts) for counts in zip(*((c.prompt_tokens, c.completion_tokens) for c in found), strict=True)]
        return ModelOutput(
            model=self.model.id,
            choices=[
                ChatCompletionChoice(
                    message=ChatMessageAssistant(content=c.text, model=self.model.id, source="generate"),
                    stop_reason="stop" if c.finish_reason == "stop" else "max_tokens",
                )
                for c in found
            ],
            usage=ModelUsage(input_tokens=usage[0], output_tokens=usage[1], total_tokens=sum(usage)),
        )

    def close(self) -> None:
        """Free the model."""
        self.model.close()


@modelapi(name="amplify")
def provider() -> type[ModelAPI]:
    """What Inspect opens for `amplify/ID`."""
    return AmplifyAPI


@scorer(metrics=[mean(), stderr()])
def supported(
    model: LanguageModel | str | None = None,
    documents: str = "documents",
    budget: int = 64,
    granularity: Literal["documents", "sentences"] = "documents",
    seed: int = 0,
) -> Scorer:
    """Share of an answer's claims that its documents support, by their Shapley values; 0 for an empty answer.

    What carries each claim is in the score's metadata (`claims`, `citations`), the scores as text in its explanation.

    Args:
        model: who judges what each document does to the answer, open or by its id: one that gives log-probabilities.
            None: the evaluated model, where it is amplify's.
        documents: the key of a sample's metadata under which its documents stand: texts, or dictionaries with a text.
        budget, granularity, seed: of `amplify.attribute_sources`.

    Example:
        >>> import inspect_ai
        >>> from inspect_ai.dataset import Sample
        >>> from amplify.bridges.inspect_ai import supported
        >>> from amplify.models.scripted import ScriptedModel
        >>> sample = Sample(input="Where is it?", metadata={"documents": ["It is in Rome.", "Bees fly."]})
        >>> judge = ScriptedModel(logprob=lambda text, answer: -1.0 if "in Rome" in text else -9.0)
        >>> task = inspect_ai.Task([sample], scorer=supported(judge))
        >>> [log] = inspect_ai.eval(task, model="amplify/scripted:say=Rome", display="none")
        >>> log.samples[0].scores["supported"].metadata["citations"][0]["text"]
        'It is in Rome.'
    """

    async def score(state: TaskState, target: Target) -> Score:
        if documents not in state.metadata:
            raise InputError(f"sample {state.sample_id!r} has no {documents!r} in its metadata: name them documents=…")
        answer = state.output.completion
        if not answer.strip():
            return Score(value=0.0, answer=answer, explanation="the answer is empty")
        judge = model if model is not None else _evaluated()
        value, why, data = await asyncio.to_thread(
            _attributed, judge, state.input_text, state.metadata[documents], answer, (budget, granularity, seed)
        )
        return Score(value=value, answer=answer, explanation=why, metadata=data)

    return score


def _evaluated() -> LanguageModel:
    api = get_model().api
    if not isinstance(api, AmplifyAPI):
        raise InputError("the evaluated model is not amplify's: name the judge, supported(model='transformers:…')")
    return api.model


def _attributed(
    judge: LanguageModel | str, question: str, documents: Sequence[Any], answer: str, how: tuple[int, Any, int]
) -> tuple[float, str, dict[str, Any]]:
    budget, granularity, seed = how
    with opened(judge) as model:
        result = attribute_sources(
            question, documents, model, answer, budget=budget, granularity=granularity, seed=seed
        )
    claims = result.claims
    share = sum(claim.verdict == "supported" for claim in claims) / len(claims) if claims else 0.0
    held = result.to_dict()
    return share, str(result), {"claims": held["claims"], "citations": held["citations"]}
