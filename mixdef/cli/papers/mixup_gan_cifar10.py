"""The mixup GAN on CIFAR-10, as the official scripts train it.

  mixdef gan --protocol=mixup_gan_cifar10 --defense=mixup

128 models, each trained on 4,096 images for 100,000 steps. The scripts use the test
files; these settings use the training files.

Cost and result: 1,563 epochs of 32 x 32 images in each of 128 models, twice with a
defense, for a GPU. It has not been run; docs/results/generative.md has smaller runs.
"""

SETTINGS = {
  "dataset": "cifar10",
  "train_size": 4096,
  "model": "image_networks(latent=100)",
  "epochs": 1563,
  "batch_size": 64,
  "num_shadows": 128,
  "samples": 4096,
}
