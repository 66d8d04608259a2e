"""What a target call costs: measured curves, online prices, and which widths round alike."""
