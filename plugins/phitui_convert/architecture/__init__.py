"""One module per architecture: hyperparameters checked and turned into keys, and the tensors that must be there."""
