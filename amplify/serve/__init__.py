"""The HTTP service: attributions, and a chat API that passes through and cites."""
