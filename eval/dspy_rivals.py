"""An optimiser of DSPy on an amplify task, through an OpenAI-compatible server; started by `bench_tune.py --rivals`.

    PYTHON_WITH_DSPY eval/dspy_rivals.py mipro items.json answers.json --url URL --model NAME --calls 400

Needs dspy 3.4.1, gepa 0.1.4 and optuna, in an environment of their own. The file of items has `instruction`,
`input_name`, `labels`, labelled `train` and `validation` items, and `test` items without labels; the answers to these,
the number of calls and the optimised program are written.
"""

from __future__ import annotations

import argparse
import json
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

THREADS = 8
DEMOS = 8  # as many as amplify's few-shot programs show
ANSWER, INSTRUCTION = 64, 512  # tokens: an answer with DSPy's field marks takes about 20
CANDIDATES = 6  # instructions and sets of demonstrations that MIPROv2 chooses among


def main() -> None:
    """Optimise within the calls, answer the test items, write both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("optimizer", choices=["bootstrap", "mipro", "gepa"])
    parser.add_argument("items", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import dspy

    class Counter(dspy.utils.callback.BaseCallback):
        """Counts requests; nothing is cached, so each one reaches the model."""

        calls, lock = 0, threading.Lock()

        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            """One more."""
            with self.lock:
                self.calls += 1

    held, counter = json.loads(given.items.read_text()), Counter()
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    lm = dspy.LM(
        f"openai/{given.model}", api_base=given.url, api_key="none", temperature=0.0, max_tokens=ANSWER, cache=False
    )
    # as DSPy is set up by default: where an answer cannot be read it is asked for again as JSON, which counts
    dspy.configure(lm=lm, callbacks=[counter])
    answer: Any = Literal[tuple(held["labels"])] if held["labels"] else str
    name = "".join(c if c.isalnum() else "_" for c in held["input_name"].lower())
    signature = dspy.Signature(
        {name: (str, dspy.InputField()), "answer": (answer, dspy.OutputField())}, held["instruction"]
    )

    def examples(split: str) -> list[Any]:
        return [dspy.Example({name: e["text"], "answer": e["label"]}).with_inputs(name) for e in held[split]]

    def right(gold: Any, predicted: Any, *_: Any) -> bool:
        return str(getattr(predicted, "answer", "")).strip() == gold.answer

    def told(gold: Any, predicted: Any, *_: Any) -> Any:
        said = str(getattr(predicted, "answer", ""))
        note = "Right." if right(gold, predicted) else f"Wrong: the answer was {gold.answer!r}, not {said!r}."
        return dspy.Prediction(score=float(right(gold, predicted)), feedback=note)

    train, validation = examples("train"), examples("validation")
    student, calls = dspy.Predict(signature), given.calls
    if given.optimizer == "bootstrap":
        # three programs beside the random ones; making a set of demonstrations asks about as many as it shows
        sets = max(1, calls // (len(validation) + 4) - 3)
        optimiser = dspy.BootstrapFewShotWithRandomSearch(
            right, max_bootstrapped_demos=4, max_labeled_demos=DEMOS, num_candidate_programs=sets, num_threads=THREADS
        )
        program = optimiser.compile(student, trainset=train, valset=validation)
    elif given.optimizer == "mipro":
        proposing = 12 + 5 * CANDIDATES  # summaries of the data, instructions, demonstrations
        trials = max(2, math.floor((calls - proposing) / len(validation)) - 1)
        optimiser = dspy.MIPROv2(
            right, auto=None, num_candidates=CANDIDATES, max_bootstrapped_demos=4, max_labeled_demos=DEMOS,
            num_threads=THREADS, seed=given.seed, prompt_model=lm.copy(max_tokens=INSTRUCTION),
        )  # fmt: skip
        program = optimiser.compile(student, trainset=train, valset=validation, num_trials=trials, minibatch=False)
    else:
        writer = lm.copy(temperature=1.0, max_tokens=INSTRUCTION)
        optimiser = dspy.GEPA(
            told, max_metric_calls=calls, reflection_lm=writer, num_threads=THREADS, seed=given.seed
        )  # fmt: skip
        program = optimiser.compile(student, trainset=train, valset=validation)
    spent = counter.calls
    answers = answered(program, [{name: e["text"]} for e in held["test"]])
    found = {"calls": spent, "answers": answers, "program": program.dump_state(), "dspy": dspy.__version__}
    given.answers.write_text(json.dumps(found, indent=1, default=str) + "\n")


def answered(program: Any, items: Sequence[dict[str, str]]) -> list[str | None]:
    """An answer to each item; None where none could be read."""
    from concurrent.futures import ThreadPoolExecutor

    def one(fields: dict[str, str]) -> str | None:
        try:
            return str(program(**fields).answer)
        except Exception as error:  # an answer that cannot be read is a wrong one
            print(f"no answer: {type(error).__name__}", flush=True)
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, items))


if __name__ == "__main__":
    main()
