"""amplify inside the tools that people evaluate, tune and track with: a module for each, which imports that tool.

None of them is imported by the library itself. What is missing is one error that names the extra.
"""
