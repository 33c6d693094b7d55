"""Datasets as their publishers ship them, read as recordings: streams of sensor events with a known truth."""
