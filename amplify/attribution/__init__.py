"""Why this answer: scores over the words of one input."""
