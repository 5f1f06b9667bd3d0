"""What a run reports: one record an iteration, as a JSON line, for TensorBoard and on the console; and its curves."""
