"""The commands: parse options, call core, show what came back. No algorithm lives here."""
