"""What generated records are worth: distances in features, training on them, tables."""

from mixdef.generative.metrics.column_regressions import fit_columns
from mixdef.generative.metrics.coverage import density_coverage
from mixdef.generative.metrics.downstream import downstream_accuracy
from mixdef.generative.metrics.extractors import (
  Extractor,
  classifier_features,
  features,
)
from mixdef.generative.metrics.frechet import (
  fd,
  fid,
  frechet_distance,
  frechet_distance_of_moments,
)
from mixdef.generative.metrics.inception_weights import inception_features
from mixdef.generative.metrics.kernel_distance import kid, squared_mmd
from mixdef.generative.metrics.sample_quality import sample_quality
from mixdef.generative.metrics.table_plots import dwp_plot, dwpre_plot
from mixdef.generative.metrics.tables import dwp, dwpre

__all__ = [
  "Extractor",
  "classifier_features",
  "density_coverage",
  "downstream_accuracy",
  "dwp",
  "dwp_plot",
  "dwpre",
  "dwpre_plot",
  "fd",
  "features",
  "fid",
  "fit_columns",
  "frechet_distance",
  "frechet_distance_of_moments",
  "inception_features",
  "kid",
  "sample_quality",
  "squared_mmd",
]
