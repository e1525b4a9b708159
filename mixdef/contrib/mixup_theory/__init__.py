"""The propositions of mixup training for GANs, and what they say of a run."""
