"""The propositions on mixup training for GANs, and their evaluation on a run."""
