"""stepsal as a model of lm-evaluation-harness, which the extra `stepsal[eval]` installs."""
