"""Statistics that know nothing of language models: paired outcomes, bootstrap, permutation tests."""
