"""The machine and the process: cores, memory, bandwidth, folders."""
