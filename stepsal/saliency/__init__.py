"""Saliency: how strongly each step of a trace is read when a later step is written, as step maps."""
