"""What a run is and keeps: its config, state, checkpoints and working directory."""
