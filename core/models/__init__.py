"""Model files: headers, tensor types, architectures, and where files come from."""
