"""The `bench` command: measuring live, replaying recordings, and reporting."""
