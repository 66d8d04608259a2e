"""Between text and tokens: streams, encodings, chat templates, conversations."""
