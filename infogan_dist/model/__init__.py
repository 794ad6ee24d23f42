"""The paper: latent codes, networks and losses, as functions of tensors."""
