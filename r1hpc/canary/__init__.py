"""The canary: a few layers of the model through a whole cycle on the job's own hosts, before the run itself starts."""
