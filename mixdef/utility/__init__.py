"""Utility metrics of generated records: feature distances, accuracy, tables."""

from mixdef.utility.column_regressions import fit_columns
from mixdef.utility.coverage import density_coverage
from mixdef.utility.downstream import downstream_accuracy
from mixdef.utility.extractors import Extractor, classifier_features, features
from mixdef.utility.frechet import (
  fd,
  fid,
  frechet_distance,
  frechet_distance_of_moments,
)
from mixdef.utility.inception_weights import inception_features
from mixdef.utility.kernel_distance import kid, squared_mmd
from mixdef.utility.sample_quality import sample_quality
from mixdef.utility.tables import dwp, dwpre

__all__ = [
  "Extractor",
  "classifier_features",
  "density_coverage",
  "downstream_accuracy",
  "dwp",
  "dwpre",
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
