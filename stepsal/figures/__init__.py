"""Figures: pictures and tables for a paper, made from a folder of results."""
