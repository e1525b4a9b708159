"""Table 1 of AdaMixup on CIFAR-10.

  mixdef train --protocol=adamixup --defense=adamixup
  mixdef lira --protocol=adamixup --defense=adamixup --num_shadows=16

The paper does not specify the network, the standardized inputs and the choice of 10,520
records of the training file; these are from earlier code of its authors.

Cost and result: 100 epochs of 10,520 records per model. It has not been run, because no
GPU was available; docs/results/classifiers.md has a smaller run on CIFAR-10.
"""

SETTINGS = {
  "dataset": "cifar10",
  "train_size": 10_520,
  "standardize": True,
  "model": "cnn",
  "optimizer": "adam",
  "learning_rate": 1e-3,
  "batch_size": 128,
  "epochs": 100,
}
