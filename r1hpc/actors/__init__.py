"""Ray actors, one to a process, and their groups as the driver speaks to them: all trainers as one, all engines."""
