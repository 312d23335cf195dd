"""The Ray half: one thin driver a job, and the command line."""
