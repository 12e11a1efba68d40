"""One HTTP request to an OpenAI-compatible server, each failure sorted into what may pass and what will not."""

from __future__ import annotations

import email.utils
import json
import os
import re
import time
from collections.abc import Mapping
from typing import Any

from amplify.backends.retry import GiveUpError, TryAgainError

Json = dict[str, Any]
KEY_VARIABLE = "OPENAI_API_KEY"


class Server:
    """JSON in, JSON out, over the `openai` client's connections. Threads may share it."""

    def __init__(self, url: str, timeout: float) -> None:
        """Make the client; nothing is sent.

        Args:
            url: base of the API, e.g. "http://127.0.0.1:8000/v1".
            timeout: seconds to wait for an answer.
        """
        from openai import OpenAI

        self._timeout = timeout
        self._key = os.environ.get(KEY_VARIABLE, "")
        self._client = OpenAI(api_key=self._key or "none", base_url=url, timeout=timeout, max_retries=0)

    def get(self, path: str) -> Json:
        """The object at `path`. Raises what `post` does."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Json) -> Json:
        """The server's answer to `body`.

        Raises:
            TryAgainError: 408, 409, 429, 5xx, a time-out, no connection, or an answer that is no JSON object.
            GiveUpError: any other status, or a quota that is used up.
        """
        return self._ask("POST", path, body)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, method: str, path: str, body: Json | None) -> Json:
        import httpx
        import openai

        try:
            if method == "GET":
                response = self._client.get(path, cast_to=httpx.Response)
            else:
                response = self._client.post(path, cast_to=httpx.Response, body=body)
            data = response.json()
        except openai.APITimeoutError as error:
            raise TryAgainError(f"no answer within {self._timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise TryAgainError(f"no connection ({self._clean(error.__cause__ or error)}); is it running?") from error
        except openai.APIStatusError as error:
            message = f"HTTP {error.status_code}: {self._clean(_reason(error.response.text))}"
            may_pass = error.status_code in (408, 409, 429) or error.status_code >= 500
            if may_pass and "insufficient_quota" not in error.response.text:
                raise TryAgainError(message, _retry_after(error.response.headers)) from error
            raise GiveUpError(message) from error
        except ValueError as error:
            raise TryAgainError("the answer is not JSON; is the URL that of an OpenAI-compatible API?") from error
        if not isinstance(data, dict):
            raise TryAgainError("the answer is not a JSON object")
        return data

    def _clean(self, message: object) -> str:
        text = str(message).replace(self._key, "***") if self._key else str(message)
        return " ".join(text.split())[:300].rstrip(".")


def _reason(body: str) -> str:
    """The server's own words in an error body."""
    try:
        data = json.loads(body)
    except ValueError:
        return re.sub(r"<[^>]*>", " ", body)
    error = data.get("error", data) if isinstance(data, dict) else data
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds asked for in a Retry-After header: a number or a date."""
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
