"""Benchmarks, replays, and the proof that drafts leave the text alone."""
