"""The heart: the model that joins a vision-language model, a seg head and a mask decoder; its configuration, losses and weight files."""
