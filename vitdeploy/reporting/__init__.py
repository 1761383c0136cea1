"""`report`: what is known of bundles as one HTML file that needs nothing else."""
