"""Tasks: YAML, CSV, JSONL or a hub data set becomes labelled splits and the words around them.

Splits are made by content: examples are ordered by the SHA-256 of seed and content, so that the same rows give the
same splits whatever their order in the file. Copies of one text never stand in two splits, and a chain-of-thought
exemplar never stands in the test split.
"""

from amplify.tasks.load import TaskInfo, list_tasks, load_task
from amplify.tasks.rows import iter_rows, read_rows
from amplify.tasks.task import Task

__all__ = ["Task", "TaskInfo", "iter_rows", "list_tasks", "load_task", "read_rows"]
