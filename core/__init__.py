"""Tokens, trees, sessions, memory and text. No command line, no printing."""
