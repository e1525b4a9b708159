"""The mixup GAN on CelebA, as the official scripts train it.

  mixdef gan --protocol=mixup_gan_celeba --defense=mixup

128 models, each trained on 5,000 of 10,000 faces, with a generator step on the
first batch of an epoch. The scripts use the test files; these settings use the training
files.

Cost and result: 200 epochs of 64 x 64 images in each of 128 models, twice with a
defense, for a GPU. It has not been run; docs/results/generative.md has smaller runs.
"""

SETTINGS = {
  "dataset": "celeba",
  "train_size": 5000,
  "model": "image_networks(latent=256)",
  "learner": "wgan_gp(generator_steps='first')",
  "epochs": 200,
  "batch_size": 100,
  "num_shadows": 128,
  "samples": 4096,
}
