"""Retrieval and what attributions do with it; adapters for LangChain, LlamaIndex and Haystack.

Each adapter is a module of its own, so that no host framework is imported unless it is used.
"""
