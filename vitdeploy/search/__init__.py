"""Looking for the ways to deploy a network that nothing beats in both speed and accuracy on this machine."""
