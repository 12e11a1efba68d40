"""The parts of `eval/torture.py`: each hurts the library in one way and says what it did about it."""
