"""DSPy: an amplify model as `dspy.LM`, and programs as modules and back.

dspy.configure(lm=dspy_lm("transformers:smollm2-135m"))
module = ProgramModule(amplify.Program.load("tuned/program.json"), model)      # answers as the program does
predict = to_predict(program)                                                  # its shots as demos: optimise it
program = from_predict(predict, program)                                       # and deploy what came out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from amplify.errors import CapabilityError, InputError, ModelError, extras
from amplify.methods.base import Program
from amplify.methods.parse import parse_label
from amplify.methods.program import ShotProgram
from amplify.models import load_model
from amplify.models.base import LanguageModel
from amplify.steering import Steering, parse_emphasis
from amplify.types import Demonstration, Example, Message, Prompt, Rationale, Sampling

with extras():
    import dspy
    from dspy import lm15

__all__ = ["AmplifyEngine", "ProgramModule", "dspy_lm", "from_predict", "to_predict"]

_ROLES = {"user": "user", "assistant": "assistant", "developer": "system"}


class AmplifyEngine:
    """What answers behind a `dspy.LM`: an amplify model, steered or not.

    Args:
        model: an open model, or its id.
        steering: how attention is steered to what stands between `**` in messages; None for no steering.

    Example:
        >>> import dspy
        >>> from amplify.bridges.dspy import AmplifyEngine
        >>> engine = AmplifyEngine("scripted:say=Rome")
        >>> dspy.LM("mine", engine=engine, cache=False)("Where is it?")
        ['Rome']
    """

    def __init__(self, model: LanguageModel | str, steering: Steering | None = None) -> None:
        self.model = load_model(model) if isinstance(model, str) else model
        self.steering = steering

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request.

        Raises:
            CapabilityError: tools, pictures, or settings that amplify's models do not take.
        """
        config = request.config
        if request.tools or config.response_format is not None or config.top_k is not None:
            raise CapabilityError(
                "amplify's models take no tools, response formats or top_k: leave them to the adapter"
            )
        turns = [Message("system", _text(request.system))] if request.system else []
        turns += [Message(_ROLES[m.role], _text(m.parts)) for m in request.messages]  # type: ignore[arg-type]
        prompt = Prompt(messages=tuple(turns)) if self.steering is None else parse_emphasis(turns)
        temperature = config.temperature or 0.0
        way = Sampling(
            max_tokens=config.max_tokens or 1024,
            temperature=temperature,
            top_p=config.top_p if config.top_p is not None and temperature else 1.0,
            stop=tuple(config.stop),
            seed=getattr(config, "seed", None),
        )
        try:
            [found] = self.model.generate([prompt], way, steering=self.steering)
        except ModelError as error:
            raise lm15.ProviderError(str(error)) from error
        return lm15.Response(
            id=None,
            model=self.model.id,
            message=lm15.Message.assistant(found.text or " "),  # a message has at least one character
            finish_reason=found.finish_reason,
            usage=lm15.Usage(input_tokens=found.prompt_tokens, output_tokens=found.completion_tokens),
        )

    def dump_state(self) -> dict[str, Any]:
        """The model's id and the steering, for `dspy`'s saved programs."""
        return {"model": self.model.id, "steering": None if self.steering is None else self.steering.to_dict()}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> AmplifyEngine:
        """The inverse of `dump_state`: the model is opened."""
        steering = state["steering"]
        return cls(state["model"], None if steering is None else Steering.from_dict(steering))


def _text(parts: Any) -> str:
    """The text of a message's parts.

    Raises:
        CapabilityError: a part that is no text.
    """
    if isinstance(parts, str):
        return parts
    if other := next((part.type for part in parts if part.type != "text"), None):
        raise CapabilityError(f"amplify's models read text, and a message holds a part of the type {other!r}")
    return "".join(part.text for part in parts)


def dspy_lm(model: LanguageModel | str, *, steering: Steering | None = None, **options: Any) -> dspy.LM:
    """An amplify model as `dspy.LM`.

    Args:
        model: an open model, or its id.
        steering: how attention is steered to what stands between `**` in messages; None for no steering.
        **options: of `dspy.LM`, e.g. temperature, max_tokens, cache.

    Raises:
        MissingExtraError: dspy is not installed.

    Example:
        >>> from amplify.bridges.dspy import dspy_lm
        >>> dspy_lm("scripted:say=Rome", cache=False)("Where is it?")
        ['Rome']
    """
    engine = AmplifyEngine(model, steering)
    return dspy.LM(engine.model.id, engine=engine, **options)


