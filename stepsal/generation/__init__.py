"""Generation: letting a model answer questions, and grading its answers."""
