"""Statistics that know nothing about language models: paired outcomes, the bootstrap and permutation tests."""
