"""The model runners, V1 and V2, tell the layers' bank what is in the batch before each forward pass."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from amplify.steering.payload import Payload
from amplify.steering.vllm_plugin.bank import bank_of
from amplify.steering.vllm_plugin.options import asked


def extend_runners() -> None:
    """Lay out the requests of a steered engine before each of its forward passes."""
    from vllm.v1.worker.gpu import model_states
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    plain_forward = GPUModelRunner._model_forward

    @functools.wraps(plain_forward)
    def model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not hasattr(self, "amplify_bank"):
            self.amplify_bank = bank_of(self.compilation_config.static_forward_context)
        if self.amplify_bank is not None:
            batch = self.input_batch
            n = batch.num_reqs
            requests = [(name, asked(self.requests[name].sampling_params)) for name in batch.req_ids[:n]]
            starts = self.query_start_loc.np[: n + 1]
            self.amplify_bank.begin(requests, np.diff(starts), batch.num_computed_tokens_cpu[:n])
        return plain_forward(self, *args, **kwargs)

    GPUModelRunner._model_forward = model_forward

    plain_resolve = model_states.resolve_model_state_cls

    def resolve(vllm_config: Any, model: Any) -> Any:
        plain = plain_resolve(vllm_config, model)
        found = bank_of(vllm_config.compilation_config.static_forward_context)
        if found is None:
            return plain
        bank = found

        class Steered(plain):  # type: ignore[misc, valid-type]
            """The model's state, and what each request asks for."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                self.amplify_asked: dict[str, Payload] = {}

            def add_request(self, req_index: int, new_req_data: Any) -> None:
                super().add_request(req_index, new_req_data)
                asks = asked(new_req_data.sampling_params)
                if asks is not None:
                    self.amplify_asked[new_req_data.req_id] = asks

            def remove_request(self, req_id: str) -> None:
                super().remove_request(req_id)
                self.amplify_asked.pop(req_id, None)

            def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
                n = input_batch.num_reqs
                requests = [(name, self.amplify_asked.get(name)) for name in input_batch.req_ids[:n]]
                starts = input_batch.query_start_loc_np[: n + 1]
                bank.begin(requests, np.diff(starts), input_batch.num_computed_tokens_np[:n])
                return super().prepare_inputs(input_batch, req_states)

        return Steered

    model_states.resolve_model_state_cls = resolve
