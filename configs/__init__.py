"""The experiments. Each file has what differs from `default`."""
