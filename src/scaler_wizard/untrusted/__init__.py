"""What arrives from others: checked before it is used, and never run."""
