"""Language models: loading them, and the one place that knows TransformerLens and transformers."""
