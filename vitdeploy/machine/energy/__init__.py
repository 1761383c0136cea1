"""What this machine draws: one file a sensor, and a meter that reads them around a job."""
