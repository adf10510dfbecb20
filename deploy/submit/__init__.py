"""`dreamfleet submit`: a command as a job on a cluster."""
