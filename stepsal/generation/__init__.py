"""Generation: letting a model answer questions, and grading its answers.

`questions` says what is asked, `generate` decodes (its random choices are in `sampling`), `grading` says whether an answer is
right. `files` keeps graded answers in a file as they are made; `task` gives those to the bundled task at once.
"""