class ProgramModule(dspy.Module):
    """A program as a DSPy module: `module(text=…)` gives what the program answers, by its own prompts.

    Args:
        program: what a run, a search or a method's `fit` found.
        model: who answers, open or by its id.

    Returns, when called, a `dspy.Prediction` of `answer` (None where nothing could be read), `rationale` and `scores`.
    Saved and loaded as DSPy's modules are; `program` is the program.

    Example:
        >>> import amplify
        >>> from amplify.bridges.dspy import ProgramModule
        >>> task = amplify.load_task("support_tickets")
        >>> model = amplify.load_model("scripted:say=billing")
        >>> program = amplify.methods.FewShot(shots=2).fit(task, model, seed=0)
        >>> ProgramModule(program, model)(text="I was charged twice.").answer
        'billing'
    """

    def __init__(self, program: Program, model: LanguageModel | str) -> None:
        super().__init__()
        self.program = program
        self.model = load_model(model) if isinstance(model, str) else model

    def forward(self, text: str, choices: Sequence[str] = (), **fields: Any) -> dspy.Prediction:
        """Answer one input; `choices` where each brings its own, `fields` what else the program's template reads."""
        [found] = self.program.answer([Example("", text, choices=tuple(choices), fields=fields)], self.model)
        return dspy.Prediction(answer=found.value, rationale=found.rationale, scores=dict(found.scores))

    def dump_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The program's JSON."""
        return {"program": self.program.tagged()}

    def load_state(self, state: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Take the program of a saved state."""
        self.program = Program.of(state["program"])


def to_predict(program: Program) -> dspy.Predict:
    """A program of shots as `dspy.Predict`: its instruction, labels and shots, rationales as `reasoning`.

    DSPy writes the prompt in its own form, so that answers can differ: `ProgramModule` answers exactly as the program.

    Raises:
        InputError: a program of another kind, or one whose items bring their own choices.

    Example:
        >>> import amplify
        >>> from amplify.bridges.dspy import to_predict
        >>> task = amplify.load_task("support_tickets")
        >>> model = amplify.load_model("scripted:say=billing")
        >>> program = amplify.methods.FewShot(shots=2).fit(task, model, seed=0)
        >>> predict = to_predict(program)
        >>> len(predict.demos)
        2
        >>> predict.signature
        StringSignature(text -> answer...
    """
    shots = _shots(program)
    form = shots.form
    if form.kind == "choices":
        raise InputError("the items of this program bring their own choices, which a DSPy signature cannot name")
    answer: Any = Literal[form.labels] if form.labels else str
    outputs: dict[str, Any] = {"answer": (answer, dspy.OutputField())}
    if any(shot.rationale for shot in shots.shots):
        outputs = {"reasoning": (str, dspy.OutputField()), **outputs}
    fields = {"text": (str, dspy.InputField(desc=form.input_name)), **outputs}
    predict = dspy.Predict(dspy.Signature(fields, form.instruction))
    predict.demos = [
        dspy.Example(
            text=shot.example.text,
            answer=shot.example.label if shot.example.label is not None else next(iter(shot.example.answers), ""),
            **({"reasoning": shot.rationale.text} if shot.rationale else {}),
        ).with_inputs("text")
        for shot in shots.shots
    ]
    return predict


def from_predict(predict: dspy.Predict, program: Program) -> ShotProgram:
    """A program with the instruction and the demos of a predictor, e.g. one that DSPy has optimised.

    Args:
        predict: of one input, `text`, and an `answer`, as `to_predict` makes it (or its optimised copy).
        program: whose templates, labels and way of reading answers are kept.

    Raises:
        InputError: a program that is no shots, or a demo that lacks a text, or whose answer is none of the labels.

    Example:
        >>> import amplify, dspy
        >>> from amplify.bridges.dspy import from_predict, to_predict
        >>> task = amplify.load_task("support_tickets")
        >>> model = amplify.load_model("scripted:say=billing")
        >>> program = amplify.methods.FewShot(shots=2).fit(task, model, seed=0)
        >>> predict = to_predict(program)
        >>> better = dspy.LabeledFewShot(k=1).compile(predict, trainset=predict.demos)
        >>> len(from_predict(better, program).shots)
        1
    """
    shots = _shots(program)
    form = replace(shots.form, instruction=predict.signature.instructions)
    made = []
    for number, demo in enumerate(predict.demos):
        text, answer = demo.get("text"), demo.get("answer")
        label = parse_label(str(answer), form.labels) if form.labels else None
        if not isinstance(text, str) or not text or answer is None or (form.labels and label is None):
            wanted = f"one of {', '.join(form.labels)}" if form.labels else "an answer"
            raise InputError(f"demo {number} needs a text and {wanted}, and it is {dict(demo)!r}")
        answers = () if label is not None else (str(answer),)
        reasoning = demo.get("reasoning")
        rationale = Rationale(str(reasoning), kind="dspy") if reasoning and form.reasons else None
        made.append(Demonstration(Example(f"demo-{number}", text, label, answers=answers), rationale))
    return replace(shots, form=form, shots=tuple(made))


def _shots(program: Program) -> ShotProgram:
    if not isinstance(program, ShotProgram):
        raise InputError(
            f"a program of the kind {program.kind!r} is more than shots: ProgramModule makes a module of any program"
        )
    return program
