"""`fleet`: one command on many devices over SSH, each by its own vitdeploy, with what they answer gathered."""
